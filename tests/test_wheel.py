"""The wheel carries what an installed vitbench needs: tasks, published numbers, type information, the command."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("vitbench-*.whl")
    return path


def test_what_the_wheel_carries(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in [*ROOT.glob("tasks/**/*.yaml"), *ROOT.glob("recipes/**/*.*"), *ROOT.glob("results/published/*.csv")]:
        relative = path.relative_to(ROOT).as_posix().replace("results/published", "published")
        assert f"vitbench/_bundled/{relative}" in names
    assert "vitbench/py.typed" in names
    assert not any(name.startswith(("tests/", "bench/", "results/")) for name in names)


def test_installed_outside_the_checkout_it_lists_its_tasks_and_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "env" / "lib" / version / "site-packages"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    # The dependencies are lent by this environment; a path in a .pth file does not bring its own .pth files, so not the checkout.
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"])

    def run(*arguments: str) -> str:
        command = [str(python), "-m", "vitbench", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    where = subprocess.run(
        [str(python), "-c", "import vitbench; print(vitbench.__file__)"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert where.startswith(str(site))
    listed = {row["name"] for row in json.loads(run("ls", "tasks", "--json"))}
    assert listed == {
        path.relative_to(ROOT / "tasks").with_suffix("").as_posix()
        for path in ROOT.glob("tasks/**/*.yaml")
        if path.name != "suite.yaml"
    }
    run("run", "--quiet")
    assert "pixels" in run("leaderboard", "--format", "csv")
    run("report", "--out", "report")
    assert "pixels" in (tmp_path / "report" / "index.html").read_text()

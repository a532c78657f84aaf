"""The examples in the documentation run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitbench

DOCS = Path(__file__).parent.parent / "docs"


def install_example(page: str, module: str, folder: Path) -> dict[str, str]:
    """Put a page's module and entry point where Python finds them, as pip would; the environment to run in."""
    text = (DOCS / page).read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    group, entry = re.fullmatch(r'\[project\.entry-points\."(.+)"\]\n(.+)\n', toml).groups()  # type: ignore[union-attr]
    (folder / f"{module}.py").write_text(code)
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{entry.replace(chr(34), '')}\n")
    return os.environ | {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(("page", "module"), [("add-a-backbone.md", "histogram"), ("add-a-protocol.md", "prototype")])
def test_the_example_of_a_page_runs(page: str, module: str, tmp_path: Path) -> None:
    environment = install_example(page, module, tmp_path)
    (command,) = re.findall(r"`vitbench (run [^`]+)`\.", (DOCS / page).read_text().split("## What")[0])
    done = subprocess.run(
        [sys.executable, "-m", "vitbench", *command.split(), "-o", "out"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frame = vitbench.load_results(tmp_path / "out")
    assert frame["accuracy"].mean() > 0.12
    assert (
        (frame["protocol"] == "prototype").all() if module == "prototype" else (frame["backbone"] == "histogram").all()
    )
    assert (frame["shot"] == 10).all() if module == "prototype" else len(frame) == 12


def test_the_task_file_of_the_page_is_valid(tmp_path: Path) -> None:
    from vitbench.tasks.spec import read_task_file

    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "add-a-task.md").read_text(), re.DOTALL)
    (tmp_path / "shoes.yaml").write_text(text)
    assert read_task_file(tmp_path / "shoes.yaml").num_classes == 3


def test_the_page_on_convert_tells_the_truth_about_its_last_line(tiny_vit: str, tmp_path: Path) -> None:
    for target in ("copy", "copy.safetensors"):
        done = subprocess.run(
            [sys.executable, "-m", "vitbench", "convert", tiny_vit, target],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
        compared = subprocess.run(
            [sys.executable, "-m", "vitbench", "parity", tiny_vit, done.stdout.strip()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "different weights" not in compared.stdout, compared.stdout
        assert "blocks." not in compared.stdout.split("verdict")[-1]

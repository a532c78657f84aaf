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


def test_the_page_on_tasks_step_by_step(tmp_path: Path) -> None:
    """A new task is one YAML file and no code: the page's data, its file and its commands, in order, from an empty folder."""
    text = (DOCS / "add-a-task.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    (spec,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "high_digits.yaml").write_text(spec)
    commands = [line for block in re.findall(r"```\n(vitbench.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "vitbench", *command.split()[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    frame = vitbench.load_results(tmp_path / "results" / "runs")
    assert set(frame["task"]) == {"high_digits"}
    assert set(frame["protocol"]) == {"fewshot", "ridge"}
    assert frame[frame["protocol"] == "ridge"]["score"].item() > 0.7
    assert frame[frame["protocol"] == "ridge"]["n_support"].item() == 1000


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

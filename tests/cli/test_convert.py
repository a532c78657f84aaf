"""`vitbench convert` as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitbench.backbones.load import load_backbone
from vitbench.backbones.vit_names import bit_equal, canonical_weights
from vitbench.cli.main import app
from vitbench.errors import UsageError


def test_the_last_line_is_the_spec_that_loads_the_result(tiny_vit: str, tmp_path: Path) -> None:
    spec = tiny_vit
    for name in ("folder", "paper.npz", "back.safetensors"):
        result = CliRunner().invoke(app, ["convert", spec, str(tmp_path / name)], catch_exceptions=False)
        assert result.exit_code == 0
        assert result.stdout.count("\n") == 1
        assert f"{tmp_path / name}: " in result.stderr
        assert "38 tensors read back and equal bit for bit" in result.stderr
        spec = result.stdout.strip()
    ours, theirs = (canonical_weights(load_backbone(text, device="cpu")) for text in (tiny_vit, spec))
    assert ours.keys() == theirs.keys()
    assert all(bit_equal(ours[name], theirs[name]) for name in ours)


def test_notes_say_what_is_not_the_same(tiny_vit: str, tmp_path: Path) -> None:
    arguments = ["convert", tiny_vit, str(tmp_path / "x.npz"), "--to", "npz-bigvision"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "note: the computation differs: gelu erf became tanh" in result.stderr
    assert "note: CLS has no row in the position embedding there" in result.stderr
    with pytest.raises(UsageError, match="exists: choose another name, or --overwrite"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert CliRunner().invoke(app, [*arguments, "--overwrite"], catch_exceptions=False).exit_code == 0


def test_a_mistake_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitbench", "convert", "jax:no.npz", "x.onnx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: 'x.onnx' names no known format")
    assert done.stderr.count("\n") == 1


def test_help_has_examples() -> None:
    result = CliRunner().invoke(app, ["convert", "--help"])
    assert result.exit_code == 0
    assert "--keep-pooler" in result.output
    assert "vitbench convert jax:" in result.output

"""`vitbench parity` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.conftest import ImageFolderMaker
from vitbench.cli.main import app
from vitbench.errors import UsageError, VitbenchError


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["parity", *arguments])


def test_help_has_an_example() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "vitbench parity timm:" in result.stdout


def test_identical_is_status_0_and_the_last_line_is_the_verdict(tiny_vit: str) -> None:
    result = invoke(tiny_vit, tiny_vit)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].strip() == "identical"
    assert "uniform noise (seed 0)" in result.stdout


def test_every_other_model_is_compared_with_the_first(tiny_vit: str) -> None:
    result = invoke(tiny_vit, tiny_vit, f"{tiny_vit},model.act_layer=gelu_tanh", "pixels", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["reference"] == tiny_vit
    assert [pair["verdict"] for pair in report["pairs"]] == [
        "identical",
        "same weights, different configuration (gelu)",
        "different architectures (VisionTransformer against pixels)",
    ]
    assert {item["name"] for item in report["pairs"][1]["activations"]["layers"]} == {"@0", "@1", "@2"}


def test_images_of_a_folder_or_a_task_and_scores(tiny_vit: str, image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    other = f"{tiny_vit},model.act_layer=gelu_tanh"
    result = invoke(tiny_vit, other, "--images", str(image_folder()), "--count", "3")
    assert result.exit_code == 1
    assert "activations on 3 images of " in result.stdout
    options = (
        "--tasks",
        "builtin/digits",
        "--shots",
        "1,2",
        "--seeds",
        "1",
        "--limit",
        "20",
        "--out",
        str(tmp_path / "out"),
    )
    result = invoke(tiny_vit, other, "--task", "builtin/digits", "--count", "2", *options)
    assert "activations on 2 images of builtin/digits" in result.stdout
    assert "few-shot accuracy" in result.stdout
    assert len(list((tmp_path / "out").rglob("*.json"))) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "two specs or more"),
        (["pixels", "--images", "nowhere"], "there is no folder nowhere"),
        (["pixels", "--images", ".", "--task", "cifar10"], "give one of them"),
        (["pixels", "--tasks", "builtin/digits", "--shots", "none"], "--shots takes whole numbers"),
        (["pixels", "--tolerance", "0"], "tolerance"),
        (["timm:vit_tinny_patch16_224"], "did you mean"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    result = invoke("pixels", *arguments)
    assert isinstance(result.exception, VitbenchError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_folder_without_images_is_said_to_have_none(tmp_path: Path) -> None:
    result = invoke("pixels", "pixels", "--images", str(tmp_path))
    assert isinstance(result.exception, UsageError)
    assert "no images" in str(result.exception)

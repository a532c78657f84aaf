from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.errors import UsageError
from vitbench.execution.config import make_config


def test_lists_take_commas_and_repeats() -> None:
    config = make_config({"tasks": ["cifar10,oxford_pets", "digits"], "representations": "cls,gap"})
    assert config.tasks == ("cifar10", "oxford_pets", "digits")
    assert config.representations == ("cls", "gap")


def test_a_comma_in_a_backbone_spec_belongs_to_its_options() -> None:
    config = make_config(
        {
            "backbones": [
                "timm:vit_tiny,checkpoint=a.pt,resolution=64,pixels,resolution=8",
                "hf:org/name@main,timm:resnet18",
                "timm:vit,preprocess=resize(256,bicubic)|center_crop(224)|normalize(0.5,0.5)",
            ]
        }
    )
    assert config.backbones == (
        "timm:vit_tiny,checkpoint=a.pt,resolution=64",
        "pixels,resolution=8",
        "hf:org/name@main",
        "timm:resnet18",
        "timm:vit,preprocess=resize(256,bicubic)|center_crop(224)|normalize(0.5,0.5)",
    )


def test_the_command_line_overrides_the_file_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("tasks: [cifar10]\noptions: {shots: [1, 5], seeds: 2}\nlimit: 7\n")
    config = make_config({"limit": 9, "options": {"seeds": "3"}, "out": None}, file)
    assert (config.tasks, config.limit, config.options) == (("cifar10",), 9, {"shots": [1, 5], "seeds": "3"})


def test_the_resolved_configuration_makes_the_same_run(tmp_path: Path) -> None:
    config = make_config({"tasks": "digits", "options": {"shots": "1,5"}, "out": tmp_path, "batch_size": "auto"})
    saved = config.save()
    assert saved.parent == tmp_path / "configs"
    assert make_config({}, saved) == config
    assert config.save() == saved


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taks: [a]", r"run.yaml: unknown field 'taks'; did you mean 'tasks'\?"),
        ("limit: 0", r"run.yaml: limit: input should be greater than or equal to 1"),
        ("on_existing: skipp", r"run.yaml: on-existing: input should be 'skip', 'rerun' or 'error'"),
        ("- a", r"run.yaml: a run's configuration is a mapping"),
        ("a: [", r"run.yaml cannot be read as YAML"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        make_config({}, file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_offers_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{}")
    with pytest.raises(UsageError, match=r"there is no file .*rum.yaml; did you mean run.yaml\?"):
        make_config({}, tmp_path / "rum.yaml")
    with pytest.raises(UsageError, match="dtype: input should be 'auto', 'float32', 'bfloat16' or 'float16'"):
        make_config({"dtype": "int8"})

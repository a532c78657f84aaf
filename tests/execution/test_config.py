from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.errors import UsageError
from vitbench.execution.config import join_specs, make_config, split_list


def test_a_command_lines_lists_take_commas_and_repeats(tmp_path: Path) -> None:
    assert split_list("10,25") == ["10", "25"]
    assert split_list(["cifar10,oxford_pets", "digits", " "]) == ["cifar10", "oxford_pets", "digits"]
    folder = tmp_path / "shoes, size=42"
    folder.mkdir()
    assert split_list([f"imagefolder:{folder}", "a,b"]) == [f"imagefolder:{folder}", "a", "b"]
    assert split_list([f"digits,imagefolder:{tmp_path}"]) == ["digits", f"imagefolder:{tmp_path}"]


def test_a_list_in_python_or_yaml_is_taken_as_it_is_and_a_text_is_split() -> None:
    config = make_config({"tasks": ["imagefolder:./a,b"], "representations": "cls,gap"})
    assert config.tasks == ("imagefolder:./a,b",)
    assert config.representations == ("cls", "gap")


def test_a_comma_in_a_backbone_spec_belongs_to_its_options() -> None:
    specs = [
        "timm:vit_tiny,checkpoint=a.pt,resolution=64,pixels,resolution=8",
        "hf:org/name@main,timm:resnet18",
        "timm:vit,preprocess=resize(256,bicubic)|center_crop(224)|normalize(0.5,0.5)",
    ]
    assert join_specs(specs) == [
        "timm:vit_tiny,checkpoint=a.pt,resolution=64",
        "pixels,resolution=8",
        "hf:org/name@main",
        "timm:resnet18",
        "timm:vit,preprocess=resize(256,bicubic)|center_crop(224)|normalize(0.5,0.5)",
    ]
    assert make_config({"backbones": specs[1]}).backbones == ("hf:org/name@main", "timm:resnet18")


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
        ("limit: 3\ntaks: [a]", r"run.yaml:2: unknown field 'taks'; did you mean 'tasks'\?"),
        ("shots: [1]", r"run.yaml:1: unknown field 'shots': .* in a file write it below `options:`"),
        ("limit: 0", r"run.yaml:1: limit must be at least 1, got 0"),
        ("batch_size: huge", r"run.yaml:1: batch-size takes a whole number, got 'huge'"),
        ("on_existing: skipp", r"run.yaml:1: on-existing takes skip, rerun, error, got 'skipp'; did you mean skip\?"),
        ("tasks: []", r"run.yaml:1: tasks is empty"),
        (
            "gpus_per_job: .inf",
            r"run.yaml:1: gpus-per-job is a part of one GPU, such as 0.5, or a whole number, not inf",
        ),
        (
            "gpus_per_job: 1.5",
            r"run.yaml:1: gpus-per-job is a part of one GPU, such as 0.5, or a whole number, not 1.5",
        ),
        ("tasks: [digits, '']", r"run.yaml:1: tasks has an empty name"),
        ("options: [shots]", r"run.yaml: options: a mapping of the protocol's options"),
        ("limit: 3\nlimit: 4", r"run.yaml:2: the field 'limit' is given twice"),
        ("- a", r"run.yaml: a run's configuration is a mapping"),
        ("a: [", r"run.yaml:1: not valid YAML: "),
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
    with pytest.raises(UsageError, match="dtype takes auto, float32, bfloat16, float16, got 'int8'"):
        make_config({"dtype": "int8"})


def test_a_suites_preprocessing_belongs_to_its_own_protocol() -> None:
    assert make_config({"suite": "vtab"}).preprocess == "vtab"
    tuned = make_config({"suite": "vtab", "protocol": "finetune", "options": {"recipe": "paper"}})
    assert (tuned.preprocess, tuned.tasks) == ("auto", ("vtab",))

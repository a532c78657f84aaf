"""The protocol `finetune`: what is in its identity, what `--tune` looks at, and what comes of a cell."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ImageFolderMaker
from tests.training.test_loop import stopping_at
from vitbench.backbones.base import Backbone
from vitbench.backbones.load import load_backbone
from vitbench.errors import StoppedError, StoreError, UsageError
from vitbench.execution.config import make_config
from vitbench.execution.job import load_for, prepare
from vitbench.protocols import finetune
from vitbench.protocols.base import Cell, Outcome
from vitbench.protocols.finetune import FineTune
from vitbench.records.identity import key
from vitbench.records.store import ResultStore
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import Split, Task
from vitbench.tasks.transforms import parse
from vitbench.training.loop import DivergedError
from vitbench.training.options import TrainingOptions
from vitbench.training.trainee import Trainee

PREPROCESSING = parse("resize(32x32,bilinear)|normalize(0.5,0.5)")
SHORT = {"recipe": "light", "steps": "6", "warmup_steps": "2", "batch_size": "4"}
TUNED = SHORT | {"tune": True, "dev_fraction": "0.34", "grid.learning_rate": "0.001,0.3", "batch_size": "6"}


@pytest.fixture
def backbone(tiny_vit: str) -> Backbone:
    return load_backbone(tiny_vit, device="cpu")


@pytest.fixture
def task(image_folder: ImageFolderMaker) -> Task:
    return load_task(f"imagefolder:{image_folder()}")


def carry_out(
    protocol: FineTune,
    backbone: Backbone,
    task: Task,
    folder: Path,
    train_split: Split | None = None,
    test_split: Split | None = None,
    **options: Any,
) -> tuple[Outcome, Trainee]:
    return protocol.carry_out(
        backbone,
        train_split or task.train,
        test_split or task.test,
        np.arange(len(task.test)),
        PREPROCESSING,
        "cls",
        task.num_classes,
        protocol.cells()[0],
        folder,
        "identity",
        TrainingOptions(**{"workers": 0, **options}),
    )


def test_the_whole_recipe_is_among_the_parameters_and_texts_are_not() -> None:
    found = FineTune.from_options(SHORT).parameters()
    assert found["steps"] == 6
    assert found["crop_area"] == [0.35, 1.0]
    assert not {"name", "description", "tasks", "grid", "dev_fraction", "seeds"} & set(found)
    assert "grid" in FineTune.from_options(TUNED).parameters()


CHANGES = {
    "resolution": "64",
    "positions": "jax",
    "from_scratch": "true",
    "head_only": "true",
    "head_init": "trunc_normal",
    "dropout": "0.1",
    "head_dropout": "0.1",
    "drop_path": "0.1",
    "lora.rank": "2",
    "crop": "none",
    "crop_area": "[0.2, 1]",
    "crop_aspect": "[0.5, 2]",
    "flip": "false",
    "randaugment": "rand-m9-n2",
    "erase": "0.1",
    "mixup": "0.1",
    "cutmix": "0.1",
    "label_smoothing": "0.1",
    "optimizer": "adamw",
    "learning_rate": "0.02",
    "momentum": "0.8",
    "momentum_dtype": "bfloat16",
    "weight_decay": "0.1",
    "clip_norm": "2",
    "batch_size": "5",
    "steps": "7",
    "warmup_steps": "1",
    "schedule": "linear",
    "final_learning_rate": "0.001",
    "layer_decay": "0.9",
    "ema_decay": "0.9",
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_is_another_identity(name: str) -> None:
    plain = FineTune.from_options(SHORT).parameters()
    assert FineTune.from_options(SHORT | {name: CHANGES[name]}).parameters() != plain


def test_every_field_was_tried() -> None:
    from vitbench.training.recipe import Recipe

    crops = {"resize": {"crop": "resmall"}, "pad": {"crop": "pad"}}
    steps = {"decay_at": {"schedule": "step"}, "decay_rate": {"schedule": "step"}}
    values = {"resize": "50", "pad": "3", "decay_at": "[0.5]", "decay_rate": "0.5"}
    for name, besides in (crops | steps).items():
        with_it = FineTune.from_options(SHORT | besides | {name: values[name]}).parameters()
        assert with_it != FineTune.from_options(SHORT | besides).parameters()
    for name, value in (("grid.steps", "9"), ("dev_fraction", "0.5")):
        assert FineTune.from_options(TUNED | {name: value}).parameters() != FineTune.from_options(TUNED).parameters()
    tried = {name.partition(".")[0] for name in CHANGES} | {*crops, *steps, "grid", "dev_fraction"}
    # Preprocessing is a field of the identity by itself, as it was really done.
    assert tried | {"name", "description", "tasks", "preprocess"} == set(Recipe.model_fields)


def keys(spec: str, task: Task, out: Path, options: Mapping[str, Any], **fields: Any) -> list[str]:
    values = {"backbones": [spec], "protocol": "finetune", "options": dict(options), "out": out, "device": "cpu"}
    config = make_config(values | fields)
    protocol = FineTune.from_options(config.options)
    job = prepare(config, load_for(spec, config, protocol), task, protocol, ResultStore(out))
    return [key(identity) for identity in job.identities.values()]


def test_how_it_is_gone_about_is_no_part_of_the_identity(tiny_vit: str, task: Task, tmp_path: Path) -> None:
    plain = keys(tiny_vit, task, tmp_path, SHORT)
    for fields in (
        {"batch_size": 3},
        {"workers": 2},
        {"checkpoint_steps": 3, "checkpoint_minutes": 0.5, "keep_checkpoints": 5},
        {"trackers": ["none"]},
        {"save_models": False},
        {"out": tmp_path / "other"},
    ):
        assert keys(tiny_vit, task, **({"out": tmp_path, "options": SHORT} | fields)) == plain  # type: ignore[arg-type]
    seeds = keys(tiny_vit, task, tmp_path, SHORT | {"seeds": "0,1"})
    assert plain[0] in seeds
    assert len(set(seeds)) == 2
    for options, fields in (
        (SHORT | {"learning_rate": "0.02"}, {}),
        (TUNED, {}),
        (SHORT, {"preprocess": "vit_jax"}),
        (SHORT | {"preprocess": "vit_jax"}, {}),
        (SHORT, {"dtype": "bfloat16"}),
        (SHORT, {"representations": ["gap"]}),
        (SHORT, {"limit": 3}),
    ):
        assert keys(tiny_vit, task, tmp_path, options, **fields) != plain


def test_labels() -> None:
    assert FineTune.from_options(SHORT).label() == "light · lr 0.01 · 6 steps"
    assert FineTune.from_options(TUNED).label() == "light · tuned over 2"
    assert FineTune.from_options({"recipe": "paper"}).label() == "paper · lr 0.01 · 2,500 steps"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shots": [1]}, "learns from the whole train split, and has no shots"),
        ({"l2": "loo"}, "has no l2"),
        ({"recipe": "ligt"}, "unknown recipe 'ligt'; did you mean 'light'"),
        ({"sped": "1"}, "a recipe has no field 'sped'"),
        ({"recipe": {"name": "x", "stps": 3}}, "recipe 'x': a recipe has no field 'stps'; did you mean steps"),
        ({"steps": "0"}, "recipe 'light' with steps: steps must be at least 1, got 0"),
        ({"seeds": "-1"}, "seeds must be whole numbers from 0"),
    ],
)
def test_an_option_that_cannot_be_meant(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        FineTune.from_options(options)


def test_what_does_not_fit_the_task_is_told_before_anything_is_done(backbone: Backbone, task: Task) -> None:
    with pytest.raises(UsageError, match="batch_size 32 is larger than split 'train'"):
        FineTune.from_options({}).bind(backbone, task)
    with pytest.raises(UsageError, match=r"batch_size 16 is larger than split 'train, 66% of .* which has 11 images"):
        FineTune.from_options(TUNED | {"batch_size": "16"}).bind(backbone, task)
    with pytest.raises(UsageError, match="--tune: the grid of recipe 'light' holds one recipe for imagefolder/shoes"):
        FineTune.from_options(TUNED | {"grid.learning_rate": "0.1"}).bind(backbone, task)
    with pytest.raises(UsageError, match="is no dev split with every class in it"):
        FineTune.from_options(TUNED | {"dev_fraction": "0.01"}).bind(backbone, task)
    with pytest.raises(UsageError, match=r"warmup_steps \(2\) must be fewer than steps \(1\)"):
        FineTune.from_options(TUNED | {"grid.steps": "1"}).bind(backbone, task)
    with pytest.raises(UsageError, match=r"the head of backbone .* names no classes"):
        FineTune.from_options(SHORT | {"head_init": "checkpoint"}).bind(backbone, task)


def test_the_dev_split_is_a_share_of_every_class(backbone: Backbone, task: Task) -> None:
    bound = FineTune.from_options(TUNED).bind(backbone, task)
    assert bound.dev is not None
    fit, dev = bound.dev
    assert np.bincount(dev.labels).tolist() == [2, 3, 2] or sum(np.bincount(dev.labels)) == 7
    assert len(fit) + len(dev) == len(task.train)
    where = [{part.where(row) for row in range(len(part))} for part in (fit, dev)]
    assert not where[0] & where[1]
    again = FineTune.from_options(TUNED).bind(backbone, task)
    assert again.parameters() == bound.parameters()
    assert {"fit_fingerprint", "dev_fingerprint"} <= set(bound.parameters())


def test_a_cell(backbone: Backbone, task: Task, tmp_path: Path) -> None:
    protocol = FineTune.from_options(SHORT | {"seeds": "7,9"}).bind(backbone, task)
    assert protocol.cells() == [Cell(0, 7), Cell(0, 9)]
    outcome, trainee = carry_out(protocol, backbone, task, tmp_path)
    assert outcome.ranking.shape == (12, 3)
    assert (outcome.n_support, outcome.n_test) == (18, 12)
    assert {"recipe", "learning_rate", "steps", "accuracy_before", "train_loss", "images_at_once"} <= set(
        outcome.details
    )
    json.dumps(outcome.details, allow_nan=False)
    assert outcome.confidence is not None
    assert ((outcome.confidence >= 1 / 3 - 1e-6) & (outcome.confidence <= 1)).all()
    again, other = carry_out(protocol, backbone, task, tmp_path / "again")
    assert np.array_equal(outcome.ranking, again.ranking)
    assert (trainee.head.weight == other.head.weight).all()


def test_more_classes_in_test_than_in_train(backbone: Backbone, task: Task, tmp_path: Path) -> None:
    some = task.train.take(np.flatnonzero(task.train.labels < 2), "some")
    protocol = FineTune.from_options(SHORT).bind(backbone, task)
    notes = protocol.check(some.labels, task.num_classes)
    assert len(notes) == 1
    assert "1 of" in notes[0]
    outcome, trainee = carry_out(protocol, backbone, task, tmp_path, train_split=some)
    assert outcome.warnings == tuple(notes)
    assert (outcome.n_support, outcome.n_test) == (12, 12)
    assert trainee.head.out_features == 3


def test_tune_chooses_on_dev_and_learns_from_all(
    backbone: Backbone, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[float, int]] = []
    original = finetune.train

    def noting(trainee: Trainee, split: Any, preprocessing: Any, recipe: Any, **given: Any) -> Any:
        trained.append((recipe.learning_rate, len(split)))
        return original(trainee, split, preprocessing, recipe, **given)

    monkeypatch.setattr(finetune, "train", noting)
    protocol = FineTune.from_options(TUNED | {"steps": "20", "crop": "none"}).bind(backbone, task)
    outcome, _ = carry_out(protocol, backbone, task, tmp_path)
    chosen = outcome.details["learning_rate"]
    assert trained == [(0.001, 11), (0.3, 11), (chosen, 18)]
    assert outcome.n_support == 18
    assert outcome.details["n_dev"] == 7
    assert outcome.details["trials"].startswith("lr0.001-steps20: ")
    # With other labels of the test images the choice, and what is predicted, are the same.
    other = replace(task.test, labels=np.roll(task.test.labels, 5))
    again, _ = carry_out(protocol, backbone, task, tmp_path / "other", test_split=other)
    assert np.array_equal(again.ranking, outcome.ranking)
    told = {name: value for name, value in outcome.details.items() if name != "accuracy_before"}
    assert {name: value for name, value in again.details.items() if name != "accuracy_before"} == told


def test_trials_that_are_done_are_not_done_again(backbone: Backbone, task: Task, tmp_path: Path) -> None:
    protocol = FineTune.from_options(TUNED).bind(backbone, task)
    whole, trainee = carry_out(protocol, backbone, task, tmp_path / "whole")
    with pytest.raises(StoppedError):
        carry_out(protocol, backbone, task, tmp_path / "parts", **stopping_at(9, signal.SIGTERM))
    done = sorted(path.name for path in (tmp_path / "parts" / "trials").iterdir())
    assert done == ["lr0.001-steps6.result", "lr0.3-steps6"], "the first is done, the second on its way"
    told: list[str] = []
    steps: list[int] = []
    again, other = carry_out(
        protocol,
        backbone,
        task,
        tmp_path / "parts",
        message=told.append,
        progress=lambda count, text: steps.append(count),
    )
    assert told[:2] == ["tuning: learning rate 0.3, 6 steps", "going on from the checkpoint of step 4 of 6"]
    assert sum(steps) == 18, "the bar is full at the end"
    assert again.details == whole.details
    assert np.array_equal(again.ranking, whole.ranking)
    assert (trainee.head.weight == other.head.weight).all()
    (tmp_path / "parts" / "trials" / "lr0.001-steps6.result").write_text('{"identity": "x", "dev_accuracy": 1}')
    with pytest.raises(StoreError, match="is a trial of another training"):
        carry_out(protocol, backbone, task, tmp_path / "parts")


def test_a_trial_that_diverges_is_not_chosen(backbone: Backbone, task: Task, tmp_path: Path) -> None:
    fields = TUNED | {"grid.learning_rate": "0.01,1e6", "clip_norm": "null", "warmup_steps": "0", "steps": "8"}
    told: list[str] = []
    protocol = FineTune.from_options(fields).bind(backbone, task)
    outcome, _ = carry_out(protocol, backbone, task, tmp_path, message=told.append)
    assert outcome.details["learning_rate"] == 0.01
    assert outcome.details["trials"].endswith("; lr1000000-steps8: diverged")
    assert any(line.startswith("tuning: training diverged") for line in told)
    protocol = FineTune.from_options(fields | {"grid.learning_rate": "1e5,1e6"}).bind(backbone, task)
    with pytest.raises(DivergedError, match=r"--tune: every trial diverged \(lr100000-steps8, lr1000000-steps8\)"):
        carry_out(protocol, backbone, task, tmp_path / "all")


def test_options_of_a_record_give_the_same_protocol() -> None:
    for options in (SHORT, TUNED, {"recipe": "lora"}, {"recipe": "linear_probe"}, {"recipe": "from_scratch"}):
        protocol = FineTune.from_options(options | {"seeds": [3]})
        again = FineTune.from_options(
            FineTune.options_of(protocol.parameters(), {"recipe": protocol.recipe.name}, Cell(0, 3))
        )
        assert again.parameters() == protocol.parameters()
        assert again.label() == protocol.label()
        assert again.cells() == protocol.cells()


def test_a_spec_and_a_recipe_that_disagree_on_position_embeddings(backbone: Backbone, task: Task) -> None:
    asked = backbone
    asked.spec = replace(backbone.spec, positions="jax")
    with pytest.raises(UsageError, match="asks for positions=jax, and recipe 'light' for library: --set positions=jax"):
        FineTune.from_options(SHORT).bind(asked, task)
    assert FineTune.from_options(SHORT | {"positions": "jax"}).bind(asked, task).recipe.positions == "jax"


def test_what_is_saved_while_the_loss_is_hopeless_pushes_out_no_good_checkpoint(
    backbone: Backbone, task: Task, tmp_path: Path
) -> None:
    fields = SHORT | {
        "steps": "60",
        "warmup_steps": "50",
        "learning_rate": "1e5",
        "clip_norm": "null",
        "momentum": "0.99",
    }
    protocol = FineTune.from_options(fields).bind(backbone, task)
    with pytest.raises(DivergedError, match="the last good checkpoint is"):
        carry_out(protocol, backbone, task, tmp_path, every_steps=1, keep=2)
    assert list(tmp_path.rglob("step-*.safetensors"))

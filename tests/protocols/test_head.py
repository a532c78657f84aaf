"""The protocol `head`: the checkpoint's own classifier, against logits worked out by hand, and end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.backbones.classifier import Classifier
from vitbench.backbones.load import load_backbone
from vitbench.errors import DataError, UsageError
from vitbench.features.featureset import FeatureSet, IntArray, LazyRepresentations
from vitbench.protocols import PROTOCOLS, head
from vitbench.protocols.base import Outcome
from vitbench.protocols.head import Head
from vitbench.protocols.label_mapping import LabelMapping
from vitbench.reporting.leaderboard import leaderboards
from vitbench.tasks.catalog import load_task

CLASSES = ("boot", "clog", "loafer")


def bound(
    groups: tuple[tuple[int, ...], ...], weight: Tensor, bias: Tensor, how: str = "by name", **options: Any
) -> Head:
    return Head(**options, classifier=Classifier("cls", weight, bias), mapping=LabelMapping(groups, how))


def features(x: Tensor, labels: IntArray, rows: IntArray | None = None) -> FeatureSet:
    rows = np.arange(len(labels)) if rows is None else rows
    return FeatureSet(labels, rows, {"cls": x})


def outcome_of(head: Head, test: FeatureSet) -> Outcome:
    train = FeatureSet(np.array([0, 1]), np.empty(0, np.int64), {"cls": torch.empty(0, 8)})
    assert head.mapping is not None
    (found,) = head.evaluate(train, test, "cls", len(head.mapping.groups), head.cells())
    return found


@pytest.fixture
def layer() -> tuple[Tensor, Tensor, Tensor]:
    """Weight `[9, 8]`, bias `[9]`, features `[40, 8]`."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((9, 8), (9,), (40, 8)))  # type: ignore[return-value]


def test_the_ranking_is_that_of_the_logits(layer: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, bias, x = layer
    logits = (x.double() @ weight.T.double() + bias.double()).numpy()
    order = np.random.default_rng(0).permutation(9)
    found = outcome_of(bound(tuple((int(k),) for k in order), weight, bias), features(x, np.arange(40) % 9))
    assert found.ranking.tolist() == np.argsort(-logits[:, order], axis=1)[:, :5].tolist()
    assert found.confidence is not None
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.confidence, softmax.max(axis=1), rtol=1e-5)
    assert (found.n_support, found.n_test, found.rows) == (0, 40, None)
    assert found.details["accuracy_all_classes"] == np.mean(order[found.predictions] == order[np.arange(40) % 9])


def test_classes_that_stand_for_one_add_their_probabilities(layer: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, bias, x = layer
    groups = ((0, 3, 4), (1,), (7, 8))
    logits = (x.double() @ weight.T.double() + bias.double()).numpy()
    likely = np.stack([np.exp(logits[:, list(group)]).sum(axis=1) for group in groups], axis=1)
    labels = np.arange(40) % 3
    found = outcome_of(bound(groups, weight, bias), features(x, labels))
    assert found.ranking.tolist() == np.argsort(-likely, axis=1).tolist()
    np.testing.assert_allclose(found.confidence, likely.max(axis=1) / likely.sum(axis=1), rtol=1e-5)
    best = logits.argmax(axis=1)
    owner = np.array([0, 1, -1, 0, 0, -1, -1, 2, 2])
    assert found.details["accuracy_all_classes"] == np.mean(owner[best] == labels)


def test_images_of_classes_that_are_lacking_are_left_out(layer: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, bias, x = layer
    groups = ((2,), (), (5,), (), (1,), ())
    labels, rows = np.arange(60) % 6, np.arange(10, 50)
    head = bound(groups, weight, bias, partial=True)
    found = outcome_of(head, features(x, labels, rows))
    known = np.isin(labels[rows], (0, 2, 4))
    assert found.rows is not None
    assert found.rows.tolist() == rows[known].tolist()
    assert found.n_test == known.sum() == 20
    expected = np.array([0, 2, 4])[(x[torch.from_numpy(known)] @ weight.T + bias)[:, [2, 5, 1]].argmax(dim=1).numpy()]
    assert found.predictions.tolist() == expected.tolist()
    assert set(np.unique(found.ranking[:, 3:])) == {-1}
    assert found.warnings == ("the checkpoint lacks 3 of 6 classes: their 20 test images are left out",)
    assert (head.choices(6), head.label()) == (3, "the checkpoint's own classifier, images of 3 of 6 classes")
    assert head.parameters() != bound(((2,), (1,), (5,), (), (0,), ()), weight, bias, partial=True).parameters()


def test_images_are_read_a_block_at_a_time(
    layer: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias, x = layer
    labels, rows = np.arange(40) % 6, np.arange(40)
    protocol = bound(((2,), (), (5,), (), (1,), ()), weight, bias, partial=True)
    monkeypatch.setattr(head, "_BLOCK", 7 * (9 + 6))
    asked: list[IntArray] = []

    def read(_: str, some: IntArray) -> Tensor:
        asked.append(some)
        return x[torch.from_numpy(some)]

    lazy = LazyRepresentations(["cls"], rows, read, rows[::-1])
    found = outcome_of(protocol, FeatureSet(labels, rows, lazy))
    expected = outcome_of(protocol, features(x, labels))
    assert [len(some) for some in asked] == [40, 7, 7, 6], "all are checked"
    assert np.array_equal(found.ranking, expected.ranking)
    assert np.array_equal(found.confidence, expected.confidence)
    x[3, 0] = torch.nan
    with pytest.raises(DataError, match="1 of 40 test rows"):
        outcome_of(protocol, FeatureSet(labels, rows, lazy))


def test_no_image_of_a_known_class(layer: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, bias, x = layer
    with pytest.raises(DataError, match="none of the 40 test images"):
        outcome_of(bound(((1,), ()), weight, bias, partial=True), features(x, np.ones(40, np.int64)))


def test_an_order_that_is_another_is_told(layer: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, bias, x = layer
    groups = tuple((k,) for k in range(9))
    right = (x @ weight.T + bias).argmax(dim=1).numpy()
    good = outcome_of(bound(groups, weight, bias, "by index"), features(x, right))
    assert good.warnings == ("the checkpoint's classes were matched with the task's by index: names are not known",)
    assert outcome_of(bound(groups, weight, bias, "by index", labels="index"), features(x, right)).warnings == ()
    wrong = outcome_of(bound(groups, weight, bias, "by index", labels="index"), features(x, (right + 1) % 9))
    assert "no better than a guess" in wrong.warnings[0]


def test_identity_depends_on_the_classifier_and_the_mapping(layer: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, bias, _ = layer
    one = bound(((0,), (1,)), weight, bias)
    assert one.fingerprints() == bound(((0,), (1,)), weight.clone(), bias, "by index").fingerprints()
    assert one.fingerprints() != bound(((1,), (0,)), weight, bias).fingerprints()
    assert one.fingerprints() != bound(((0,), (1,)), weight + 1, bias).fingerprints()
    assert one.parameters() == bound(((1,), (0,)), weight + 1, bias).parameters() == Head().parameters()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "name"}, "did you mean 'labels'"),
        ({"shots": 5}, "learns nothing"),
        ({"labels": "indx"}, "did you mean index"),
        ({"partial": "perhaps"}, "true or false"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PROTOCOLS.load("head").from_options(options)


def test_it_wants_to_be_bound(layer: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, bias, x = layer
    with pytest.raises(UsageError, match="bind"):
        list(
            Head().evaluate(
                features(x, np.zeros(40, np.int64)), features(x, np.zeros(40, np.int64)), "cls", 2, Head().cells()
            )
        )
    head = bound(((0,), (1,)), weight, bias)
    with pytest.raises(UsageError, match="reads 'cls'"):
        list(
            head.evaluate(
                features(x, np.zeros(40, np.int64)), features(x, np.zeros(40, np.int64)), "gap", 2, head.cells()
            )
        )


@pytest.fixture
def saved(tiny_vit: str, tmp_path: Path) -> str:
    """A tiny ViT with a classifier on `gap` that tells the three colours of `image_folder` apart, and a fourth class."""
    backbone = load_backbone(tiny_vit, device="cpu")
    weight = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    return backbone.save(
        tmp_path / "model", Classifier("gap", weight, torch.zeros(4), ("Loafer", "car", "CLOG", "boot"))
    )


@pytest.fixture
def shoes(image_folder: ImageFolderMaker) -> str:
    return f"imagefolder:{image_folder(classes=CLASSES)}"


def test_a_run(saved: str, shoes: str, tmp_path: Path, encoded: list[int]) -> None:
    frame = vitbench.run(saved, shoes, protocol="head", out=tmp_path / "runs")
    assert len(frame) == 1
    assert sum(encoded) == 12  # the test images, and no train image
    row = frame.iloc[0]
    assert (row["representation"], row["shot"], row["n_support"], row["n_test"]) == ("gap", 0, 0, 12)
    assert (row["classes_known"], row["checkpoint_classes"], row["labels"]) == (3, 4, "by name")
    backbone, task = load_backbone(saved, device="cpu"), load_task(shoes)
    classifier = backbone.classifier()
    assert classifier is not None
    from vitbench.features.load import preprocessing_of

    pixels = preprocessing_of(backbone)([task.test.image(index) for index in range(12)])
    logits = backbone.encode(pixels, "gap")["gap"] @ classifier.weight.T
    expected = logits[:, [3, 2, 0]].argmax(dim=1).numpy()
    assert row["accuracy"] == pytest.approx(np.mean(expected == task.test.labels))
    encoded.clear()
    vitbench.run(saved, shoes, protocol="head", out=tmp_path / "runs")
    assert encoded == []
    (board,) = leaderboards(vitbench.load_results(tmp_path / "runs"))
    assert board.title == "head · the checkpoint's own classifier · no training"


def test_two_checkpoints_share_a_table_and_other_weights_of_the_head_are_another_record(
    saved: str, shoes: str, tmp_path: Path
) -> None:
    vitbench.run(saved, shoes, protocol="head", out=tmp_path / "runs")
    backbone = load_backbone(saved, device="cpu")
    other = Classifier("gap", torch.ones(3, 24), torch.zeros(3), CLASSES)
    second = backbone.save(tmp_path / "second", other)
    vitbench.run(second, shoes, protocol="head", out=tmp_path / "runs")
    frame = vitbench.load_results(tmp_path / "runs")
    assert len(frame) == 2
    assert frame["weights"].nunique() == 1  # the trunk is the same
    assert len(leaderboards(frame)) == 1


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("pixels", {}, "backbone 'pixels' has none that can be used"),
        ("tiny", {}, "7 and 3"),
        ("saved", {"labels": "file"}, "did you mean 'boot'"),
    ],
)
def test_one_line_where_it_cannot_be(
    backbone: str, options: dict[str, str], message: str, saved: str, tiny_vit: str, shoes: str, tmp_path: Path
) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"boot": "bot"}))
    given = {"labels": str(tmp_path / "labels.json")} if options else {}
    spec = {"pixels": "pixels", "tiny": tiny_vit, "saved": saved}[backbone]
    with pytest.raises(UsageError, match=message) as caught:
        vitbench.run(spec, shoes, protocol="head", out=tmp_path / "runs", options=given)
    assert "\n" not in str(caught.value)


def test_a_class_that_the_checkpoint_lacks(saved: str, image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    task = f"imagefolder:{image_folder(name='more', classes=('boot', 'clogs', 'loafer'))}"
    with pytest.raises(UsageError, match=r"lacks 1 of the 3 classes .*: clogs \(nearest to clogs: CLOG\)"):
        vitbench.run(saved, task, protocol="head", out=tmp_path / "runs")
    frame = vitbench.run(saved, task, protocol="head", out=tmp_path / "runs", options={"partial": True})
    assert (frame["n_test"].item(), frame["chance"].item()) == (8, 0.5)

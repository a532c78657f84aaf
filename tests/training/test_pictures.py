from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitbench.errors import StoreError
from vitbench.training.history import Entry
from vitbench.training.pictures import (
    ANNOTATED,
    NAMED,
    SMOOTHED,
    confusion_counts,
    confusion_figure,
    learning_curve,
    save_confusion,
    save_learning_curve,
)

COUNTS = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 199]])
NAMES = ["boot", "clog", 'a $nasty$, "quoted" name']


def history(count: int, **changes: float) -> list[Entry]:
    values = {"loss": 1.0, "accuracy": 0.25, "learning_rate": 0.01, "images_per_second": 9.0, "seconds": 1.0} | changes
    return [Entry(step=10 * number, **values) for number in range(1, count + 1)]


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_learning_curve_shows_what_the_history_holds() -> None:
    entries = [entry.model_copy(update={"loss": 3.0 / entry.step}) for entry in history(4)]
    loss, accuracy, rate = learning_curve(entries, "a run").axes
    assert [panel.get_ylabel() for panel in (loss, accuracy, rate)] == [
        "training loss",
        "training accuracy",
        "learning rate",
    ]
    for panel, values in ((loss, [0.3, 0.15, 0.1, 0.075]), (accuracy, [0.25] * 4), (rate, [0.01] * 4)):
        (line,) = panel.lines
        assert line.get_xdata().tolist() == [10, 20, 30, 40]
        assert line.get_ydata().tolist() == pytest.approx(values)
        assert panel.get_ylim()[0] == 0
    assert loss.get_title(loc="left") == "a run"


def test_many_points_are_faint_below_their_running_mean() -> None:
    entries = history(SMOOTHED + 1)
    entries = [entry.model_copy(update={"loss": float(number % 2)}) for number, entry in enumerate(entries)]
    loss = learning_curve(entries, "a run").axes[0]
    points, mean = loss.lines
    assert points.get_alpha() < 0.5
    assert sorted(set(points.get_ydata().tolist())) == [0.0, 1.0]
    assert mean.get_ydata().tolist()[1:-1] == pytest.approx([0.5] * (SMOOTHED - 1)), "every two neighbours"
    assert mean.get_label() == "mean of 2"


def test_mixed_labels_have_no_panel_for_accuracy() -> None:
    axes = learning_curve(history(5, accuracy=math.nan), "mixup").axes
    assert [panel.get_ylabel() for panel in axes] == ["training loss", "learning rate"]


def test_a_loss_that_is_not_finite_is_a_gap_and_told_and_so_is_a_resumption() -> None:
    entries = history(5)
    entries[3:] = [entry.model_copy(update={"loss": math.nan}) for entry in entries[3:]]
    figure = learning_curve(entries, "a run", resumed=[10, 20])
    told = figure.axes[0].get_title(loc="left").splitlines()
    assert told == [
        "a run",
        "the loss is not finite at 2 logged steps, from step 40 on",
        "dotted: resumed after step 10 and 20",
    ]
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).tolist() == [False, False, False, True, True]
    dotted = [line.get_xdata()[0] for line in figure.axes[-1].lines if line.get_linestyle() == ":"]
    assert dotted == [10, 20]


def test_no_history_has_no_curve() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        learning_curve([], "a run")


@pytest.mark.parametrize("count", [1, 2, SMOOTHED + 1])
def test_a_learning_curve_is_a_png_the_same_each_time(tmp_path: Path, count: int) -> None:
    for name in ("a.png", "b.png"):
        save_learning_curve(history(count), tmp_path / "new" / name, "timm:vit · $x$\n" + "a long part " * 20)
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()
    picture = Image.open(tmp_path / "new" / "a.png")
    assert picture.format == "PNG"
    assert 900 < picture.width < 1200, "the title is broken, so that it widens nothing"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(2, 8))
def test_counts_are_those_of_the_loop(seed: int, rows: int, num_classes: int) -> None:
    labels, predictions = np.random.default_rng(seed).integers(num_classes, size=(2, rows))
    expected = np.zeros((num_classes, num_classes), dtype=np.int64)
    for label, prediction in zip(labels, predictions, strict=True):
        expected[label, prediction] += 1
    assert confusion_counts(labels, predictions, num_classes).tolist() == expected.tolist()


@pytest.mark.parametrize(("labels", "predictions"), [([0, 3], [0, 1]), ([0, 1], [0, 3]), ([-1], [0])])
def test_classes_that_do_not_exist_are_refused(labels: list[int], predictions: list[int]) -> None:
    with pytest.raises(ValueError, match="must be from 0 to 2"):
        confusion_counts(np.array(labels), np.array(predictions), 3)


def test_the_matrix_is_in_percent_of_each_true_class_and_a_class_without_images_is_blank() -> None:
    axes = confusion_figure(COUNTS, NAMES, "a run").axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown[0], [80, 20, 0])
    np.testing.assert_allclose(shown[2], [0.5, 0, 99.5])
    assert shown.mask[1].all()
    assert not shown.mask[[0, 2]].any()
    assert sorted(texts(axes)) == ["0.5", "100", "20", "80"], "zeros are blank"
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    assert axes.get_title(loc="left") == "a run\n210 images"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


@pytest.mark.parametrize(
    ("count", "named", "numbers", "labels"),
    [
        (ANNOTATED, True, True, ANNOTATED),
        (ANNOTATED, False, True, ANNOTATED),
        (ANNOTATED + 1, True, False, ANNOTATED + 1),
        (ANNOTATED + 1, False, False, 5),
        (NAMED, True, False, NAMED),
        (NAMED, False, False, 20),
        (NAMED + 1, True, False, 11),
        (1000, True, False, 20),
    ],
)
def test_names_and_numbers_stand_where_there_is_room(count: int, named: bool, numbers: bool, labels: int) -> None:
    names = [f"class {number}" for number in range(count)] if named else []
    axes = confusion_figure(np.eye(count, dtype=np.int64), names, "a run").axes[0]
    assert bool(texts(axes)) == numbers
    assert len(axes.get_yticks()) == labels
    first = axes.get_yticklabels()[0].get_text()
    assert first == ("class 0" if named and count <= NAMED else "0")


def test_picture_and_counts_are_written_side_by_side(tmp_path: Path) -> None:
    save_confusion(COUNTS, NAMES, tmp_path / "new" / "confusion.png", "a run")
    assert Image.open(tmp_path / "new" / "confusion.png").format == "PNG"
    with (tmp_path / "new" / "confusion.csv").open(newline="") as handle:
        header, *rows = csv.reader(handle)
    assert header == ["true", *NAMES]
    assert [row[0] for row in rows] == NAMES
    assert [[int(value) for value in row[1:]] for row in rows] == COUNTS.tolist()


def test_names_may_be_none_or_equal_but_not_too_few(tmp_path: Path) -> None:
    save_confusion(COUNTS, [], tmp_path / "a.png", "a run")
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "true,0,1,2"
    save_confusion(COUNTS, ["boot", "boot", "clog"], tmp_path / "b.png", "a run")
    assert (tmp_path / "b.csv").read_text().splitlines()[0] == "true,boot,boot,clog"
    with pytest.raises(ValueError, match="2 names were given for 3 classes"):
        save_confusion(COUNTS, ["boot", "clog"], tmp_path / "c.png", "a run")
    assert not list(tmp_path.glob("c.*"))


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        save_confusion(COUNTS, [], tmp_path / "file" / "a.png", "a run")
    with pytest.raises(StoreError, match="cannot write"):
        save_learning_curve(history(3), tmp_path / "file" / "a.png", "a run")

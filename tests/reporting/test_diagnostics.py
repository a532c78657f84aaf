"""What is said of stored predictions equals scikit-learn's numbers; damage is told; the pictures hold what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn import metrics

import vitbench
from tests.conftest import ImageFolderMaker
from tests.records.test_store import make_record
from vitbench.errors import DataError, StoreError, UsageError
from vitbench.records.store import ResultStore
from vitbench.reporting.diagnostics import Diagnostics, cells, diagnose
from vitbench.reporting.diagnostics_plots import confusion_figure, reliability_figure
from vitbench.reporting.gallery import SIDE, sheet, task_of, tiles
from vitbench.reporting.selection import read_measured
from vitbench.tasks.catalog import load_task

LABEL = np.array([0, 0, 0, 1, 1, 1, 2, 2])
SAID = np.array([[0, 0, 1, 1, 1, 0, 2, 1], [0, 1, 1, 1, 1, 1, 2, 2]])
SURE = np.array([[0.9, 0.8, 0.7, 0.9, 0.2, 0.6, 0.5, 0.95], [0.5] * 8])


def put(
    out: Path,
    prediction: npt.NDArray[np.int64],
    label: npt.NDArray[np.int64] = LABEL,
    confidence: npt.NDArray[np.float64] | None = None,
    **fields: Any,
) -> Path:
    record = make_record(
        **{
            "num_classes": 4,
            "scores": {"accuracy": float(np.mean(prediction == label))},
            "n_test": len(label),
            **fields,
        }
    )
    columns = {"row": np.arange(len(label)), "label": label, "prediction": prediction}
    sure = {} if confidence is None else {"confidence": confidence.astype(np.float32)}
    return ResultStore(out).write(record, columns | sure)


def diagnosed(out: Path, **options: Any) -> Diagnostics:
    (group,) = cells(read_measured(out).records)
    return diagnose(group, group["path"].tolist(), **options)


@pytest.fixture
def two_seeds(tmp_path: Path) -> Path:
    for seed in (0, 1):
        put(tmp_path, SAID[seed], confidence=SURE[seed], seed=seed)
    return tmp_path


def test_counts_are_pooled_over_seeds_and_equal_scikit_learn(two_seeds: Path) -> None:
    found = diagnosed(two_seeds)
    true, said = np.tile(LABEL, 2), SAID.ravel()
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(true, said, labels=range(4)))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(true, said))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(true, said, average="macro"))
    table = found.per_class.set_index("label")
    assert table["support"].tolist() == [3, 3, 2, 0]
    assert table["predicted"].tolist() == [2.0, 4.5, 1.5, 0.0]
    np.testing.assert_allclose(table["accuracy"][:3], metrics.recall_score(true, said, average=None))
    np.testing.assert_allclose(table["f1"][:3], metrics.f1_score(true, said, average=None))
    assert table.loc[3, ["accuracy", "precision", "f1"]].isna().all(), "no image, no prediction: nothing was measured"
    assert np.isnan(found.normalised[3]).all()
    np.testing.assert_allclose(found.normalised[:3].sum(axis=1), 1)
    assert (found.seeds, found.n_test) == ((0, 1), 8)
    assert found.notes[0] == "pooled over 2 seeds (0, 1): every test image counts 2 times; examples are of seed 0"
    assert found.notes[1] == "1 of 4 classes have no test image: macro F1 leaves them out"


def test_pairs_hold_both_directions_the_most_confused_first(two_seeds: Path) -> None:
    pairs = diagnosed(two_seeds).pairs
    assert pairs[["one", "other", "one_as_other", "other_as_one", "total"]].to_numpy().tolist() == [
        [0, 1, 3, 1, 4],
        [1, 2, 0, 1, 1],
    ]
    assert pairs["share"].tolist() == pytest.approx([4 / 12, 1 / 10])


def test_calibration_is_over_all_seeds_that_have_a_confidence(two_seeds: Path) -> None:
    found = diagnosed(two_seeds)
    hits, sure = (SAID == LABEL).ravel(), SURE.ravel()
    bins = np.clip(np.ceil(sure.astype(np.float32).astype(float) * 10 - 1e-9).astype(int) - 1, 0, 9)
    expected = sum((bins == m).mean() * abs(hits[bins == m].mean() - sure[bins == m].mean()) for m in np.unique(bins))
    assert found.ece == pytest.approx(expected, abs=1e-6)
    put(two_seeds, SAID[0], seed=2)
    found = diagnosed(two_seeds)
    assert found.reliability is not None
    assert found.reliability.counts.sum() == 16
    assert "calibration is of seeds 0, 1: the others hold no confidence" in found.notes


def test_without_confidence_there_is_no_calibration_and_it_is_said(tmp_path: Path) -> None:
    put(tmp_path, SAID[0])
    found = diagnosed(tmp_path)
    assert found.reliability is found.ece is None
    assert any(note.startswith("no calibration: these records hold no confidence") for note in found.notes)
    assert len(found.confident.row) == 0
    assert found.wrong.confidence is None
    with pytest.raises(UsageError, match="needs records with a confidence"):
        reliability_figure(found)


def test_examples_are_the_surest_wrong_ones_then_others_and_right_ones(two_seeds: Path) -> None:
    found = diagnosed(two_seeds, examples=2)
    assert found.confident.row.tolist() == [7, 2]
    assert found.confident.confidence == pytest.approx([0.95, 0.7])
    assert found.wrong.row.tolist() == [5]
    assert len(found.right.row) == 2
    assert (found.right.label == found.right.prediction).all()
    assert diagnosed(two_seeds, examples=2).right.row.tolist() == found.right.row.tolist()


def test_records_that_differ_in_more_than_their_seed_are_refused(tmp_path: Path) -> None:
    put(tmp_path, SAID[0])
    put(tmp_path, SAID[0], representation="gap")
    records = read_measured(tmp_path).records
    with pytest.raises(UsageError, match="not the seeds of one measurement"):
        diagnose(records, records["path"].tolist())
    assert [len(group) for group in cells(records)] == [1, 1]


def replace(path: Path, **columns: npt.NDArray[Any]) -> None:
    table = pq.read_table(path.with_suffix(".parquet")).to_pandas().assign(**columns)
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path.with_suffix(".parquet"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prediction": (LABEL + 1) % 3}, r"have an accuracy of 0.00 %, but the record's is 62.50 %"),
        ({"prediction": LABEL + 4}, "are damaged: none are there, or of classes outside 0 to 3"),
        ({"label": LABEL - 1}, "are damaged"),
        ({"confidence": np.full(8, np.nan)}, "a confidence is no number from 0 to 1"),
        ({"confidence": np.full(8, 1.5)}, "a confidence is no number from 0 to 1"),
    ],
)
def test_predictions_that_cannot_be_the_records_are_refused(
    tmp_path: Path, columns: dict[str, npt.NDArray[Any]], message: str
) -> None:
    path = put(tmp_path, SAID[0], confidence=SURE[0])
    replace(path, **columns)
    with pytest.raises(StoreError, match=message) as error:
        diagnosed(tmp_path)
    assert "\n" not in str(error.value)


def test_seeds_on_other_test_images_are_refused(two_seeds: Path) -> None:
    path = read_measured(two_seeds).records["path"][1]
    replace(path, row=np.arange(8) + 1)
    with pytest.raises(StoreError, match="of other test images than those of its other seeds"):
        diagnosed(two_seeds)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more"])
def test_missing_and_broken_files_are_told(tmp_path: Path, content: bytes | None) -> None:
    path = put(tmp_path, SAID[0]).with_suffix(".parquet")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(StoreError, match="missing" if content is None else "damaged"):
        diagnosed(tmp_path)


NAMES = ('<b>"bold"</b>', "$x^2$ 'quoted'", "a/b\\c")


@pytest.fixture
def shoes(image_folder: ImageFolderMaker, tmp_path: Path) -> tuple[str, Path]:
    folder = image_folder(classes=("boot", "clog", "loafer"))
    vitbench.run("pixels", f"imagefolder:{folder}", out=tmp_path / "out", shots=1, seeds=2)
    return f"imagefolder:{folder}", tmp_path / "out"


def test_tiles_show_the_image_of_their_row(shoes: tuple[str, Path]) -> None:
    name, out = shoes
    task = load_task(name)
    found = diagnosed(out, task=task)
    assert found.class_names == ("boot", "clog", "loafer")
    for tile in tiles(found.right, found.class_names, task.test, side=48):
        assert tile.picture is not None
        assert tile.picture.size == (40, 48), "20 × 24 twice as large"
        assert tile.picture.getpixel((0, 0)) == task.test.image(tile.row).getpixel((0, 0))
        assert tile.caption.startswith(f"{tile.label} → {tile.label}, ")
        assert tile.png is not None
        assert tile.png.startswith(b"\x89PNG")
        assert tile.label == task.class_names[task.test.labels[tile.row]]
    picture = sheet(found, task.test)
    assert picture.width == 1070
    assert {(230, 230, 230), (0, 114, 178)} & {colour for _, colour in picture.getcolors(1 << 24) or []}


def test_a_task_is_found_where_its_run_found_it_or_where_the_user_says(
    shoes: tuple[str, Path], image_folder: ImageFolderMaker
) -> None:
    name, out = shoes
    path = read_measured(out).records["path"][0]
    assert task_of(path, out).name == "imagefolder/shoes"
    for config in (out / "configs").glob("*.yaml"):
        config.unlink()
    with pytest.raises(UsageError, match="says where it is"):
        task_of(path, out)
    assert task_of(path, out, name).name == "imagefolder/shoes"
    other = load_task(f"imagefolder:{image_folder('others', test=5)}")
    found = diagnosed(out, task=other)
    assert found.class_names == ("0", "1", "2")
    assert "the task's data is not what was scored: class names and pictures are left out" in found.notes


def test_an_image_that_cannot_be_read_leaves_the_others(
    shoes: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_task(shoes[0])
    found = diagnosed(shoes[1], task=task)
    bad = int(found.right.row[0])
    original = type(task.test).image

    def image(self: Any, row: int) -> Image.Image:
        if row == bad:
            raise DataError("broken")
        return original(self, row)

    monkeypatch.setattr(type(task.test), "image", image)
    shown = tiles(found.right, found.class_names, task.test)
    assert [tile.picture is None for tile in shown] == [tile.row == bad for tile in shown]
    assert shown[0].png is None
    sheet(found, task.test)


def test_names_go_through_unharmed_and_are_no_formulas(two_seeds: Path, shoes: tuple[str, Path]) -> None:
    import dataclasses

    found = dataclasses.replace(diagnosed(two_seeds), class_names=(*NAMES, "x" * 5000))
    figure = confusion_figure(found)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[:3] == list(NAMES)
    assert len(labels[3]) < 30
    figure.canvas.draw()  # a dollar sign that were read as a formula would raise here
    shown = tiles(found.right, found.class_names, None)
    assert shown[0].label == NAMES[0]
    sheet(found, load_task(shoes[0]).test)


@pytest.mark.parametrize(("classes", "ticks"), [(10, 10), (37, 37), (102, 11), (1000, 20)])
def test_a_confusion_matrix_is_labelled_as_far_as_it_can_be_read(tmp_path: Path, classes: int, ticks: int) -> None:
    label = np.repeat(np.arange(classes), 2)
    put(tmp_path, (label + (np.arange(len(label)) % 3 == 0)) % classes, label, num_classes=classes)
    axes = confusion_figure(diagnosed(tmp_path)).axes[0]
    assert len(axes.get_xticks()) == ticks
    assert bool(axes.texts) == (classes <= 20)


def test_the_reliability_diagram_draws_the_bins_that_hold_predictions(two_seeds: Path) -> None:
    found = diagnosed(two_seeds)
    assert found.reliability is not None
    axes, below = reliability_figure(found).axes
    there = int((found.reliability.counts > 0).sum())
    assert len(axes.patches) == there
    assert sum(bar.get_height() for bar in below.patches) == pytest.approx(100)


def test_a_picture_is_never_larger_than_its_tile(shoes: tuple[str, Path]) -> None:
    task = load_task(shoes[0])
    found = diagnosed(shoes[1], task=task)
    for side in (SIDE, 24, 10):
        assert all(
            max(tile.picture.size) <= side for tile in tiles(found.right, NAMES, task.test, side) if tile.picture
        )


def test_a_frame_of_records_needs_no_accuracy_column(tmp_path: Path) -> None:
    path = put(tmp_path, SAID[0])
    records = read_measured(tmp_path).records.drop(columns="accuracy")
    assert diagnose(records, [path]).accuracy == pytest.approx(5 / 8)
    assert isinstance(records, pd.DataFrame)

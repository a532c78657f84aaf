from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ImageFolderMaker
from vitbench.analysis.contact_sheet import (
    DEFAULT,
    MOST_CLASSES,
    Layout,
    _fitted,
    _font,
    _header,
    _wrapped,
    contact_sheet,
    sheet_preprocessing,
    write_sheet,
)
from vitbench.errors import UsageError
from vitbench.tasks import transforms
from vitbench.tasks.catalog import load_task
from vitbench.tasks.task import Task

TINY = "resize(16x16,bilinear)|normalize(0.5,0.25)"


def tile(sheet: Image.Image, layout: Layout, task: Task, label: int, place: int, index: int) -> np.ndarray:
    """The pixels of one tile; its row is counted from the bottom edge, so that the header's height does not matter."""
    rows = layout.rows
    bottom = sheet.height - 20 - 4
    top = bottom - (rows - label % rows) * (layout.tile + 4) + 4
    left = 20 + (label // rows) * (layout.block_width + 28) + layout.split_x(place) + index * (layout.tile + 4)
    return np.asarray(sheet.crop((left, top, left + layout.tile, top + layout.tile)))


def test_a_tile_is_what_the_backbone_sees_before_normalisation(image_folder: ImageFolderMaker) -> None:
    task = load_task(f"imagefolder:{image_folder()}")
    preprocessing = transforms.parse(TINY)
    sheet = contact_sheet(task, [task.train, task.test], preprocessing)
    layout = Layout.of(3, 2)
    for label, place, index in ((0, 0, 0), (2, 0, 4), (1, 1, 2)):
        split = (task.train, task.test)[place]
        row = int(np.flatnonzero(split.labels == label)[index])
        seen = preprocessing.geometry(split.image(row)).permute(1, 2, 0).numpy()
        # 16 pixels enlarged eightfold fill the tile of 128.
        drawn = tile(sheet, layout, task, label, place, index)
        assert np.array_equal(drawn, seen.repeat(8, axis=0).repeat(8, axis=1)), (label, place, index)


def test_an_unreadable_image_is_a_marked_tile(image_folder: ImageFolderMaker) -> None:
    folder = image_folder()
    task = load_task(f"imagefolder:{folder}")
    whole = contact_sheet(task, [task.train], transforms.parse(TINY))
    (folder / "train" / "clog" / "001.png").write_bytes(b"no image")
    broken = contact_sheet(task, [task.train], transforms.parse(TINY))
    layout = Layout.of(3, 1)
    marked = tile(broken, layout, task, 1, 0, 1)
    assert (marked == (176, 0, 32)).all(axis=2).sum() > 300
    assert np.array_equal(tile(whole, layout, task, 1, 0, 2), tile(broken, layout, task, 1, 0, 2))


def test_a_class_without_images_says_so(image_folder: ImageFolderMaker) -> None:
    folder = image_folder()
    for path in (folder / "test" / "boot").iterdir():
        path.unlink()
    task = load_task(f"imagefolder:{folder}")
    empty = tile(contact_sheet(task, [task.train, task.test], transforms.parse(TINY)), Layout.of(3, 2), task, 0, 1, 0)
    assert (empty == (176, 0, 32)).all(axis=2).any()
    assert (empty == 255).mean() > 0.9


def test_large_results_are_reduced_to_their_tile(image_folder: ImageFolderMaker) -> None:
    task = load_task(f"imagefolder:{image_folder()}")
    sheet = contact_sheet(task, [task.train], transforms.parse("resize(200x400,nearest)|value_range(0,1)"))
    drawn = tile(sheet, Layout.of(3, 1), task, 0, 0, 0)
    assert (drawn[:32] == 238).all()
    assert (drawn[-32:] == 238).all()
    assert not (drawn[33:95] == 238).all(axis=2).any()


@pytest.mark.parametrize("classes", [2, 16, 17, 50, 1000])
def test_sheets_keep_a_readable_size(classes: int) -> None:
    layout = Layout.of(classes, 2)
    assert layout.classes == min(classes, MOST_CLASSES)
    assert layout.blocks * layout.block_width < 1400
    assert layout.rows * layout.tile < 2600
    assert layout.rows * layout.blocks >= layout.classes


def test_the_header_says_what_is_shown() -> None:
    task = load_task("synthetic_count")
    preprocessing = sheet_preprocessing(task)
    lines = [
        text for text, _, _ in _header(task, [task.train, task.test], preprocessing, Layout.of(task.num_classes, 2))
    ]
    assert task.name in lines[0]
    assert lines[0].lower().count("synthetic)") == 1
    assert f"all {task.num_classes} classes" in lines[1]
    assert f"{task.train.name} {len(task.train):,}, test {len(task.test):,} images" in lines[1]
    assert lines[2] == str(preprocessing)
    many = _header(task, [task.train], preprocessing, Layout(50, 2, 96, (5,), 130))
    assert f"the first 50 of {task.num_classes} classes" in many[1][0]


def test_names_are_wrapped_and_cut_to_their_column() -> None:
    font = _font(15)
    for name in (
        "x" * 90,
        "Yorkshire_terrier_of_the_very_long_kind",
        "great white shark, white shark, man-eater",
        "кошка",
    ):
        lines = _wrapped(name, 118, 15, most=3)
        assert 1 <= len(lines) <= 3
        assert all(font.getlength(line) <= 118 for line in lines)
    assert _wrapped("tiger cat", 118, 15, most=3) == ["tiger cat"]
    assert _wrapped("x" * 90, 118, 15, most=3)[0].endswith("…")
    assert _fitted("train", 300, 15) == "train"


def test_the_preprocessing_is_the_tasks_or_what_is_asked_for(image_folder: ImageFolderMaker, tiny_vit: str) -> None:
    folder = load_task(f"imagefolder:{image_folder()}")
    synthetic = load_task("synthetic_count")
    assert synthetic.spec.preprocess == "vtab"
    assert str(sheet_preprocessing(folder)) == DEFAULT
    assert str(sheet_preprocessing(synthetic)) == "tf1_resize(224x224,bilinear)|value_range(0,1)"
    assert str(sheet_preprocessing(synthetic, "task")) == str(sheet_preprocessing(synthetic))
    assert str(sheet_preprocessing(folder, TINY)) == TINY
    assert str(sheet_preprocessing(folder, "vit_jax")) == "tf_resize(224x224,bilinear)|value_range(-1,1)"
    own = sheet_preprocessing(synthetic, backbone=tiny_vit)
    assert own.output_size == (32, 32)
    assert "tf1" not in str(own)
    assert str(sheet_preprocessing(synthetic, "task", tiny_vit)) == "tf1_resize(32x32,bilinear)|value_range(0,1)"
    with pytest.raises(UsageError, match="names no preprocessing"):
        sheet_preprocessing(folder, "task")
    with pytest.raises(UsageError, match="vtab"):
        sheet_preprocessing(folder, "vtabb")


def test_a_sheet_is_written_as_png_and_is_the_same_each_time(tmp_path: Path) -> None:
    task = load_task("digits")
    preprocessing = sheet_preprocessing(task)
    for name in ("one.png", "two.png"):
        write_sheet(task, ["train", "test"], preprocessing, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.height > 10 * 128

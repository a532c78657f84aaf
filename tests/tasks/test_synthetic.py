"""Rendered scenes: always the same, with labels that can be seen, and nothing else that tells them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import vitbench
from vitbench.errors import DataError
from vitbench.tasks.catalog import find_task, load_task
from vitbench.tasks.sources import synthetic
from vitbench.tasks.sources.synthetic import FACTORS, Scene, Shape, class_names, factor_values, render, scene

NAMES = sorted(FACTORS)

# Sums of all pixels of rows 0, 1 and 4000 of seed 0 at 64 px, and of row 12345 of seed 7 at 96 px; values of rows 0 to 15.
GOLDEN = {
    "count": ([695089, 779109, 431764, 1623239], [7, 15, 14, 11, 10, 2, 5, 1, 0, 9, 6, 13, 12, 4, 8, 3]),
    "x_position": ([611477, 405331, 682015, 1441359], [29, 16, 4, 9, 23, 21, 13, 14, 1, 6, 2, 26, 31, 25, 18, 11]),
    "orientation": ([756702, 568168, 483414, 1770609], [39, 3, 22, 29, 25, 9, 19, 0, 6, 23, 14, 33, 37, 31, 15, 11]),
    "size": ([624757, 599341, 820065, 1522804], [19, 1, 13, 22, 3, 9, 7, 17, 30, 14, 29, 5, 10, 20, 25, 27]),
}


def mask(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where the shapes are: 255 in one channel, where no background exceeds 70 + 30 and the noise 8."""
    return np.asarray(pixels.max(axis=2) > 180)


def write_task(folder: Path, factor: str, train: str, test: str = "[64, 96]", **source: int) -> str:
    more = "".join(f", {key}: {value}" for key, value in source.items())
    path = folder / f"{factor}_{len(list(folder.iterdir()))}.yaml"
    path.write_text(
        f"title: T\nsource: {{kind: synthetic, factor: {factor}{more}}}\n"
        f"splits: {{train: {{{train}}}, test: {{rows: {test}}}}}\n"
    )
    return str(path)


@pytest.mark.parametrize("factor", NAMES)
def test_rows_are_what_they_always_were(factor: str) -> None:
    """A change here is another data set: it needs another RENDERER."""
    sums, values = GOLDEN[factor]
    images = [render(factor, 0, row) for row in (0, 1, 4000)] + [render(factor, 7, 12345, 96)]
    assert [int(image.sum(dtype=np.int64)) for image in images] == sums
    assert factor_values(factor, 0, 0, 16).tolist() == values
    assert synthetic.RENDERER == 1
    assert images[0].dtype == np.uint8
    assert images[3].shape == (96, 96, 3)


@pytest.mark.parametrize("factor", NAMES)
def test_a_row_is_the_same_image_in_every_split_and_thread(factor: str, tmp_path: Path) -> None:
    whole = load_task(write_task(tmp_path, factor, "rows: [0, 64]")).train
    later = load_task(write_task(tmp_path, factor, "rows: [21, 60]")).train
    assert later.labels.tolist() == whole.labels[21:60].tolist()
    alone = [np.asarray(whole.image(21 + row)) for row in range(len(later))]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda row: np.asarray(later.image(row)), range(len(later))))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    assert "scene 24 of synthetic" in later.where(3)


@given(
    factor=st.sampled_from(NAMES), seed=st.integers(0, 2**70), start=st.integers(0, 10**15), length=st.integers(1, 70)
)
@settings(max_examples=40, deadline=None)
def test_values_do_not_depend_on_where_one_starts_to_read(factor: str, seed: int, start: int, length: int) -> None:
    values = factor_values(factor, seed, start, start + length)
    assert values.shape == (length,)
    assert [
        int(factor_values(factor, seed, start + row, start + row + 1)[0]) for row in range(length)
    ] == values.tolist()
    assert values.min() >= 0
    assert values.max() < FACTORS[factor].values


@pytest.mark.parametrize("factor", NAMES)
def test_sixteen_rows_in_a_row_have_sixteen_labels(factor: str) -> None:
    values = factor_values(factor, 3, 1600, 1600 + 16 * 200)
    blocks = FACTORS[factor].label(values).reshape(200, 16)
    assert (np.sort(blocks, axis=1) == np.arange(16)).all()
    assert len({tuple(block) for block in blocks.tolist()}) == 200, "the order must not tell the label"
    assert set(values.tolist()) == set(range(FACTORS[factor].values))


def test_labels_are_dsprites_labels() -> None:
    edges = {value: int(FACTORS["orientation"].label(np.array([value]))[0]) for value in range(40)}
    assert [edges[value] for value in (0, 2, 3, 4, 5, 7, 8, 9, 10, 37, 38, 39)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        14,
        15,
        15,
    ]
    for factor in ("x_position", "size"):
        assert FACTORS[factor].label(np.array([0, 1, 2, 3, 30, 31])).tolist() == [0, 0, 1, 1, 15, 15]
    assert FACTORS["count"].label(np.arange(16)).tolist() == list(range(16))


@given(factor=st.sampled_from(NAMES), seed=st.integers(0, 99), row=st.integers(0, 10**9), side=st.integers(16, 512))
@settings(max_examples=150, deadline=None)
def test_no_shape_is_cut_off_and_none_touches_another(factor: str, seed: int, row: int, side: int) -> None:
    shapes = scene(factor, seed, row).shapes
    for shape in shapes:
        corners = synthetic._corners(shape, side)
        # Of 64 units a pixel: a sixteenth of the side, which is what a central crop to 7/8 takes, and no border.
        assert corners.min() > 4 * side
        assert corners.max() < 60 * side
    for index, one in enumerate(shapes):
        for other in shapes[:index]:
            # Each lies within a square around its centre that ends before the other's begins, across or down.
            apart = max(abs(one.x - other.x), abs(one.y - other.y))
            assert apart > synthetic.reach(one.outline) * one.size + synthetic.reach(other.outline) * other.size + 0.5


def test_the_count_can_be_counted() -> None:
    for row, value in enumerate(factor_values("count", 0, 0, 48).tolist()):
        assert ndimage.label(mask(render("count", 0, row, 256)), np.ones((3, 3)))[1] == value + 1


def test_the_position_and_the_size_can_be_measured() -> None:
    for row, value in enumerate(factor_values("x_position", 0, 0, 64).tolist()):
        columns = np.nonzero(mask(render("x_position", 0, row)))[1]
        # Half the distance of neighbouring positions, 36 / 31 px, would confuse them.
        assert abs(columns.mean() + 0.5 - (14 + value * 36 / 31)) < 0.5 * 36 / 31
    for row, value in enumerate(factor_values("size", 0, 0, 64).tolist()):
        size = math.sqrt(mask(render("size", 0, row, 256)).sum()) / 4
        assert abs(math.log(size / 6) * 31 / math.log(26 / 6) - value) < 0.5


def test_the_orientation_can_be_seen() -> None:
    """The tip of a drop is what is farthest from its middle, and it turns counter-clockwise from the right."""
    values = factor_values("orientation", 0, 0, 200).tolist()
    drops = [row for row in range(200) if scene("orientation", 0, row).shapes[0].outline == "drop"]
    assert len(drops) > 40
    for row in drops:
        y, x = np.nonzero(mask(render("orientation", 0, row, 128)))
        across, up = x - x.mean(), y.mean() - y
        tip = np.argmax(across**2 + up**2)
        degrees = math.degrees(math.atan2(up[tip], across[tip]))
        assert abs((degrees - values[row] * 9 + 180) % 360 - 180) < 6


@pytest.mark.parametrize("outline", ["heart", "drop", "arrow"])
def test_pointed_shapes_look_the_same_at_one_angle_only(outline: str) -> None:
    def cover(angle: float) -> npt.NDArray[np.int64]:
        corners = synthetic._corners(Shape(outline, 32, 32, 20, angle, (255, 255, 255)), 64)
        top, left, part = synthetic._cover(corners, 64)
        canvas = np.zeros((64, 64), dtype=np.int64)
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        return canvas

    upright = cover(math.pi / 2)
    assert np.array_equal(upright, upright[:, ::-1]), "the tip is on the axis of symmetry"
    assert np.flatnonzero(upright.any(axis=1))[0] == np.flatnonzero(upright[:, 31:33].any(axis=1))[0]
    others = [np.abs(upright - cover(math.pi / 2 + index * math.tau / 40)).sum() / 16 for index in range(1, 40)]
    # In pixels that differ, of the 400 that the shape covers.
    assert min(others) > 20


def test_cover_is_area() -> None:
    square = np.array([[128, 128], [768, 128], [768, 768], [128, 768]])
    top, left, part = synthetic._cover(square, 64)
    assert (top, left, part.shape, set(part.ravel().tolist())) == (2, 2, (10, 10), {16})
    for outline in ("ellipse", "square", "triangle", "heart", "drop", "arrow"):
        for angle in np.linspace(0, 6, 7):
            shape = Shape(outline, 31.7, 32.2, 30, float(angle), (0, 0, 0))
            area = synthetic._cover(synthetic._corners(shape, 128), 128)[2].sum() / 16
            assert abs(area / (2 * 30) ** 2 - 1) < 0.005


def nuisances(content: Scene, factor: str) -> dict[str, float]:
    """What a scene shows besides its label, of its first shape."""
    shape = content.shapes[0]
    found = {
        "ground": sum(content.ground),
        "slope across": content.slope[0],
        "slope down": content.slope[1],
        "noise": content.noise,
        "colour": sum(shape.colour),
        "red": shape.colour[0],
        "outline": synthetic.reach(shape.outline),
        "x_position": shape.x,
        "y": shape.y,
        "size": shape.size,
        "cosine": math.cos(shape.angle),
        "sine": math.sin(shape.angle),
    }
    own = {"orientation": ("cosine", "sine")}.get(factor, (factor,))
    return {name: value for name, value in found.items() if name not in own}


@pytest.mark.parametrize("factor", NAMES)
def test_nothing_else_in_a_scene_tells_the_label(factor: str) -> None:
    count = 1600
    labels = FACTORS[factor].label(factor_values(factor, 0, 0, count))
    seen = [nuisances(scene(factor, 0, row), factor) for row in range(count)]
    one_hot = np.eye(16)[labels] - 1 / 16
    for name in seen[0]:
        values = np.array([one[name] for one in seen], dtype=np.float64)
        assert values.std() > 0
        values = (values - values.mean()) / values.std()
        # Under independence the 16 class means, each of variance 16 / count, give 15 degrees of freedom: 40 has p = 0.0005.
        chi_square = float(((one_hot.T @ values) ** 2 * 16 / count).sum())
        assert chi_square < 40, f"{factor} and {name}: {chi_square:.1f}"


def test_pixels_tell_the_position_better_than_the_orientation() -> None:
    def accuracy(factor: str) -> float:
        labels = FACTORS[factor].label(factor_values(factor, 1, 0, 640))
        features = np.stack([render(factor, 1, row)[::4, ::4].ravel() for row in range(640)]).astype(np.float32)
        frame = vitbench.fewshot(features[:320], labels[:320], features[320:], labels[320:], shots=(20,), seeds=1)
        return float(frame["accuracy"].mean())

    assert accuracy("x_position") > 4 / 16
    assert accuracy("orientation") < 4 / 16


@pytest.mark.parametrize("factor", NAMES)
def test_the_built_in_task(factor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("labels come without rendering")

    monkeypatch.setattr(synthetic, "render", forbidden)
    task = load_task(f"builtin/synthetic_{factor}")
    spec = task.spec
    assert spec.synthetic
    assert spec.title.endswith("(synthetic)")
    assert (spec.metric, spec.num_classes, task.chance, spec.download_bytes) == ("accuracy", 16, 1 / 16, 0)
    assert len(set(task.class_names)) == 16
    assert (task.train.name, len(task.train), len(task.test)) == ("train800val200", 1000, 2000)
    tuning = task.tuning_splits()
    assert tuning is not None
    assert [len(split) for split in tuning] == [800, 200]
    assert np.bincount(task.test.labels).tolist() == [125] * 16
    assert np.bincount(task.split("train").labels).tolist() == [250] * 16
    assert spec.licence
    assert spec.citation
    assert spec.notes


def test_class_names() -> None:
    assert class_names("count")[:2] == ("1 shape", "2 shapes")
    assert class_names("orientation")[:2] == ("0 to 18 degrees", "27 to 36 degrees")
    assert class_names("x_position", 64)[-1] == "x 48.84 to 50.00 px"
    assert class_names("x_position", 128)[-1] == "x 97.68 to 100.00 px"
    assert all(len(set(class_names(factor, 16))) == 16 for factor in NAMES)


def test_another_factor_seed_side_or_range_is_other_data(tmp_path: Path) -> None:
    tasks = [
        load_task(write_task(tmp_path, "size", "rows: [0, 32]")),
        load_task(write_task(tmp_path, "size", "rows: [0, 32]", seed=1)),
        load_task(write_task(tmp_path, "size", "rows: [0, 32]", side=32)),
        load_task(write_task(tmp_path, "size", "rows: [16, 48]")),
        load_task(write_task(tmp_path, "x_position", "rows: [0, 32]")),
    ]
    assert len({task.train.fingerprint for task in tasks}) == 5
    images = [np.asarray(task.train.image(0).resize((64, 64))) for task in tasks]
    assert len({image.tobytes() for image in images}) == 5


def test_the_renderer_is_part_of_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_task(tmp_path, "size", "rows: [0, 32]")
    before = load_task(path).train.fingerprint
    monkeypatch.setattr(synthetic, "RENDERER", 2)
    assert load_task(path).train.fingerprint != before


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("rows: [5, 5]", r"split 'train': rows 5 to 5 are none"),
        ("rows: [60, 9]", r"split 'train': rows 60 to 9 are none"),
        ("rows: [-4, 9]", r"split 'train': rows -4 to 9 are none"),
        ("rows: [96, 2000000]", r"1,999,904 rows are more than the 1,000,000"),
        ("rows: [0, 65]", r"share rows"),
        ("files: [a.parquet]", r"'files' means nothing for a source of kind synthetic, which takes rows"),
    ],
)
def test_rows_that_cannot_be_meant(train: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_task(write_task(tmp_path, "count", train))


def test_a_split_without_rows_says_what_to_write(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(
        "title: T\nsource: {kind: synthetic, factor: count}\n"
        "splits: {all: {}, train: {select: 'all[:10]'}, test: {select: 'all[10:20]'}}\n"
    )
    with pytest.raises(DataError, match=r"split 'all': rows are missing: .* such as rows: \[0, 4000\]"):
        load_task(str(path))


@pytest.mark.parametrize("source", ["{factor: colour}", "{factor: count, side: 8}", "{factor: count, seed: -1}", "{}"])
def test_a_source_that_cannot_be_meant(source: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    fields = source.strip("{}")
    path.write_text(
        f"title: T\nsource: {{kind: synthetic{', ' if fields else ''}{fields}}}\n"
        "splits: {train: {rows: [0, 32]}, test: {rows: [32, 64]}}\n"
    )
    with pytest.raises(DataError, match=r"t\.yaml:2: .*source") as caught:
        find_task(str(path))
    assert "\n" not in str(caught.value)

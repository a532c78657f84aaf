"""NumPy archives: MedMNIST's and dSprites' layouts, and every way in which an archive can be wrong."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitbench.errors import DataError
from vitbench.tasks.catalog import load_task
from vitbench.tasks.sources import npz
from vitbench.tasks.sources.npz import read_npz
from vitbench.tasks.sources.rows import Rows
from vitbench.tasks.spec import TaskSpec

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 1, 0])


def read(folder: Path, *, files: tuple[str, ...] = ("data.npz",), **source: Any) -> Rows:
    spec = TaskSpec(
        title="T",
        source={"kind": "npz", **source},
        splits={"train": {"files": files}, "test": {"files": ("test.npz",)}},
    )
    return read_npz(spec, "train", folder)


def test_medmnist_layout_through_a_task_file(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        f"{split}_images": RNG.integers(0, 256, (4, 5, 5), dtype=np.uint8) for split in ("train", "val", "test")
    }
    labels: dict[str, Any] = {
        f"{split}_labels": np.array([[0], [1], [1], [0]], np.uint8) for split in ("train", "val", "test")
    }
    np.savez_compressed(tmp_path / "mnist.npz", **arrays, **labels)
    path = tmp_path / "t.yaml"
    path.write_text(
        "title: T\nsource: {kind: npz, image: '{split}_images', label: '{split}_labels'}\n"
        "splits: {train: {files: [mnist.npz]}, val: {files: [mnist.npz]}, test: {files: [mnist.npz]}}\n"
        "evaluation: {tune_train: train, tune_validation: val}\n"
    )
    task = load_task(str(path))
    assert task.test.labels.tolist() == [0, 1, 1, 0]
    for split in (task.train, task.test, task.split("val")):
        assert np.array_equal(np.asarray(split.image(2))[..., 1], arrays[f"{split.name}_images"][2])
    assert len({split.fingerprint for split in (task.train, task.test, task.split("val"))}) == 3
    assert task.test.where(2) == "row 2 (number 2 of 'test_images' in mnist.npz)"


def dsprites(folder: Path) -> np.ndarray[Any, Any]:
    """Two shapes, 40 orientations and 32 x-positions, in the layout of the authors' archive, with its pickled metadata."""
    factors = np.array([(0, 0, 0, angle, x, 0) for angle in range(40) for x in range(32)])
    images = np.zeros((len(factors), 4, 4), np.uint8)
    images[np.arange(len(factors)), factors[:, 3] % 4, factors[:, 4] % 4] = 1
    metadata = np.array({"title": "dSprites"}, dtype=object)
    np.savez_compressed(folder / "dsprites.npz", metadata=metadata, imgs=images, latents_classes=factors)
    return factors


@pytest.mark.parametrize(("item", "by"), [(4, 2), (3, 2.5)])
def test_dsprites_through_a_task_file_with_slices(tmp_path: Path, item: int, by: float) -> None:
    factors = dsprites(tmp_path)
    path = tmp_path / "t.yaml"
    path.write_text(
        "title: T\nnum_classes: 16\n"
        f"source: {{kind: npz, image: imgs, label: latents_classes, label_item: {item}, pixel_scale: 255, "
        f"label_rule: {{kind: floor_divide, by: {by}}}}}\n"
        "splits:\n  all: {files: [dsprites.npz], size: 1280}\n  train: {select: 'all[:80%]', size: 1024, partial: true}\n"
        "  validation: {select: 'all[80%:90%]'}\n  test: {select: 'all[90%:]', size: 128}\n"
        "  train800: {select: 'train[:800]', size: 800, partial: true}\n  val200: {select: 'all[1024:1028]'}\n"
        "evaluation: {train: train, test: test, tune_train: train800, tune_validation: val200}\n"
    )
    task = load_task(str(path))
    expected = np.floor(factors[:, item] / by).astype(np.int64)
    assert np.array_equal(task.train.labels, expected[:1024])
    assert np.array_equal(task.test.labels, expected[1152:])
    tuning = task.tuning_splits()
    assert tuning is not None
    assert np.array_equal(tuning[1].labels, expected[1024:1028])
    pixels = np.asarray(task.test.image(0))
    assert pixels.shape == (4, 4, 3)
    assert sorted(set(pixels.ravel().tolist())) == [0, 255]
    row = int(factors[1152, 3] % 4), int(factors[1152, 4] % 4)
    assert pixels[row].tolist() == [255, 255, 255]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "images", [IMAGES, IMAGES[..., :1], IMAGES[..., 0], np.asfortranarray(IMAGES), IMAGES[:, ::-1]]
)
def test_images_are_those_that_were_saved(tmp_path: Path, save: Any, images: np.ndarray[Any, Any]) -> None:
    save(tmp_path / "data.npz", images=images, labels=LABELS)
    rows = read(tmp_path)
    assert rows.labels.tolist() == LABELS.tolist()
    for row, image in enumerate(images):
        wide = image if image.ndim == 3 else image[..., None]
        assert np.array_equal(np.asarray(rows.image(row)), np.broadcast_to(wide, (6, 7, 3)))


def test_several_archives_make_one_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", images=IMAGES[2:], labels=LABELS[2:])
    np.savez_compressed(tmp_path / "a.npz", images=IMAGES[:2], labels=LABELS[:2])
    rows = read(tmp_path, files=("?.npz",))
    assert rows.labels.tolist() == LABELS.tolist()
    assert np.array_equal(np.stack([np.asarray(rows.image(row)) for row in range(5)]), IMAGES)
    assert rows.where(3) == "row 3 (number 1 of 'images' in b.npz)"


def test_labels_alone_do_not_read_the_images_and_threads_read_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "data.npz", images=IMAGES, labels=LABELS)
    read_arrays: list[str] = []
    original = npz._read

    def counting(path: Path, name: str) -> Any:
        read_arrays.append(name)
        return original(path, name)

    monkeypatch.setattr(npz, "_read", counting)
    rows = read(tmp_path)
    assert read_arrays == ["labels"]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(rows.raw, list(range(5)) * 8))
    assert all(np.array_equal(image, expected) for image, expected in zip(found, [*IMAGES] * 8, strict=True))
    assert read_arrays == ["labels", "images"]


def test_stored_arrays_are_mapped(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=LABELS)
    assert isinstance(npz._read(tmp_path / "data.npz", "images"), np.memmap)


def test_the_fingerprint_follows_content_and_settings(tmp_path: Path) -> None:
    labels = np.stack([LABELS, LABELS], axis=1)
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=labels, other=IMAGES)
    given: list[dict[str, Any]] = [
        {},
        {"pixel_scale": 2},
        {"image": "other"},
        {"label_rule": {"kind": "offset", "add": 1}},
    ]
    found = {read(tmp_path, label_item=item, **source).fingerprint for item in (0, 1) for source in given}
    np.savez(tmp_path / "data.npz", images=IMAGES[::-1], labels=labels)
    found.add(read(tmp_path, label_item=0).fingerprint)
    assert len(found) == 9


@pytest.mark.parametrize(
    ("arrays", "source", "message"),
    [
        ({"imgs": IMAGES}, {}, r"data.npz has no array 'images'; did you mean 'imgs'\? \(it has: 'imgs'\)"),
        ({"images": IMAGES, "label": LABELS}, {}, r"has no array 'labels'; did you mean 'label'"),
        ({"images": IMAGES, "labels": LABELS[:4]}, {}, r"'images' has 5 images and 'labels' 4 labels"),
        (
            {"images": IMAGES / 255, "labels": LABELS},
            {},
            r"is \[5, 6, 7, 3\] of dtype float64, where .* of dtype uint8 is needed: store gray levels from 0 to 255",
        ),
        ({"images": IMAGES > 9, "labels": LABELS}, {}, r"of dtype bool, .*0 and 1 with pixel_scale: 255"),
        ({"images": IMAGES.transpose(0, 3, 1, 2), "labels": LABELS}, {}, r"\[5, 3, 6, 7\] .*: channels come last"),
        ({"images": IMAGES[0, :, :, 0], "labels": LABELS}, {}, r"is \[6, 7\] of dtype uint8, where \[N, H, W\]"),
        ({"images": IMAGES[:, :0], "labels": LABELS}, {}, r"is \[5, 0, 7, 3\]"),
        (
            {"images": IMAGES, "labels": np.array([0, 1, None, 1, 0], dtype=object)},
            {},
            r"the array 'labels' holds Python objects, a pickle, which could run code",
        ),
        ({"images": np.array([{}]), "labels": LABELS}, {}, r"the array 'images' holds Python objects, a pickle"),
        ({"images": IMAGES, "labels": LABELS / 2}, {}, r"labels 'labels' holds double, not whole numbers from 0"),
        ({"images": IMAGES, "labels": LABELS - 1}, {}, r"row 0 \(number 0 of .*\): the label is -1"),
        ({"images": IMAGES, "labels": LABELS.astype(str)}, {}, r"labels 'labels' holds string, not whole numbers"),
        ({"images": IMAGES, "labels": LABELS.astype("M8[s]")}, {}, r"labels 'labels' holds timestamp"),
        (
            {"images": IMAGES, "labels": np.stack([LABELS] * 2, 1)},
            {},
            r"'labels' is \[5, 2\]: say by label_item which of the 2",
        ),
        (
            {"images": IMAGES, "labels": np.stack([LABELS] * 2, 1)},
            {"label_item": 2},
            r"'labels' has 2 columns, and label_item 2 counts from 0",
        ),
        (
            {"images": IMAGES, "labels": LABELS},
            {"label_item": 0},
            r"'labels' is \[5\]: label_item has no meaning",
        ),
        ({"images": IMAGES, "labels": np.array(1)}, {}, r"'labels' is \[\]: a label is one value"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], source: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, **source)
    assert "\n" not in str(caught.value)


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "evil.npy").rename(tmp_path / "data.npz")
    with pytest.raises(DataError, match=r"data.npz is damaged or no NumPy archive: File is not a zip file"):
        read(tmp_path)
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("images.npy", b"\x80\x04not an array")
    with pytest.raises(DataError, match=r"data.npz is damaged or no NumPy archive"):
        read(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_wrong_byte_is_found(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "data.npz", images=IMAGES, labels=LABELS)
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[500] ^= 1
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"data.npz is damaged or no NumPy archive"):
        read(tmp_path).image(0)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "data.npz", images=IMAGES, labels=LABELS)
    content = (tmp_path / "data.npz").read_bytes()
    for length in range(0, len(content), 37):
        (tmp_path / "data.npz").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"data.npz is damaged or no NumPy archive"):
            read(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_told_in_one_line_or_does_no_harm(tmp_path: Path, data: st.DataObject) -> None:
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(tmp_path / "data.npz", images=IMAGES, labels=LABELS)
    content = bytearray((tmp_path / "data.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "data.npz").write_bytes(content)
    message = ""
    try:
        rows = read(tmp_path)
        images = [rows.image(row) for row in range(len(rows.labels))]
    except DataError as error:
        message = str(error)
    else:
        assert len(images) == len(rows.labels)
    assert "\n" not in message


def test_an_array_that_no_memory_holds_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = np.zeros((5, 400, 500), np.uint8)
    np.savez_compressed(tmp_path / "data.npz", images=zeros, labels=LABELS)
    assert (tmp_path / "data.npz").stat().st_size < 10_000
    monkeypatch.setattr(npz, "available_memory", lambda: 1_900_000)
    unpacked: list[Any] = []
    original = np.lib.format.read_array
    monkeypatch.setattr(
        np.lib.format, "read_array", lambda *given, **more: unpacked.append(0) or original(*given, **more)
    )
    rows = read(tmp_path)
    with pytest.raises(DataError, match=r"'images' needs 0.0 GB of memory, and 0.0 GB are free: store it uncompressed"):
        rows.image(0)
    assert len(unpacked) == 1  # the labels
    monkeypatch.setattr(npz, "available_memory", lambda: 2_100_000)
    assert rows.image(0).size == (500, 400)
    np.savez(tmp_path / "data.npz", images=zeros, labels=LABELS)
    monkeypatch.setattr(npz, "available_memory", lambda: 0)
    assert read(tmp_path).image(0).size == (500, 400)


def test_the_memory_that_is_free_is_some_and_not_all() -> None:
    total = npz.os.sysconf("SC_PAGE_SIZE") * npz.os.sysconf("SC_PHYS_PAGES")
    assert 1 << 20 < npz.available_memory() <= total


def test_an_image_beyond_the_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=LABELS)
    rows = read(tmp_path)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 42)
    assert rows.image(4).size == (7, 6)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 41)
    with pytest.raises(DataError, match=r"row 4 .*: the image is too large, .*\(7x6 pixels, Pillow's limit is 41\)"):
        rows.image(4)


def test_rows_say_which_arrays_they_are_from(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", train_images=IMAGES, test_images=IMAGES, labels=LABELS)
    place = str((tmp_path / "data.npz").resolve())
    assert tuple(read(tmp_path, image="{split}_images").files()) == (f"{place}:train_images",)
    assert tuple(read(tmp_path, image="test_images", files=("[d]ata.npz",)).files()) == (f"{place}:test_images",)


def test_boolean_labels_and_labels_beyond_all_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=LABELS > 0)
    assert read(tmp_path).labels.tolist() == [0, 1, 1, 1, 0]
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=LABELS + 999_998)
    with pytest.raises(
        DataError, match=r"^label 1000000 at row 1 \(number 1 of 'images' in data.npz\): labels are class"
    ):
        read(tmp_path)

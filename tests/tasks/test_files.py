"""Parquet and arrow files, and the hub's parquet through a server on this machine."""

from __future__ import annotations

import io
import logging
import os
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitbench.errors import DataError, StoreError
from vitbench.tasks.catalog import load_task
from vitbench.tasks.sources import SOURCES
from vitbench.tasks.sources.files import open_parquet, read_parquet, rows_of
from vitbench.tasks.sources.rows import Rows, file_digest, text_digest
from vitbench.tasks.spec import TaskSpec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def table(labels: list[Any], **columns: Any) -> pa.Table:
    images = [{"bytes": png(10 * index), "path": None} for index in range(len(labels))]
    return pa.table({"image": images, "label": labels, **columns})


def write_task(folder: Path, train: pa.Table, test: pa.Table, *, extra: str = "", source: str = "") -> str:
    pq.write_table(train, folder / "train-00000-of-00001.parquet")
    pq.write_table(test, folder / "test-00000-of-00001.parquet")
    path = folder / "task.yaml"
    path.write_text(
        f"title: T\nsource: {{kind: parquet{source}}}\n"
        "splits: {train: {files: ['train-*.parquet']}, test: {files: ['test-*.parquet']}}\n" + extra
    )
    return str(path)


def test_parquet_images_and_labels(tmp_path: Path) -> None:
    task = load_task(write_task(tmp_path, table([0, 1, 2, 1]), table([2, 0])))
    assert task.split("train").labels.tolist() == [0, 1, 2, 1]
    assert task.num_classes == 3
    assert np.asarray(task.split("train").image(2))[0, 0].tolist() == [20, 0, 0]


def test_class_names_come_from_the_files(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.new("RGB", (4, 4))] * 2, "label": [0, 1]}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    (tmp_path / "t.yaml").write_text(
        "title: T\nsource: {kind: parquet}\nsplits: {train: {files: ['train-*']}, test: {files: ['test-*']}}\n"
    )
    assert list(load_task(str(tmp_path / "t.yaml")).class_names) == ["cat", "dog"]


def test_arrow_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = {"image": [{"bytes": png(5), "path": None}] * 3, "label": [0, 1, 1]}
        datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / split)
    (tmp_path / "t.yaml").write_text(
        "title: T\nsource: {kind: arrow}\nsplits: {train: {files: ['train/*.arrow']}, test: {files: ['test/*.arrow']}}\n"
    )
    task = load_task(str(tmp_path / "t.yaml"))
    assert task.split("test").labels.tolist() == [0, 1, 1]
    assert task.split("test").image(0).size == (4, 4)


@pytest.mark.parametrize(
    ("train", "extra", "source", "message"),
    [
        (
            table([0, 1]),
            "",
            ", label: lable",
            r"has no label column 'lable'; did you mean 'label'\? \(it has: image, label\)",
        ),
        (table([0, 1]), "", ", image: img", r"has no image column 'img'"),
        (
            table(["a", "b"]),
            "",
            "",
            r"the label column 'label' holds (large_)?string, not whole numbers from 0: number the classes",
        ),
        (table([0.0, 1.0]), "", "", r"the label column 'label' holds double, not whole numbers"),
        (table([0, None]), "", "", r"the label column 'label' is empty in 1 rows"),
        (table([0, -1]), "", "", r"row 1 \(train-00000.*\): the label is -1, and labels are whole numbers from 0"),
        (table([0, 5]), "num_classes: 3\n", "", r"label 5 at row 1 .* is outside 0 to 2"),
        (table([0, 1]), "num_classes: 3\n", "", r"has 2 classes where the task file expects 3: is 'label' the right"),
        (table([0, 0]), "num_classes: 2\n", "", r"has only one class in its train split"),
    ],
)
def test_bad_columns(tmp_path: Path, train: pa.Table, extra: str, source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_task(write_task(tmp_path, train, table([0, 1]), extra=extra, source=source))


def test_another_size_than_expected_says_both_numbers(tmp_path: Path) -> None:
    path = Path(write_task(tmp_path, table([0, 1]), table([0, 1])))
    path.write_text(path.read_text().replace("['test-*.parquet']", "['test-*.parquet'], size: 12345"))
    with pytest.raises(DataError, match=r"split 'test' has 2 images where the task file expects 12,345"):
        load_task(str(path))


def test_a_damaged_and_a_missing_file(tmp_path: Path) -> None:
    path = write_task(tmp_path, table([0, 1]), table([0, 1]))
    damaged = tmp_path / "test-00000-of-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DataError, match=r"test-00000-of-00001.parquet is damaged or no parquet file"):
        load_task(path)
    damaged.rename(tmp_path / "tset-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"split 'test': there is no file .*test-\*.parquet"):
        load_task(path)


def test_a_broken_image_is_named_by_row_and_file(tmp_path: Path) -> None:
    bad = pa.table({"image": [{"bytes": png(1), "path": None}, {"bytes": b"no image", "path": None}], "label": [0, 1]})
    task = load_task(write_task(tmp_path, table([0, 1]), bad))
    with pytest.raises(DataError, match=r"row 1 \(test-00000-of-00001.parquet\)"):
        task.split("test").image(1)


def read(folder: Path, data: pa.Table, *, names: tuple[str, ...] = (), **source: Any) -> Rows:
    """One split from a parquet file, as the source gives it."""
    pq.write_table(data, folder / "train.parquet")
    spec = TaskSpec(
        title="T",
        source={"kind": "parquet", **source},
        splits={"train": {"files": ("train.parquet",)}, "test": {"files": ("test.parquet",)}},
        class_names=names,
    )
    return read_parquet(spec, "train", folder)


def test_the_fingerprint_of_a_plain_task_is_what_it_was_before_rules(tmp_path: Path) -> None:
    rows = read(tmp_path, table([0, 1]))
    digest = file_digest(tmp_path / "train.parquet")
    assert rows.fingerprint == text_digest(["parquet", "image", "label", digest])


def test_the_fingerprint_follows_what_decides_labels_and_pixels(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    data = table([0, 1], right=[[0], [1, 0]])
    given: list[dict[str, Any]] = [
        {},
        {"label_rule": {"kind": "offset", "add": 1}},
        {"label_rule": {"kind": "offset", "add": 2}},
        {"label_rule": {"kind": "floor_divide", "by": 2}},
        {"pixel_scale": 2},
        {"pixel_scale": 3},
        {"hits": "right"},
        {"class_names_file": "names.txt"},
    ]
    found = [read(tmp_path, data, **source).fingerprint for source in given]
    (tmp_path / "names.txt").write_text("b\na\n")
    found.append(read(tmp_path, data, class_names_file="names.txt").fingerprint)
    assert len(set(found)) == len(found)


def test_rules_scale_and_hits_of_a_column(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        table([3, 4, 5], right=[[0, 1], [], [2]]),
        label_rule={"kind": "offset", "add": -3},
        pixel_scale=4,
        hits="right",
    )
    assert rows.labels.tolist() == [0, 1, 2]
    assert np.asarray(rows.image(2))[0, 0].tolist() == [80, 0, 0]
    assert rows.hits is not None
    assert rows.hits.counts().tolist() == [2, 0, 1]


def test_kitti_as_the_hub_keeps_it_through_a_task_file(tmp_path: Path) -> None:
    objects = datasets.Sequence(
        {
            "type": datasets.ClassLabel(names=["Car", "Van", "Truck", "Pedestrian"]),
            "location": datasets.Sequence(datasets.Value("float32"), 3),
        }
    )
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    rows = {
        "image": [{"bytes": png(0), "path": None}] * 3,
        "objects": [
            {"type": [3, 1], "location": [[0, 0, 2], [0, 0, 8]]},
            {"type": [], "location": []},
            {"type": [0], "location": [[0, 0, 8.5]]},
        ],
    }
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    path = tmp_path / "kitti.yaml"
    path.write_text(
        "title: K\nnum_classes: 4\nsource:\n  kind: parquet\n  label: objects\n  label_rule: {kind: threshold, "
        "thresholds: [-100, 8, 20, 999], field: location, item: 2, types: type, below: 3, sentinel: 1000}\n"
        "splits: {train: {files: [train.parquet], partial: true}, test: {files: [test.parquet]}}\n"
    )
    assert load_task(str(path)).train.labels.tolist() == [0, 3, 1]


def test_file_names_come_without_their_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    images = [{"bytes": pixels, "path": f"val/ILSVRC2012_val_{row:08d}.JPEG"} for row in range(100)]
    pq.write_table(pa.table({"image": images, "label": list(range(100))}), tmp_path / "train.parquet")
    data = open_parquet([tmp_path / "train.parquet"])
    spec = TaskSpec(
        title="T",
        source={"kind": "parquet"},
        splits={"train": {"files": ("train.parquet",)}, "test": {"files": ("test.parquet",)}},
    )
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    rows = rows_of(data, spec, [tmp_path / "train.parquet"], ["digest"])
    assert [rows.name(row) for row in (0, 99)] == ["ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00000099.JPEG"]
    assert len(rows.labels) == 100
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + pa.total_allocated_bytes() - before < len(pixels)
    assert rows.raw(99) == pixels


def test_images_without_a_name_have_none(tmp_path: Path) -> None:
    assert read(tmp_path, table([0, 1])).name(1) == ""
    bare = pa.table({"image": [png(0), png(30)], "label": [0, 1]})
    rows = read(tmp_path, bare)
    assert rows.name(1) == ""
    assert np.asarray(rows.image(1))[0, 0].tolist() == [30, 0, 0]


@pytest.mark.parametrize("column", [["a.png", "b.png"], [{"path": "a"}, {"path": "b"}], [[1], [2]]])
def test_an_image_column_without_image_files(tmp_path: Path, column: list[Any]) -> None:
    with pytest.raises(DataError, match=r"train.parquet: the image column 'image' holds .*, not image files"):
        read(tmp_path, pa.table({"image": column, "label": [0, 1]}))


def test_class_names_beside_the_data(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbflily of the valley\r\ncolt's foot\r\n\r\n")
    rows = read(tmp_path, table([0, 1]), class_names_file="names.txt")
    assert rows.class_names == ("lily of the valley", "colt's foot")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"a\n\nb\n", "names.txt", r"names.txt:2: a class has no name"),
        (b"\n", "names.txt", r"names.txt:1: a class has no name"),
        (b"\xff\xfe", "names.txt", r"the file of class names .*names.txt cannot be read"),
        (b"a\nb\n", "nmaes.txt", r"the file of class names .*nmaes.txt cannot be read"),
        (b"a\nb\n", "../names.txt", r"source.class_names_file: '../names.txt' climbs out of its folder"),
        (b"a\nb\n", "/names.txt", r"source.class_names_file: '/names.txt' climbs out of its folder"),
        (b"dog\ncat\n", "names.txt", r"names.txt has the classes of the task file in another order: label 0 is 'dog'"),
    ],
)
def test_bad_class_names(tmp_path: Path, content: bytes, name: str, message: str) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises((DataError, ValueError), match=message):
        read(tmp_path, table([0, 1]), names=("cat", "dog"), class_names_file=name)


def test_a_repository_with_another_order_of_classes_is_refused(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    images = [{"bytes": png(0), "path": None}] * 2
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    data.to_parquet(tmp_path / "other.parquet")
    stored = pq.read_table(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"train.parquet has the classes of the task file in another order: label 0"):
        read(tmp_path, stored, names=("cat", "dog"))
    assert read(tmp_path, stored, names=("dog", "cat")).class_names == ("dog", "cat")
    rule = {"kind": "offset", "add": 1}
    assert read(tmp_path, stored, label_rule=rule).class_names == ()


def test_hits_that_are_missing_or_outside_the_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.parquet has no hits column 'rihgt'; did you mean 'right'"):
        read(tmp_path, table([0, 1], right=[[0], [1]]), hits="rihgt")
    with pytest.raises(DataError, match=r"the hits column 'right' holds int64, not lists"):
        read(tmp_path, table([0, 1], right=[0, 1]), hits="right")


def test_a_file_that_two_patterns_take_is_refused(tmp_path: Path) -> None:
    path = Path(write_task(tmp_path, table([0, 1]), table([0, 1])))
    path.write_text(path.read_text().replace("['train-*.parquet']", "['train-*.parquet', 'tra*']"))
    with pytest.raises(DataError, match=r"split 'train' takes the file .*train-00000-of-00001.parquet twice"):
        load_task(str(path))


def keep_times(path: Path, data: pa.Table) -> None:
    """Write a parquet file anew so that only its content tells: `datasets` knows files by path and time of modification."""
    pq.write_table(data, path)
    os.utime(path, (1.6e9, 1.6e9))


def test_a_file_that_is_written_anew_gives_its_new_labels_and_images(tmp_path: Path) -> None:
    images = [{"bytes": png(10 * index), "path": None} for index in range(3)]
    path = tmp_path / "train.parquet"
    keep_times(path, pa.table({"image": images, "label": [0, 1, 2]}))
    digests = [file_digest(path)]
    first = open_parquet([path], digests)
    assert first["label"][:] == [0, 1, 2]
    keep_times(path, pa.table({"image": images[::-1], "label": [2, 0, 1]}))
    for given in (None, [file_digest(path)]):
        second = open_parquet([path], given)
        assert second["label"][:] == [2, 0, 1]
        assert second.data.column("image")[0].as_py()["bytes"] == png(20)
    # The first stays what it was for as long as it is held.
    assert first["label"][:] == [0, 1, 2]
    keep_times(path, pa.table({"image": images, "label": [0, 1, 2]}))
    assert open_parquet([path], digests)["label"][:] == [0, 1, 2]


def test_the_arrow_copy_lies_in_the_cache_of_vitbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITBENCH_CACHE", str(tmp_path / "mine"))
    read(tmp_path, table([0, 1]))
    read(tmp_path, table([0, 1]))
    assert len(list((tmp_path / "mine" / "arrow").iterdir())) == 1
    read(tmp_path, table([1, 0]))
    assert len(list((tmp_path / "mine" / "arrow").iterdir())) == 2
    (tmp_path / "full").write_text("no folder")
    monkeypatch.setenv("VITBENCH_CACHE", str(tmp_path / "full"))
    with pytest.raises(StoreError, match=r"the arrow copy of .*train.parquet cannot be written to .*; VITBENCH_CACHE"):
        read(tmp_path, table([1, 1]))


def test_shards_of_unlike_types_are_told_once(tmp_path: Path) -> None:
    path = Path(write_task(tmp_path, table([0, 1]), table([0, 1])))
    beyond = table([0, 1]).set_column(1, "label", pa.array([1, 2**63], pa.uint64()))
    pq.write_table(beyond, tmp_path / "train-00001-of-00001.parquet")
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign]
    logging.getLogger("datasets").addHandler(handler)
    before = datasets.logging.get_verbosity()
    try:
        with pytest.raises(DataError, match=r"the parquet files of this split cannot be read as one table: ") as caught:
            load_task(str(path))
    finally:
        logging.getLogger("datasets").removeHandler(handler)
    assert "\n" not in str(caught.value)
    assert datasets.logging.get_verbosity() == before
    assert not told


def test_rows_say_which_files_they_are_from(tmp_path: Path) -> None:
    data = table([0, 1])
    plain = read(tmp_path, data)
    assert tuple(plain.files()) == (str((tmp_path / "train.parquet").resolve()),)
    (tmp_path / "link").symlink_to(tmp_path)
    spelled = TaskSpec(
        title="T",
        source={"kind": "parquet", "path": str(tmp_path / "link")},
        splits={"train": {"files": ("./tr*.parquet",)}, "test": {"files": ("test.parquet",)}},
    )
    assert tuple(read_parquet(spelled, "train", tmp_path).files()) == tuple(plain.files())


def test_a_file_twice_by_two_names_is_refused(tmp_path: Path) -> None:
    pq.write_table(table([0, 1]), tmp_path / "train.parquet")
    (tmp_path / "twin.parquet").symlink_to("train.parquet")
    spec = TaskSpec(
        title="T",
        source={"kind": "parquet"},
        splits={"train": {"files": ("train.parquet", "twin.parquet")}, "test": {"files": ("test.parquet",)}},
    )
    with pytest.raises(DataError, match=r"takes the file .*twin.parquet twice, also as train.parquet"):
        read_parquet(spec, "train", tmp_path)


NAMES = [
    ("", "", r"splits.train: '' is no file name and no pattern"),
    ("", ".", r"splits.train: '.' is no file name and no pattern"),
    ("", "a**b", r"splits.train: 'a\*\*b' is no file name and no pattern"),
    ("", "a\0b", r"splits.train: 'a\\x00b' holds a NUL character"),
    ("", "a" * 300, r"…a+' cannot be looked up: file name too long"),
    ("a\0b", "a", r"source.path: 'a\\x00b' holds a NUL character"),
    ("~no-such-user/x", "a", r"source.path: '~no-such-user/x': nobody here has the home ~no-such-user"),
]


@pytest.mark.parametrize(("path", "name", "message"), NAMES)
@pytest.mark.parametrize("kind", ["parquet", "arrow", "webdataset", "npz", "cifar_binary"])
def test_names_that_no_disk_could_hold(tmp_path: Path, kind: str, path: str, name: str, message: str) -> None:
    spec = TaskSpec(
        title="T",
        source={"kind": kind, "path": path},
        splits={"train": {"files": (name,)}, "test": {"files": ("test",)}},
    )
    with pytest.raises(DataError, match=message) as caught:
        SOURCES.load(kind)(spec, "train", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_of_class_names_that_no_disk_could_hold(tmp_path: Path) -> None:
    for name, message in (("a\0b", r"class_names_file: 'a\\x00b' holds a NUL"), ("a" * 300, "File name too long")):
        with pytest.raises(DataError, match=message):
            read(tmp_path, table([0, 1]), class_names_file=name)


def test_boolean_labels_of_a_column(tmp_path: Path) -> None:
    assert read(tmp_path, table([False, True])).labels.tolist() == [0, 1]

"""Webdataset tars: samples, and every way in which a tar can be wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitbench.errors import DataError
from vitbench.tasks.catalog import load_task
from vitbench.tasks.sources.rows import Rows
from vitbench.tasks.sources.webdataset import read_webdataset, tar_members
from vitbench.tasks.spec import TaskSpec

Members = list[tuple[str, bytes]]


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def samples(labels: list[Any], extension: str = "png", first: int = 0) -> Members:
    return [
        member
        for row, label in enumerate(labels)
        for member in ((f"s{first + row:05d}.{extension}", png(10 * row)), (f"s{first + row:05d}.cls", b"%d" % label))
    ]


def write_tar(path: Path, members: Members, kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w:", format=kind) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def read(folder: Path, *, files: tuple[str, ...] = ("train-*.tar",), **source: Any) -> Rows:
    spec = TaskSpec(
        title="T",
        source={"kind": "webdataset", **source},
        splits={"train": {"files": files}, "test": {"files": ("test.tar",)}},
    )
    return read_webdataset(spec, "train", folder)


def test_shards_through_a_task_file(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-000001.tar", samples([2, 0], first=3))
    write_tar(tmp_path / "train-000000.tar", samples([0, 1, 2]))
    write_tar(tmp_path / "test.tar", samples([1, 2]))
    (tmp_path / "classnames.txt").write_text("ant\nbee\ncat\n")
    path = tmp_path / "t.yaml"
    path.write_text(
        "title: T\nsource: {kind: webdataset, class_names_file: classnames.txt}\nnum_classes: 3\n"
        "splits: {train: {files: ['train-*.tar'], size: 5}, test: {files: [test.tar]}}\n"
    )
    task = load_task(str(path))
    assert task.train.labels.tolist() == [0, 1, 2, 2, 0]
    assert list(task.class_names) == ["ant", "bee", "cat"]
    assert [np.asarray(task.train.image(row))[0, 0, 0] for row in range(5)] == [0, 10, 20, 0, 10]
    assert task.train.where(4) == "row 4 (train-000001.tar: s00004.png)"
    source, row = task.train.locate(3)
    assert source.name(row) == "s00003.png"


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_with_long_names_and_folders(tmp_path: Path, kind: int) -> None:
    folder = f"{'n' * 80}/{'m' * 60}"
    members = [(f"{folder}/a.png", png(7)), (f"{folder}/a.cls", b"1\n"), ("./b.PNG", png(9)), ("./b.cls", b" 0")]
    write_tar(tmp_path / "train-0.tar", members, kind)
    rows = read(tmp_path)
    assert rows.labels.tolist() == [1, 0]
    assert [np.asarray(rows.image(row))[0, 0, 0] for row in range(2)] == [7, 9]


def test_members_may_come_in_any_order_and_others_are_passed_over(tmp_path: Path) -> None:
    members = [
        ("b.cls", b"1"),
        ("README", b"text"),
        ("._a.png", b"resource fork"),
        ("a.json", b"{}"),
        ("a.cls", b"0"),
        ("a.png", png(5)),
        ("b.png", png(6)),
    ]
    path = write_tar(tmp_path / "train-0.tar", members)
    with tarfile.open(path, "a:") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    rows = read(tmp_path)
    assert rows.labels.tolist() == [1, 0]
    assert [np.asarray(rows.image(row))[0, 0, 0] for row in range(2)] == [6, 5]


def test_extensions_that_the_task_file_names(tmp_path: Path) -> None:
    members = [("a.left.png", png(1)), ("a.right.png", png(2)), ("a.azimuth", b"4"), ("a.cls", b"9")]
    write_tar(tmp_path / "train-0.tar", members)
    rows = read(tmp_path, image="webp|left.png", label="azimuth", label_rule={"kind": "floor_divide", "by": 2})
    assert rows.labels.tolist() == [2]
    assert np.asarray(rows.image(0))[0, 0, 0] == 1
    with pytest.raises(DataError, match=r"the key 'a' has no image .jpg\|.* \(it has: .left.png, .right.png, .azimuth"):
        read(tmp_path)


def test_many_threads_read_what_one_reads(tmp_path: Path) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"train-{shard}.tar", samples(list(range(20)), first=20 * shard))
    rows = read(tmp_path)
    expected = [rows.raw(row) for row in range(60)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(rows.raw, list(range(60)) * 5)) == expected * 5


def test_the_fingerprint_follows_content_order_and_settings(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", samples([0, 1]))
    first = read(tmp_path).fingerprint
    assert read(tmp_path).fingerprint == first
    found = {first, read(tmp_path, pixel_scale=2).fingerprint, read(tmp_path, image="png").fingerprint}
    write_tar(tmp_path / "train-0.tar", samples([1, 0]))
    found.add(read(tmp_path).fingerprint)
    write_tar(tmp_path / "train-1.tar", samples([1, 0], first=2))
    orders = (("train-0.tar", "train-1.tar"), ("train-1.tar", "train-0.tar"))
    found |= {read(tmp_path, files=files).fingerprint for files in orders}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("/a.png", png(0)), ("/a.cls", b"0")], r"holds '/a.png', a name that leads out of its folder"),
        ([("x/../../a.png", png(0))], r"holds 'x/../../a.png', a name that leads out of its folder"),
        ([*samples([0]), ("a.cls", b"0")], r"the key 'a' has no image .jpg\|jpeg\|.* \(it has: .cls\)"),
        ([*samples([0]), ("a.png", png(0))], r"the key 'a' has no label .cls \(it has: .png\)"),
        ([*samples([0]), *samples([0])], r"'s00000.png' is there twice: keys must differ"),
        ([*samples([0]), ("s00000.jpg", png(0))], r"the key 's00000' has several images \(.jpg, .png\)"),
        ([("a.png", png(0)), ("a.cls", b"cat")], r"'a.cls' holds 'cat', where a whole number is needed"),
        ([("a.png", png(0)), ("a.cls", b"1.5")], r"'a.cls' holds '1.5', where a whole number"),
        ([("a.png", png(0)), ("a.cls", b"\xff\xfe")], r"'a.cls' holds .* where a whole number"),
        ([("a.png", png(0)), ("a.cls", b"")], r"'a.cls' holds 0 bytes, where a whole number"),
        ([("a.png", png(0)), ("a.cls", b"1" * 10**5)], r"'a.cls' holds 100,000 bytes, where a whole number"),
        ([("a.png", png(0)), ("a.cls", b"-1")], r"row 0 \(train-0.tar: a.png\): the label is -1"),
        ([("README", b"text")], r"train-0.tar holds no samples: they are files KEY.jpg and KEY.cls"),
        ([], r"train-0.tar holds no samples"),
    ],
)
def test_bad_members_are_named_with_their_tar(tmp_path: Path, members: Members, message: str) -> None:
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert "train-0.tar" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "which is a link"),
        (tarfile.LNKTYPE, "which is a link"),
        (tarfile.CHRTYPE, "which is no plain file"),
        (tarfile.BLKTYPE, "which is no plain file"),
        (tarfile.FIFOTYPE, "which is no plain file"),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes, message: str) -> None:
    path = write_tar(tmp_path / "train-0.tar", samples([0]))
    entry = tarfile.TarInfo("a.png")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with tarfile.open(path, "a:") as tar:
        tar.addfile(entry)
    with pytest.raises(DataError, match=rf"train-0.tar holds 'a.png', {message}: such a tar is not read"):
        read(tmp_path)


@pytest.mark.parametrize(("pack", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_a_compressed_tar_is_to_be_unpacked(tmp_path: Path, pack: Callable[[bytes], bytes], kind: str) -> None:
    path = write_tar(tmp_path / "train-0.tar", samples([0]))
    path.write_bytes(pack(path.read_bytes()))
    with pytest.raises(DataError, match=rf"train-0.tar is compressed \({kind}\): unpack it to a plain .tar"):
        read(tmp_path)


def test_a_tar_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", samples([0, 1, 2])).read_bytes()
    content = len(whole.rstrip(b"\0"))
    end = -(-content // 512) * 512
    path = tmp_path / "train-0.tar"
    for length in (0, 1, 100, *range(511, end + 1, 128), end, end + 511):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"train-0.tar (is (damaged|cut off)|holds)"):
            read(tmp_path)
    # One block of zeros ends a tar; the rest is padding.
    path.write_bytes(whole[: end + 512])
    assert len(read(tmp_path).labels) == 3


def test_a_broken_header_does_not_end_a_tar(tmp_path: Path) -> None:
    """`tarfile` stops without a word there, and two samples would be lost."""
    path = write_tar(tmp_path / "train-0.tar", samples([0, 1, 2]))
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        place = tar.getmember("s00001.png").offset
    content[place + 150] ^= 1
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 2
    with pytest.raises(DataError, match=rf"train-0.tar is cut off or damaged after {place:,} bytes"):
        read(tmp_path)


@pytest.mark.parametrize("size", [-512, -1024, -1536])
def test_a_size_below_zero_ends_in_a_message(tmp_path: Path, size: int) -> None:
    """`tarfile` reads such a tar for ever and takes all memory (CVE-2025-8194)."""
    path = write_tar(tmp_path / "train-0.tar", samples([0]))
    content = bytearray(path.read_bytes())
    content[124:136] = size.to_bytes(12, "big", signed=True)
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"train-0.tar is damaged, .*'s00000.png' has the size {size:,}"):
        read(tmp_path)


def test_joined_tars_are_refused(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "one.tar", samples([0])).read_bytes()
    (tmp_path / "train-0.tar").write_bytes(one + one)
    with pytest.raises(DataError, match=r"train-0.tar goes on after its end: tars that are joined"):
        read(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_told_in_one_line_or_does_no_harm(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    members = [(f"{'é' * 60}/a.png", png(7)), (f"{'é' * 60}/a.cls", b"1")]
    path = write_tar(tmp_path / "fuzzed.tar", members, kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    message, found = "", []
    try:
        found = tar_members(path)
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    assert all(member.offset + member.size <= len(content) for member in found)


def test_what_does_not_belong_to_tars_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", samples([0]))
    with pytest.raises(DataError, match=r"source.hits means nothing for webdataset tars"):
        read(tmp_path, hits="real")
    with pytest.raises(DataError, match=r"there is no file .*trian.tar; did you mean train-0.tar"):
        read(tmp_path, files=("trian.tar",))
    (tmp_path / "train-1.tar").write_bytes(png(0))
    with pytest.raises(DataError, match=r"train-1.tar is damaged, cut off, or no tar"):
        read(tmp_path)


def test_a_tar_that_changes_under_the_run_is_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train-0.tar", samples([0, 1]))
    rows = read(tmp_path)
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match=r"row 1 \(train-0.tar: s00001.png\): the tar has changed since"):
        rows.image(1)
    path.unlink()
    with pytest.raises(DataError, match=r"row 0 \(train-0.tar: s00000.png\): the tar cannot be read: No such file"):
        rows.image(0)


def test_a_broken_image_is_named_by_row_tar_and_member(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", [*samples([0]), ("x.png", b"no image"), ("x.cls", b"1")])
    with pytest.raises(DataError, match=r"row 1 \(train-0.tar: x.png\): not an image"):
        read(tmp_path).image(1)


def test_rows_say_which_tars_they_are_from(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar"):
        write_tar(tmp_path / name, samples([0, 1]))
    expected = tuple(str((tmp_path / name).resolve()) for name in ("train-0.tar", "train-1.tar"))
    assert tuple(read(tmp_path).files()) == expected
    assert tuple(read(tmp_path, files=("./train-1.tar",)).files()) == expected[1:]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            b"1000000",
            r"^label 1000000 at row 1 \(train-0.tar: b.png\): labels are class numbers from 0, below 1,000,000$",
        ),
        (b"9" * 18, r"^label 999999999999999999 at row 1 "),
        (b"9" * 19, r"^label 9999999999999999999 at 'b.cls' of .*train-0.tar: labels are class numbers"),
        (b"9" * 60, r"^label 999999999999… \(60 digits\) at 'b.cls' of .*train-0.tar: labels are class numbers"),
        (b"9" * 5000, r"'b.cls' holds 5,000 bytes, where a whole number is needed"),
    ],
)
def test_a_label_beyond_all_classes(tmp_path: Path, label: bytes, message: str) -> None:
    members = [("a.png", png(0)), ("a.cls", b"0"), ("b.png", png(1)), ("b.cls", label)]
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(DataError, match=message):
        read(tmp_path)

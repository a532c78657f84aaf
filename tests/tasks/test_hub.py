"""Tasks on the hub, through the real client and a server on this machine: what is asked for, and what is believed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.hub_server import COMMIT, Fault, Hub, serve_hub, use_hub
from vitbench.errors import DataError, StoreError, VitbenchError
from vitbench.hub import set_offline
from vitbench.tasks.catalog import load_task
from vitbench.tasks.sources import hub_files, hub_transfer
from vitbench.tasks.sources.hub_files import Repository, obtain, pins, pins_file, repository_files
from vitbench.tasks.sources.hub_transfer import HubFile

REPO = "datasets/someone/shoes"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


def noise(seed: int, side: int = 64) -> bytes:
    """A PNG that does not compress: its size is that of its pixels."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, labels: list[int], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": noise(seed + row), "path": f"{seed + row}.png"} for row in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": labels}), path)


def write_shoes(folder: Path) -> None:
    """A data set as the hub has them: two train shards, two other splits, and what else lies in such a repository."""
    for shard in range(2):
        write_shard(folder / "data" / f"train-0000{shard}-of-00002.parquet", [0, 1, 0, 1], seed=10 * shard)
    write_shard(folder / "data" / "validation-00000-of-00001.parquet", [0, 1], seed=50)
    write_shard(folder / "data" / "test-00000-of-00001.parquet", [1, 0, 1], seed=70)
    (folder / "README.md").write_text("shoes")
    (folder / "names.txt").write_text("boot\nclog\n")
    (folder / "data" / "unrelated.bin").write_bytes(b"never fetched")


def task_file(folder: Path, *, revision: str = COMMIT, source: str = "", extra: str = "", **splits: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    named = {"train": "data/train-*", "validation": "data/validation-*", "test": "data/test-*"} | splits
    lines = "".join(f"  {name}: {{files: ['{files}']}}\n" for name, files in named.items())
    pinned = f", revision: {revision}" if revision else ""
    path = folder / "shoes.yaml"
    path.write_text(
        f"title: Shoes\nsource: {{kind: hub, repo: someone/shoes{pinned}{source}}}\nsplits:\n{lines}{extra}"
    )
    return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    write_shoes(tmp_path / "hub" / REPO)
    with serve_hub(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path / "home")
        yield hub


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(hub_transfer, "sleep", waited.append)
    return waited


@pytest.fixture
def task(tmp_path: Path) -> str:
    return task_file(tmp_path / "tasks")


def first_shard() -> str:
    return "data/train-00000-of-00002.parquet"


def blob_of(name: str) -> Path:
    return Path(os.path.realpath(Repository("someone/shoes", COMMIT).path(name)))


def test_a_task_reads_its_shards_in_order_and_asks_for_no_other_file(hub: Hub, task: str) -> None:
    loaded = load_task(task)
    assert loaded.train.labels.tolist() == [0, 1, 0, 1] * 2
    assert loaded.test.labels.tolist() == [1, 0, 1]
    expected = Image.open(io.BytesIO(noise(12)))
    assert np.array_equal(np.asarray(loaded.train.image(6)), np.asarray(expected))
    assert sorted(hub.files()) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    # (huggingface_hub itself asks for more, such as a register of programs that use it.)
    lists = [request for request in hub.log if "/api/datasets/" in request.path]
    assert [str(request) for request in lists] == [f"GET /api/{REPO}/tree/{COMMIT}"]
    loaded.split("validation")
    assert hub.files()[-1] == "validation-00000-of-00001.parquet"


def test_the_fingerprint_of_a_pinned_parquet_split_is_the_one_it_always_was(hub: Hub, task: str) -> None:
    names = [f"data/train-0000{shard}-of-00002.parquet" for shard in range(2)]
    parts = ["hub", "image", "label", f"someone/shoes@{COMMIT}", *names]
    source = load_task(task).train.source
    assert source is not None
    assert source.fingerprint == hashlib.sha256("\n".join(parts).encode()).hexdigest()


def test_what_was_loaded_once_is_loaded_again_without_any_request(hub: Hub, task: str) -> None:
    load_task(task)
    before = len(hub.log)
    load_task(task)
    set_offline(True)
    load_task(task)
    assert len(hub.log) == before


def test_offline_names_the_way_out_and_asks_nothing(hub: Hub, task: str) -> None:
    set_offline(True)
    with pytest.raises(
        DataError, match=r"someone/shoes@0123456 is not on this machine, and offline was asked for"
    ) as told:
        load_task(task)
    assert f"run `vitbench fetch --tasks {task}` where there is a network" in str(told.value)
    assert not hub.log
    set_offline(False)
    load_task(task)
    set_offline(True)
    with pytest.raises(DataError, match=r"validation-00000-of-00001\.parquet of the dataset someone/shoes"):
        load_task(task).split("validation")


def test_a_cache_that_another_program_filled_serves_whole_splits_only(
    hub: Hub, task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load_task(task)
    monkeypatch.setenv("VITBENCH_CACHE", str(tmp_path / "fresh"))
    set_offline(True)
    assert len(load_task(task).train) == 8
    # With a shard gone a glob would fit one file, which is not the split.
    Repository("someone/shoes", COMMIT).path(first_shard()).unlink()
    with pytest.raises(
        DataError, match="the list of files of the dataset someone/shoes@0123456 is not on this machine"
    ):
        load_task(task)


def test_a_long_list_is_read_to_its_end(hub: Hub, task: str) -> None:
    hub.page = 2
    assert len(load_task(task).train) == 8
    assert len([request for request in hub.log if "/tree/" in request.path]) == 4


def test_class_names_beside_the_data_are_fetched_too(hub: Hub, tmp_path: Path) -> None:
    loaded = load_task(task_file(tmp_path, source=", class_names_file: names.txt"))
    assert list(loaded.class_names) == ["boot", "clog"]
    assert "names.txt" in hub.files()


def test_webdataset_tars(hub: Hub, tmp_path: Path) -> None:
    for split, labels in (("train", [0, 1, 1]), ("test", [1, 0])):
        with tarfile.open(hub.root / REPO / f"{split}-000000.tar", "w") as tar:
            for row, label in enumerate(labels):
                for name, content in ((f"{row:03d}.png", noise(row)), (f"{row:03d}.cls", str(label).encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    text = f"title: W\nsource: {{kind: hub, repo: someone/shoes, revision: {COMMIT}, format: webdataset}}\n"
    (tmp_path / "w.yaml").write_text(
        text + "splits: {train: {files: ['train-*.tar']}, test: {files: ['test-*.tar']}}\n"
    )
    loaded = load_task(str(tmp_path / "w.yaml"))
    assert loaded.train.labels.tolist() == [0, 1, 1]
    assert loaded.test.image(1).size == (64, 64)
    assert hub.files() == ["train-000000.tar", "test-000000.tar"]


def test_a_glob_that_takes_test_files_for_train_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the splits 'train' and '\w+' both take the file data/"):
        load_task(task_file(tmp_path, train="data/*.parquet"))


def test_a_token_is_not_shown_to_the_host_that_has_the_content(hub: Hub, task: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "token").write_text("hf_secret")
    hub.gated.add(REPO)
    assert len(load_task(task).train) == 8
    content = hub.contents(".parquet")
    assert content
    assert not any(request.authorized for request in content)


# Pins of tasks that nobody has verified.


def test_an_unverified_task_is_pinned_to_what_its_first_fetch_finds(hub: Hub, tmp_path: Path) -> None:
    path = task_file(tmp_path, revision="", extra="unverified: true\n")
    first = load_task(path)
    assert pins() == {"someone/shoes": COMMIT}
    # main moves on, with other data; the pin stays.
    moved = tmp_path / "moved"
    write_shoes(moved)
    write_shard(moved / "data" / "test-00000-of-00001.parquet", [0, 0, 1, 1], seed=90)
    hub.commits[REPO] = {COMMIT: hub.root / REPO, OTHER: moved}
    again = load_task(path)
    assert len(again.test) == 3
    assert again.test.fingerprint == first.test.fingerprint
    set_offline(True)
    assert len(load_task(path).test) == 3
    set_offline(False)
    pins_file().unlink()
    renewed = load_task(path)
    assert len(renewed.test) == 4
    assert renewed.test.fingerprint != first.test.fingerprint
    assert pins() == {"someone/shoes": OTHER}


def test_content_that_two_commits_share_is_fetched_once(hub: Hub, task: str, tmp_path: Path) -> None:
    load_task(task)
    hub.commits[REPO] = {COMMIT: hub.root / REPO, OTHER: hub.root / REPO}
    before = len(hub.contents())
    load_task(task_file(tmp_path / "other", revision=OTHER))
    assert len(hub.contents()) == before


def test_an_unverified_task_without_a_pin_cannot_be_read_offline(hub: Hub, tmp_path: Path) -> None:
    set_offline(True)
    with pytest.raises(DataError, match="the newest commit of the dataset someone/shoes is not on this machine"):
        load_task(task_file(tmp_path, revision="", extra="unverified: true\n"))


@pytest.mark.parametrize("content", ["", "[]", '{"someone/shoes": "main"}'])
def test_damaged_pins_stop_rather_than_move(hub: Hub, tmp_path: Path, content: str) -> None:
    pins_file().parent.mkdir(parents=True)
    pins_file().write_text(content)
    with pytest.raises(StoreError, match=r"pins\.json.*remove the file"):
        load_task(task_file(tmp_path, revision="", extra="unverified: true\n"))


# What the hub refuses.


def test_a_gated_repository(hub: Hub, task: str) -> None:
    hub.gated.add(REPO)
    with pytest.raises(
        DataError, match="is gated: accept its terms on its page on the hub, then log in with `hf auth login`"
    ):
        load_task(task)
    assert len(hub.log) <= 3, "a refusal is not asked for again"


def test_a_refusal_without_a_reason(hub: Hub, task: str) -> None:
    hub.fail(".parquet", Fault(status=403))
    with pytest.raises(
        DataError, match=r"the hub refuses data/train-\S+ of the dataset someone/shoes@0123456 \(403\): log in"
    ):
        load_task(task)


def test_a_missing_repository(hub: Hub, tmp_path: Path) -> None:
    path = Path(task_file(tmp_path))
    path.write_text(path.read_text().replace("someone/shoes", "someone/boots"))
    with pytest.raises(DataError, match="someone/boots@0123456 does not exist on the hub, or is private"):
        load_task(str(path))


def test_a_deleted_commit(hub: Hub, task: str, tmp_path: Path) -> None:
    hub.commits[REPO] = {OTHER: hub.root / REPO}
    with pytest.raises(DataError, match="the pinned commit is gone from the hub; the task file must name another"):
        load_task(task)
    loose = task_file(tmp_path / "loose", revision="", extra="unverified: true\n")
    hub.commits[REPO] = {COMMIT: hub.root / REPO}
    load_task(loose)
    hub.commits[REPO] = {OTHER: hub.root / REPO}
    with pytest.raises(DataError, match=r"the commit that the first fetch found is gone.*pins\.json"):
        load_task(loose).split("validation")


def test_a_missing_file_lists_what_there_is(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no file like 'data/tset-\*' \(it has: README.md, data/test-00000"):
        load_task(task_file(tmp_path, test="data/tset-*"))


def test_a_list_that_climbs_out_of_its_folder_is_refused(hub: Hub, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import hub_server

    entry = hub_server._entry
    monkeypatch.setattr(hub_server, "_entry", lambda name, content: entry(f"../{name}", content))
    with pytest.raises(DataError, match=r"lists a file '\.\./README\.md' that cannot be stored safely"):
        load_task(task)


# Networks that fail.


def test_a_busy_hub_is_asked_again(hub: Hub, task: str, pauses: list[float]) -> None:
    hub.fail("tree", Fault(status=503), times=2)
    hub.fail(first_shard(), Fault(status=503, retry_after=3))
    hub.fail(first_shard(), Fault(status=429, retry_after=3600))
    assert len(load_task(task).train) == 8
    assert pauses == [1, 2, 3, hub_transfer.LONGEST_WAIT], "waits grow, and follow the server within bounds"


def test_a_hub_that_stays_busy_is_given_up(hub: Hub, task: str, pauses: list[float]) -> None:
    hub.fail(first_shard(), Fault(status=503), times=99)
    with pytest.raises(
        DataError, match=r"does not give data/train-00000\S+ of the dataset \S+ now \(503\): run the same"
    ):
        load_task(task)
    assert pauses == [1, 2, 4, 8]


def test_a_broken_connection_is_gone_on_from_where_it_broke(hub: Hub, task: str, pauses: list[float]) -> None:
    size = (hub.root / REPO / first_shard()).stat().st_size
    hub.fail(first_shard(), Fault(cut_after=size // 2))
    assert len(load_task(task).train) == 8
    requests = hub.contents(first_shard())
    assert [request.range for request in requests] == ["", f"bytes={size // 2}-"]
    assert sum(request.sent for request in requests) == size
    assert len(pauses) == 1


def test_many_cuts_are_borne_as_long_as_bytes_come(hub: Hub, task: str, pauses: list[float]) -> None:
    size = (hub.root / REPO / first_shard()).stat().st_size
    hub.fail(first_shard(), Fault(cut_after=size // 20), times=12)
    assert len(load_task(task).train) == 8
    assert len(hub.contents(first_shard())) == 13
    assert set(pauses) == {1.0}, "waits start anew when something came"


def test_a_half_download_of_a_killed_process_is_gone_on_with(hub: Hub, task: str, pauses: list[float]) -> None:
    size = (hub.root / REPO / first_shard()).stat().st_size
    hub.fail(first_shard(), Fault(cut_after=size // 2))
    hub.fail(first_shard(), Fault(cut_after=0), times=5)
    with pytest.raises(DataError, match="cannot be reached"):
        load_task(task)
    assert not Repository("someone/shoes", COMMIT).path(first_shard()).exists(), "half a file is no file"
    assert not list((Repository("someone/shoes", COMMIT).folder / "blobs").glob("[0-9a-f]" * 64))
    assert len(load_task(task).train) == 8
    requests = hub.contents(first_shard())
    assert requests[-1].range == f"bytes={size // 2}-"
    assert sum(request.sent for request in requests) < 2 * size


def test_a_server_without_ranges_sends_all_again(hub: Hub, task: str, pauses: list[float]) -> None:
    size = (hub.root / REPO / first_shard()).stat().st_size
    hub.fail(first_shard(), Fault(cut_after=size // 2))
    hub.fail(first_shard(), Fault(no_ranges=True))
    progress: list[int] = []
    obtain(Repository("someone/shoes", COMMIT), first_shard(), progress.append)
    assert sum(progress) == size
    assert blob_of(first_shard()).read_bytes() == (hub.root / REPO / first_shard()).read_bytes()


def test_a_slow_answer_is_an_answer(hub: Hub, task: str) -> None:
    hub.fail(first_shard(), Fault(delay=0.01))
    assert len(load_task(task).train) == 8


def test_no_network(hub: Hub, task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"the hub cannot be reached \(ConnectionRefusedError.*run `vitbench fetch --tasks"
    ):
        load_task(task)


def test_a_full_disk(hub: Hub, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_files, "download", full)
    with pytest.raises(StoreError, match="the disk is full; what was fetched before is kept"):
        load_task(task)


def test_a_cache_that_cannot_be_written_to(hub: Hub, task: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hub").write_text("a file where a folder should be")
    with pytest.raises(VitbenchError, match="cannot be written to"):
        load_task(task)


def test_two_at_once_fetch_a_file_once(hub: Hub, task: str) -> None:
    hub.fail(first_shard(), Fault(delay=0.02))
    repository = Repository("someone/shoes", COMMIT)
    repository_files(repository)
    threads = [threading.Thread(target=obtain, args=(repository, first_shard())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.contents(first_shard())) == 1
    assert blob_of(first_shard()).read_bytes() == (hub.root / REPO / first_shard()).read_bytes()


# Content that is not what it should be.


@pytest.mark.parametrize("kind", ["altered", "short", "long", "empty"])
def test_wrong_content_is_never_taken(hub: Hub, task: str, kind: str) -> None:
    content = (hub.root / REPO / first_shard()).read_bytes()
    wrong = {
        "altered": content[:-1] + bytes([content[-1] ^ 1]),
        "short": content[:-1],
        "long": content + b"x",
        "empty": b"",
    }[kind]
    hub.fail(first_shard(), Fault(content=wrong), times=9)
    with pytest.raises(DataError, match="comes damaged from the hub") as told:
        load_task(task)
    expected = "sha256" if kind == "altered" else f"{len(content):,}"
    assert expected in str(told.value)
    assert len(hub.contents(first_shard())) == 2, "once more from the start, then it is told"
    blobs = Repository("someone/shoes", COMMIT).folder / "blobs"
    assert not list(blobs.iterdir()), "nothing of it is kept"


def test_content_that_was_wrong_once_is_fetched_again(hub: Hub, task: str) -> None:
    hub.fail(first_shard(), Fault(content=b"an error page"))
    assert len(load_task(task).train) == 8


def test_a_small_file_is_checked_by_gits_hash(hub: Hub, tmp_path: Path) -> None:
    path = task_file(tmp_path, source=", class_names_file: names.txt")
    hub.fail("names.txt", Fault(content=b"clog\nboot\n"), times=2)
    with pytest.raises(DataError, match=r"names.txt .* comes damaged from the hub: its git sha1 is"):
        load_task(path)
    load_task(path)
    place = blob_of("names.txt")
    place.write_text("clog\nboot\n")
    with pytest.raises(DataError, match=r"names.txt .* is damaged in the cache: its git sha1"):
        load_task(path)


@pytest.mark.parametrize("lists", [True, False])
def test_a_file_that_was_altered_in_the_cache_is_removed(
    hub: Hub, task: str, lists: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load_task(task)
    if not lists:
        monkeypatch.setenv("VITBENCH_CACHE", str(tmp_path / "fresh"))
    place = blob_of(first_shard())
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    set_offline(True)
    with pytest.raises(
        DataError, match=r"is damaged in the cache: its sha256 .* it has been removed: run the same command"
    ):
        load_task(task)
    assert not place.exists()
    set_offline(False)
    assert len(load_task(task).train) == 8
    assert len(hub.contents(first_shard())) == 2


def test_a_file_that_lost_its_end_in_the_cache_is_told_by_its_size(hub: Hub, task: str) -> None:
    load_task(task)
    with blob_of(first_shard()).open("rb+") as handle:
        handle.truncate(100)
    with pytest.raises(DataError, match=r"damaged in the cache: it has 100 bytes where [\d,]+ are expected"):
        load_task(task)


def test_a_link_to_nothing_is_fetched_again(hub: Hub, task: str) -> None:
    load_task(task)
    blob_of(first_shard()).unlink()
    assert len(load_task(task).train) == 8


def test_a_cache_without_links(hub: Hub, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    load_task(task)
    place = Repository("someone/shoes", COMMIT).path(first_shard())
    assert not place.is_symlink()
    before = len(hub.log)
    load_task(task)
    assert len(hub.log) == before
    place.write_bytes(b"x" * place.stat().st_size)
    with pytest.raises(DataError, match="is damaged in the cache"):
        load_task(task)


def test_checksums_are_read_once_for_a_file_that_stays_as_it_is(
    hub: Hub, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.tasks.sources import digests

    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1.0)
    load_task(task)
    monkeypatch.setattr(digests, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    load_task(task)


def test_the_file_of_another_program_is_found(hub: Hub, task: str) -> None:
    from huggingface_hub import hf_hub_download

    for name in (first_shard(), first_shard().replace("00000-", "00001-"), "data/test-00000-of-00001.parquet"):
        hf_hub_download("someone/shoes", name, repo_type="dataset", revision=COMMIT)
    before = len(hub.contents())
    assert len(load_task(task).train) == 8
    assert len(hub.contents()) == before


def test_another_program_finds_our_file(hub: Hub, task: str) -> None:
    from huggingface_hub import hf_hub_download

    load_task(task)
    set_offline(True)
    found = hf_hub_download("someone/shoes", first_shard(), repo_type="dataset", revision=COMMIT)
    assert Path(found).read_bytes() == (hub.root / REPO / first_shard()).read_bytes()


@settings(max_examples=40)
@given(content=st.binary(max_size=300), change=st.integers(0, 299), by=st.integers(1, 255))
def test_any_changed_byte_is_seen(
    content: bytes, change: int, by: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(content)
    sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    for digest in (hashlib.sha256(content).hexdigest(), sha1):
        wanted = HubFile(len(content), digest)
        path.write_bytes(content)
        assert not hub_transfer.damage(path, wanted)
        if content:
            changed = bytearray(content)
            changed[change % len(content)] ^= by
            path.write_bytes(changed)
            assert hub_transfer.damage(path, wanted)


def test_gits_own_hash_of_a_known_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    # `printf 'hello\n' | git hash-object --stdin`
    assert hub_transfer.git_digest(tmp_path / "a") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_list_that_cannot_be_read_is_asked_for_again(hub: Hub, task: str) -> None:
    load_task(task)
    lists = list((Path(os.environ["VITBENCH_CACHE"]) / "hub").glob("*.json"))
    assert len(lists) == 1
    assert set(json.loads(lists[0].read_text())) >= {first_shard(), "README.md"}
    lists[0].write_text("{")
    Repository("someone/shoes", COMMIT).path(first_shard()).unlink()
    assert len(load_task(task).train) == 8


# Answers that are no hub's.

PAGE = b"<!doctype html><title>Welcome to our Wi-Fi</title>"
ENTRY = {"type": "file", "path": "data/a.parquet", "oid": "0" * 40, "size": 3}
NO_LISTS = {
    "a page": PAGE,
    "nothing": b"",
    "another code": b"\xff\xfe\x00",
    "half a list": json.dumps([ENTRY]).encode()[:-9],
    "an object": b"{}",
    "an error": b'{"error": "please log in"}',
    "null": b"null",
    "names": b'["data/train-00000-of-00002.parquet"]',
    "numbers": b"[1]",
    "no path": json.dumps([{**ENTRY, "path": ""}]).encode(),
    "no size": json.dumps([{"type": "file", "path": "a", "oid": "0" * 40}]).encode(),
    "below nothing": json.dumps([{**ENTRY, "size": -1}]).encode(),
    "no digest": json.dumps([{**ENTRY, "oid": "../x"}]).encode(),
    "no large digest": json.dumps([{**ENTRY, "lfs": {"size": 3}}]).encode(),
    "a large text": json.dumps([{**ENTRY, "lfs": "yes"}]).encode(),
    "another type": json.dumps([{**ENTRY, "type": "login"}]).encode(),
    "deep": b"[" * 100_000,
}


def kept_lists() -> list[Path]:
    return list((Path(os.environ["VITBENCH_CACHE"]) / "hub").glob("*"))


@pytest.mark.parametrize("kind", NO_LISTS)
def test_a_list_that_is_no_hubs_is_told_and_never_kept(hub: Hub, task: str, kind: str) -> None:
    hub.fail("tree", Fault(content=NO_LISTS[kind]))
    with pytest.raises(DataError) as told:
        load_task(task)
    assert str(told.value) == (
        "the hub's answer about the list of files of the dataset someone/shoes@0123456 is not what a hub says: is there a "
        "proxy or a login page in between?"
    )
    assert not kept_lists()
    assert len(load_task(task).train) == 8, "the next answer is a hub's"


@pytest.mark.parametrize("content", [b"[]", b'[{"type": "directory", "oid": "00", "size": 0, "path": "data"}]'])
def test_an_empty_list_is_never_kept(hub: Hub, task: str, content: bytes) -> None:
    hub.fail("tree", Fault(content=content))
    with pytest.raises(
        DataError, match="the hub lists no files of the dataset someone/shoes@0123456: is there a proxy"
    ):
        load_task(task)
    assert not kept_lists()
    assert len(load_task(task).train) == 8


def test_a_list_whose_second_page_is_no_list_is_not_kept_in_part(hub: Hub, task: str) -> None:
    hub.page = 3
    hub.fail("tree", Fault())
    hub.fail("tree", Fault(content=PAGE))
    with pytest.raises(DataError, match="is not what a hub says"):
        load_task(task)
    assert not kept_lists()


@pytest.mark.parametrize(
    "following", ["{endpoint}/api/datasets/someone/shoes/tree/{commit}?again=1", "ftp://x/y", "http://[/"]
)
def test_a_list_that_goes_round_or_nowhere_ends(
    hub: Hub, task: str, following: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import hub_server

    send = hub_server._Handler._send
    link = f'<{following.format(endpoint=hub.endpoint, commit=COMMIT)}>; rel="next"'

    def sending(self: Any, status: int, content: bytes, headers: Any = None, fault: Any = None) -> None:
        send(self, status, content, {"Link": link} if "/tree/" in self.path else headers, fault)

    monkeypatch.setattr(hub_server._Handler, "_send", sending)
    with pytest.raises(DataError, match="is not what a hub says"):
        load_task(task)
    assert len([request for request in hub.log if "/tree/" in request.path]) <= 2


NO_COMMITS = [PAGE, b"", b"{}", b"[]", b"null", b'{"sha": null}', b'{"sha": "main"}', b'{"id": 3, "sha": 5}']


@pytest.mark.parametrize("content", NO_COMMITS, ids=lambda content: content.decode()[:20])
def test_a_commit_that_is_none_is_told_and_never_pinned(hub: Hub, tmp_path: Path, content: bytes) -> None:
    path = task_file(tmp_path, revision="", extra="unverified: true\n")
    hub.fail("revision", Fault(content=content))
    with pytest.raises(
        DataError,
        match=r"^the hub's answer about the newest commit of the dataset someone/shoes is not what a hub says",
    ):
        load_task(path)
    assert pins() == {}
    load_task(path)
    assert pins() == {"someone/shoes": COMMIT}


@pytest.mark.parametrize("content", [b"[]", b'"no"', b"3", b'{"errors": [3]}', b'{"errors": 3}', b"\xff\xfe\x00", PAGE])
@pytest.mark.parametrize(
    ("status", "expected"), [(502, r"now \(502\)"), (403, r"refuses the list of files .* \(403\)")]
)
def test_a_refusal_in_words_that_no_hub_uses(
    hub: Hub, task: str, pauses: list[float], content: bytes, status: int, expected: str
) -> None:
    hub.fail("tree", Fault(status=status, content=content), times=9)
    with pytest.raises(DataError, match=expected):
        load_task(task)
    assert len(pauses) == (4 if status == 502 else 0)


KEPT = [
    "{}",
    "[]",
    '{"a": 3}',
    '{"a": [3]}',
    '{"a": [-1, "%s"]}',
    '{"a": [1, "x"]}',
    '{"../a": [1, "%s"]}',
    '{".": [1, "%s"]}',
]


@pytest.mark.parametrize("content", KEPT)
def test_a_kept_list_that_was_never_a_hubs_is_asked_for_again(hub: Hub, task: str, content: str) -> None:
    repository = Repository("someone/shoes", COMMIT)
    repository_files(repository)
    (place,) = kept_lists()
    place.write_text(content.replace("%s", "0" * 40))
    assert len(load_task(task).train) == 8
    assert len([request for request in hub.log if "/tree/" in request.path]) == 2
    assert first_shard() in json.loads(place.read_text())

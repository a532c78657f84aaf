"""Fetching what tasks need: which files, how many bytes, and what is proved of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import COMMIT, Fault, Hub, serve_hub, use_hub
from tests.tasks.test_hub import REPO, blob_of, first_shard, task_file, write_shard, write_shoes
from vitbench.errors import StoreError
from vitbench.hub import set_offline
from vitbench.tasks import fetch as fetching
from vitbench.tasks.catalog import load_task
from vitbench.tasks.fetch import FetchItem, check_space, fetch, plan
from vitbench.tasks.sources import hub_transfer
from vitbench.tasks.sources.hub_files import Repository
from vitbench.tasks.task import TaskOptions

TUNED = "evaluation: {train: both, test: test, tune_train: train, tune_validation: validation}\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    write_shoes(tmp_path / "hub" / REPO)
    with serve_hub(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path / "home")
        yield hub


@pytest.fixture
def task(tmp_path: Path) -> str:
    return task_file(tmp_path / "tasks")


def selected(folder: Path) -> str:
    """A task whose train split is selected from two others, as VTAB's are."""
    path = Path(task_file(folder))
    both = "  both: {select: 'train[:4]+validation[:1]', partial: true}\nevaluation:"
    path.write_text(path.read_text() + TUNED.replace("evaluation:", both))
    return str(path)


def size(hub: Hub, *names: str) -> int:
    return sum((hub.root / REPO / "data" / f"{name}.parquet").stat().st_size for name in names)


def test_a_plan_has_the_files_and_sizes_of_the_splits_in_use_and_fetches_nothing(hub: Hub, task: str) -> None:
    planned = plan([task])
    shards = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
    assert [item.file for item in planned.items] == [f"data/{name}.parquet" for name in shards]
    assert [item.splits for item in planned.items] == [("train",), ("train",), ("test",)]
    assert planned.bytes == planned.to_fetch == size(hub, *shards)
    assert not hub.contents(".parquet")


def test_a_selection_means_the_stored_splits_behind_it(hub: Hub, tmp_path: Path) -> None:
    planned = plan([selected(tmp_path)])
    assert {item.splits for item in planned.items} == {("train",), ("validation",), ("test",)}
    only = plan([selected(tmp_path)], ["both[:2]"])
    assert {item.splits for item in only.items} == {("train",), ("validation",)}
    moved = plan([selected(tmp_path)], options=TaskOptions(train_split="train[:2]", test_split="test"))
    assert moved.tasks[0].splits == ("train[:2]", "test", "train", "validation")


def test_one_split_does_not_pull_the_others(hub: Hub, task: str) -> None:
    (done,) = fetch(plan([task], ["test"]))
    assert hub.files() == ["test-00000-of-00001.parquet"]
    assert (done.images, done.classes, done.error) == ({"test": 3}, 2, "")


def test_what_is_fetched_loads_offline_without_any_request(hub: Hub, tmp_path: Path) -> None:
    path = selected(tmp_path)
    planned = plan([path])
    came: list[int] = []
    (done,) = fetch(planned, lambda item, count: came.append(count))
    assert sum(came) == planned.bytes
    assert (done.images, done.classes, done.error) == ({"both": 5, "test": 3, "train": 8, "validation": 2}, 2, "")
    set_offline(True)
    before = len(hub.log)
    loaded = load_task(path)
    assert loaded.tuning_splits() is not None
    assert loaded.train.image(4).size == (64, 64)
    again = plan([path])
    assert again.to_fetch == 0
    assert all(item.cached for item in again.items)
    assert fetch(again) == [done]
    assert len(hub.log) == before


def test_a_file_that_tasks_share_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    one, two = (
        task_file(tmp_path / "one"),
        task_file(tmp_path / "two", test="data/validation-*", validation="data/test-*"),
    )
    Path(two).rename(Path(two).with_name("boots.yaml"))
    planned = plan([one, str(Path(two).with_name("boots.yaml"))])
    shared = [item for item in planned.items if item.tasks == ("shoes", "boots")]
    assert [item.splits for item in shared] == [("train",), ("train",)]
    assert len(planned.items) == 4
    assert len(planned.of("boots")) == 3
    assert not any(done.error for done in fetch(planned))
    assert len(hub.contents(".parquet")) == 4


def test_a_task_that_fails_does_not_stop_the_others(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_transfer, "sleep", lambda seconds: None)
    good = task_file(tmp_path / "good")
    gone = Path(task_file(tmp_path / "gone"))
    gone.write_text(gone.read_text().replace("someone/shoes", "someone/boots"))
    gone = gone.rename(gone.with_name("gone.yaml"))
    wrong = Path(
        task_file(tmp_path / "wrong", extra="num_classes: 3\n", test="data/validation-*", validation="data/test-*")
    )
    wrong = wrong.rename(wrong.with_name("wrong.yaml"))
    hub.fail("test-00000-of-00001.parquet", Fault(status=503), times=9)
    results = {done.task: done for done in fetch(plan([str(gone), str(wrong), "digits", good, "nothing.yaml"]))}
    assert "someone/boots@0123456 does not exist" in results["gone"].error
    assert "has 2 classes where the task file expects 3" in results["wrong"].error
    assert "does not give data/test-00000" in results["shoes"].error
    assert "there is no task file" in results["nothing.yaml"].error
    assert results["builtin/digits"].notes == ("nothing to fetch",)


def test_files_that_only_failed_tasks_need_are_not_fetched(hub: Hub, task: str) -> None:
    hub.gated.add(REPO)
    (done,) = fetch(plan([task]))
    assert "is gated" in done.error
    assert len([request for request in hub.log if "/resolve/" in request.path]) == 1


def test_an_unknown_split_is_the_tasks_error(hub: Hub, task: str) -> None:
    planned = plan([task, "digits"], ["tset"])
    assert "unknown split 'tset'; did you mean 'test'?" in planned.tasks[0].error
    assert not planned.items


def test_wrong_sizes_are_found_in_what_was_fetched(hub: Hub, tmp_path: Path) -> None:
    path = Path(task_file(tmp_path))
    path.write_text(path.read_text().replace("['data/test-*']", "['data/test-*'], size: 4"))
    whole, part = fetch(plan([str(path)])), fetch(plan([str(path)], ["test"]))
    for (done,) in (whole, part):
        assert "split 'test' has 3 images where the task file expects 4" in done.error
    (accepted,) = fetch(plan([str(path)], options=TaskOptions(accept_sizes=True)))
    assert not accepted.error
    assert "has 3 images" in accepted.notes[0]


def test_labels_out_of_range_are_found_in_a_single_split(hub: Hub, tmp_path: Path) -> None:
    write_shard(hub.root / REPO / "data" / "test-00000-of-00001.parquet", [0, 5])
    (done,) = fetch(plan([task_file(tmp_path, extra="num_classes: 2\n")], ["test"]))
    assert "has labels from 0 to 5 where the task file expects 2 classes" in done.error


def test_an_unverified_task_tells_what_was_found(hub: Hub, tmp_path: Path) -> None:
    planned = plan([task_file(tmp_path, revision="", extra="unverified: true\n")])
    assert planned.tasks[0].pinned
    (done,) = fetch(planned)
    assert done.notes == (
        f"unverified until now: found train 8, test 3 images of 2 classes; pinned to commit {COMMIT}",
    )


def test_an_interrupted_fetch_goes_on_where_it_stopped(hub: Hub, task: str) -> None:
    class Stop(KeyboardInterrupt):
        pass

    hub.fail(first_shard(), Fault(delay=0.01))
    came = 0

    def stop(item: FetchItem, count: int) -> None:
        nonlocal came
        came += count
        if came > 20_000:
            raise Stop

    with pytest.raises(Stop):
        fetch(plan([task]), stop)
    again = plan([task])
    assert 20_000 < again.items[0].there == again.bytes - again.to_fetch < again.items[0].bytes
    assert not again.items[0].cached
    assert not fetch(again)[0].error
    _, second = hub.contents(first_shard())
    assert second.range == f"bytes={again.items[0].there}-"
    assert second.sent == again.items[0].bytes - again.items[0].there


def test_a_damaged_file_is_fetched_anew(hub: Hub, task: str) -> None:
    fetch(plan([task]))
    place = blob_of(first_shard())
    place.write_bytes(b"x" * place.stat().st_size)
    (done,) = fetch(plan([task]))
    assert not done.error
    assert len(hub.contents(first_shard())) == 2
    assert blob_of(first_shard()).read_bytes() == (hub.root / REPO / first_shard()).read_bytes()


def test_offline_a_plan_says_what_is_missing(hub: Hub, task: str) -> None:
    set_offline(True)
    assert "is not on this machine, and offline was asked for" in plan([task]).tasks[0].error
    set_offline(False)
    fetch(plan([task], ["test"]))
    set_offline(True)
    before = len(hub.log)
    (done,) = fetch(plan([task]))
    assert "train-00000-of-00002.parquet of the dataset someone/shoes@0123456 is not on this machine" in done.error
    assert len(hub.log) == before


def test_a_disk_that_is_too_small_is_told_before_anything_comes(
    hub: Hub, task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned = plan([task])
    usage = shutil.disk_usage(tmp_path)
    twice = 2 * planned.bytes
    for free, enough in ((twice, True), (twice - 1, False)):
        monkeypatch.setattr(fetching.shutil, "disk_usage", lambda place, free=free: usage._replace(free=free))
        if enough:
            check_space(planned)
        else:
            with pytest.raises(StoreError, match=r"[\d.]+ kB are needed below .*, and [\d.]+ kB are free: make room"):
                check_space(planned)


def test_a_repository_that_is_there_in_part_counts_the_rest(hub: Hub, task: str) -> None:
    fetch(plan([task], ["test"]))
    planned = plan([task])
    assert planned.bytes - planned.to_fetch == size(hub, "test-00000-of-00001")
    assert [item.cached for item in planned.items] == [False, False, True]
    assert planned.items[2].repository == Repository("someone/shoes", COMMIT)


def named(folder: Path, name: str, repo: str = "someone/shoes", extra: str = "") -> str:
    path = Path(task_file(folder / name, extra=extra))
    path.write_text(path.read_text().replace("someone/shoes", repo))
    return str(path.rename(path.with_name(f"{name}.yaml")))


@pytest.mark.parametrize("content", [b"<html>", b"", b"{}", b"[]", b'["x"]'])
def test_an_answer_that_is_no_hubs_is_one_tasks_error(hub: Hub, tmp_path: Path, content: bytes) -> None:
    write_shoes(hub.root / "datasets" / "someone" / "boots")
    hub.fail("tree", Fault(content=content))
    bad, good = fetch(plan([named(tmp_path, "shoes"), named(tmp_path, "boots", "someone/boots")]))
    assert "someone/shoes@0123456" in bad.error
    assert "is there a proxy" in bad.error
    assert "\n" not in bad.error
    assert (good.error, good.images) == ("", {"train": 8, "test": 3})
    (again,) = fetch(plan([named(tmp_path, "shoes")]))
    assert not again.error, "what was answered before is not kept"


def test_without_a_network_the_task_files_sizes_are_the_estimate(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = named(tmp_path, "shoes", extra="download_bytes: 1234567\n")
    assert (plan([path]).tasks[0].estimate, plan([path]).estimated) == (None, 0), "the hub knows better"
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "elsewhere")
    planned = plan([path, named(tmp_path, "boots", "someone/boots"), "digits"])
    assert [task.estimate for task in planned.tasks] == [1234567, None, None]
    assert planned.estimated == 1234567
    assert planned.tasks[0].stored == ("train", "test")
    assert "cannot be reached" in planned.tasks[0].error
    # The task file states the size of train and test together, and says nothing of other splits.
    for splits, expected in ((["train", "test"], 1234567), (["test"], None), (["validation"], None), (["tset"], None)):
        assert plan([path], splits).tasks[0].estimate == expected

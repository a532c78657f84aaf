from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

import vitbench
from tests.records.test_store import PREDICTIONS, make_record
from vitbench.errors import StoreError, UsageError, VitbenchError
from vitbench.features import cache
from vitbench.features.store import FeatureStore
from vitbench.records import filesystem, mirror, remote
from vitbench.records.atomic import check_writable, write_text
from vitbench.records.identity import key
from vitbench.records.predictions import read_predictions
from vitbench.records.store import ResultStore

IDENTITY = {"weights": "abcd"}
ROWS = np.arange(3)
FEATURES = {"cls": torch.arange(6.0).reshape(3, 2)}

Machine = Callable[[str], Path]
"""Name of a machine to its mirror of the URL."""


class Flaky(MemoryFileSystem):  # type: ignore[misc]
    """A file system in memory whose puts stop halfway as often as it is told, and whose answers may take long."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures: ClassVar[list[Exception]] = []
    gets: ClassVar[list[str]] = []
    slow: ClassVar[float] = 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("flaky://")))

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        if not self.failures:
            return super().put_file(lpath, rpath, **options)
        content = Path(lpath).read_bytes()
        self.pipe_file(rpath, content[: len(content) // 2])
        raise self.failures.pop(0)

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        self.gets.append(rpath)
        super().get_file(rpath, lpath, **options)

    def find(self, path: str, *positions: Any, **options: Any) -> Any:
        time.sleep(self.slow)
        return super().find(path, *positions, **options)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(filesystem, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(remote, "_MIRRORS", {})
    yield
    for kind in (MemoryFileSystem, Flaky):
        kind.store.clear()
    Flaky.failures.clear()
    Flaky.gets.clear()


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path / 'shared'}" if request.param == "file" else "memory://runs"


def machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> Machine:
    def machine(name: str) -> Path:
        """Attach the URL as a process of a machine of its own, or a new process of one that there was, would."""
        monkeypatch.setenv("VITBENCH_CACHE", str(tmp_path / name))
        remote._MIRRORS.pop(str(remote.mirror_of(url)))
        return remote.output_folder(url)

    return machine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> Machine:
    return machines(monkeypatch, tmp_path, url)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return machines(monkeypatch, tmp_path, "flaky://runs")


def store(out: Path) -> FeatureStore:
    return FeatureStore(out, "vit", "paper/cifar10", "train", IDENTITY)


def at(url: str) -> set[str]:
    """What lies at a URL."""
    return set(filesystem.RemoteFolder(url).listing())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("s3://bucket/runs", "s3://bucket/runs"),
        ("S3://bucket//runs/", "s3://bucket/runs"),
        (Path("s3://bucket/runs"), "s3://bucket/runs"),
        (Path("gs:/bucket"), "gs://bucket"),
        (Path("file:///shared/x"), "file:///shared/x"),
        ("file:///shared/x/", "file:///shared/x"),
        ("local:///shared/x", "file:///shared/x"),
        (Path("memory://x"), "memory://x"),
        ("hf:/models/vit", None),
        ("results/runs", None),
        (Path("/shared/x"), None),
        (Path("C:/runs"), None),
        ("timm:vit_base_patch16_224", None),
    ],
)
def test_what_is_a_url(given: str | Path, meant: str | None) -> None:
    assert filesystem.url_in(given) == meant


def test_a_folder_whose_name_looks_like_a_url_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "runs").mkdir(parents=True)
    assert remote.output_folder(Path("s3:/runs")) == Path("s3:/runs")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("s3://", "names no folder"),
        ("s3://bucket/../other", "names no folder"),
        ("mem0ry://runs", "unknown protocol 'mem0ry'; did you mean 'memory'"),
        ("sftp://me:secret@machine/runs", r"a password in the URL sftp://…@machine/…"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_in_one_line(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        remote.output_folder(given)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"s3://bucket/runs needs the package s3fs.* pip install s3fs"):
        remote.output_folder("s3://bucket/runs")


def test_a_record_is_written_through_and_another_machine_sees_it(machine: Machine, url: str) -> None:
    record = make_record()
    ResultStore(machine("a")).write(record, PREDICTIONS)
    assert {name.split("/")[-1] for name in at(url)} == {f"{record.key}.json", f"{record.key}.parquet"}
    there = machine("b")
    assert ResultStore(there).read(record.key) == record
    assert vitbench.load_results(url)["key"].tolist() == [record.key]


def test_two_mirrors_see_what_either_writes(machine: Machine, url: str) -> None:
    first, second = machine("a"), machine("b")
    one, other = make_record(seed=0), make_record(seed=1)
    ResultStore(first).write(one, PREDICTIONS)
    ResultStore(second).write(other, PREDICTIONS)
    store(first).append(ROWS, FEATURES)
    for name in ("a", "b"):
        out = machine(name)
        assert one.key in ResultStore(out)
        assert other.key in ResultStore(out)
        assert not store(out).missing(["cls"], ROWS)
        assert torch.equal(store(out).load(["cls"], ROWS)["cls"], FEATURES["cls"])


def test_a_long_lived_process_sees_new_records_and_new_shards(machine: Machine, url: str) -> None:
    first, second = machine("a"), machine("b")
    features = store(second)
    assert features.missing(["cls"], ROWS)
    store(first).append(ROWS, FEATURES)
    ResultStore(first).write(make_record(), PREDICTIONS)
    with features.lock():
        assert not features.missing(["cls"], ROWS)
    assert len(vitbench.load_results(url)) == 1


def test_predictions_and_shards_come_when_they_are_asked_for(machine: Machine, url: str) -> None:
    records = [make_record(seed=seed) for seed in range(3)]
    out = machine("a")
    for record in records:
        ResultStore(out).write(record, PREDICTIONS)
    store(out).append(ROWS, FEATURES)
    there = machine("b")
    features = store(there)
    assert not features.missing(["cls"], ROWS)
    assert not [*there.rglob("*.parquet"), *there.rglob("*.safetensors")]
    paths = [ResultStore(there).place(record) for record in records]
    assert read_predictions(paths[0]).row.tolist() == [0, 1, 2, 3]
    assert len([*there.rglob("*.parquet")]) == 3
    features.load(["cls"], ROWS)
    assert len([*there.rglob("*.safetensors")]) == 1


def test_what_is_here_already_is_not_brought_again(flaky: Machine) -> None:
    out = flaky("a")
    ResultStore(out).write(make_record(), PREDICTIONS)
    store(out).append(ROWS, FEATURES)
    assert not store(flaky("a")).missing(["cls"], ROWS)
    assert not [name for name in Flaky.gets if name.endswith(".safetensors")]
    for name in ("a", "b"):
        for _ in range(2):
            brought = len(Flaky.gets)
            out = flaky(name)
            store(out).load(["cls"], ROWS)
            read_predictions(ResultStore(out).place(make_record()))
        assert len(Flaky.gets) == brought


def test_a_record_that_another_machine_made_anew_is_taken_up(machine: Machine) -> None:
    record = make_record()
    ResultStore(machine("a")).write(record, PREDICTIONS)
    second = ResultStore(machine("b"))
    anew = record.model_copy(update={"seconds": 0.2})
    second.write(anew, {**PREDICTIONS, "label": np.ones(4, np.int64)})
    out = machine("a")
    found = ResultStore(out)
    assert found.read(record.key) == anew
    assert read_predictions(found.place(record)).label.tolist() == [1, 1, 1, 1]


def test_what_was_removed_at_the_url_goes_here_too(machine: Machine, url: str) -> None:
    record = make_record()
    ResultStore(machine("a")).write(record, PREDICTIONS)
    assert record.key in ResultStore(machine("b"))
    folder = filesystem.RemoteFolder(url)
    folder.remove(list(folder.listing()))
    folder.remove(["records/never/was.json"])
    for name in ("a", "b"):
        out = machine(name)
        assert record.key not in ResultStore(out)
        assert not [*out.rglob("*.parquet")]


def test_a_put_that_stops_halfway_leaves_nothing_and_is_told(flaky: Machine) -> None:
    out = flaky("a")
    Flaky.failures.extend([OSError("connection reset")] * filesystem.ATTEMPTS)
    with pytest.raises(StoreError, match="flaky://runs cannot be written to: OSError: connection reset") as error:
        ResultStore(out).write(make_record(), PREDICTIONS)
    assert "\n" not in str(error.value)
    assert not at("flaky://runs")
    assert not Flaky.store
    assert make_record().key not in ResultStore(out)
    ResultStore(out).write(make_record(), PREDICTIONS)
    assert make_record().key in ResultStore(flaky("b"))


def test_what_passes_is_tried_again(flaky: Machine) -> None:
    out = flaky("a")
    Flaky.failures.append(OSError("connection reset"))
    write_text(out / "costs" / "one.json", "{}")
    assert at("flaky://runs") == {"costs/one.json"}


def test_an_overwriting_put_that_fails_leaves_the_old_file(flaky: Machine) -> None:
    out = flaky("a")
    write_text(out / "costs" / "one.json", "old")
    Flaky.failures.append(PermissionError("Forbidden"))
    with pytest.raises(StoreError, match=r"no access to flaky://runs.*credentials"):
        write_text(out / "costs" / "one.json", "new")
    assert (out / "costs" / "one.json").read_text() == "old"
    assert (flaky("b") / "costs" / "one.json").read_text() == "old"


def test_a_record_is_never_there_without_its_predictions(flaky: Machine) -> None:
    out = flaky("a")
    for failing in range(4):
        Flaky.failures.extend([PermissionError("Forbidden")])
        with pytest.raises(StoreError):
            ResultStore(out).write(make_record(seed=failing), PREDICTIONS)
    names = at("flaky://runs")
    assert all(name.replace(".json", ".parquet") in names for name in names if name.endswith(".json"))


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from tests.records.test_store import PREDICTIONS, make_record
from vitbench.records import remote
from vitbench.records.store import ResultStore
whole, puts = LocalFileSystem.put_file, 0
def put_file(self, source, target, **options):
    global puts
    puts += 1
    if puts < int(sys.argv[2]):
        return whole(self, source, target, **options)
    content = Path(source).read_bytes()
    Path(target).write_bytes(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
LocalFileSystem.put_file = put_file
results = ResultStore(remote.output_folder(sys.argv[1]))
for seed in range(3):
    results.write(make_record(seed=seed), PREDICTIONS)
"""


@pytest.mark.parametrize("put", [3, 4])
def test_a_killed_process_leaves_whole_records_or_none(
    put: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path / 'shared'}"
    environment = {**os.environ, "VITBENCH_CACHE": str(tmp_path / "killed")}
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, url, str(put)], env=environment, cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    for name in ("killed", "other"):
        out = machines(monkeypatch, tmp_path, url)(name)
        assert vitbench.load_results(url)["seed"].tolist() == [0]
        results = ResultStore(out)
        assert read_predictions(results.place(make_record(seed=0))).row.tolist() == [0, 1, 2, 3]
    for seed in range(3):
        results.write(make_record(seed=seed), PREDICTIONS)
    assert len(vitbench.load_results(url)) == 3
    left = list((tmp_path / "shared").rglob(".tmp-*"))
    assert len(left) == 1
    assert not remote.leftovers(out)
    os.utime(left[0], (time.time() - 7200,) * 2)
    (found,) = remote.leftovers(out)
    remote.remove(found)
    assert not left[0].exists()


def test_removing_a_store_removes_it_at_the_url(machine: Machine, url: str) -> None:
    store(machine("a")).append(ROWS, FEATURES)
    out = machine("b")
    (found,) = cache.stores(out)
    assert found.size > ROWS.nbytes + 24
    assert not cache.problems(found)
    assert cache.remove(found)
    assert not at(url)
    for name in ("a", "c"):
        assert store(machine(name)).missing(["cls"], ROWS)


def test_a_damaged_shard_is_replaced_at_the_url_too(machine: Machine, url: str, tmp_path: Path) -> None:
    out = machine("a")
    store(out).append(ROWS, FEATURES)
    (shard,) = out.rglob("*.safetensors")
    bad = tmp_path / "bad"
    bad.write_bytes(shard.read_bytes()[:-1] + b"x")
    remote.put(bad, shard)
    out = machine("b")
    with pytest.raises(StoreError, match="is damaged; run the same command again"):
        store(out).load(["cls"], ROWS)
    again = store(out)
    with again.lock():
        assert again.missing(["cls"], ROWS)
        again.append(ROWS, FEATURES)
    assert sum(name.endswith(".safetensors") for name in at(url)) == 1
    assert torch.equal(store(machine("c")).load(["cls"], ROWS)["cls"], FEATURES["cls"])


def test_a_shard_without_its_sidecar_is_a_leftover_after_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = machines(monkeypatch, tmp_path, f"file://{tmp_path / 'shared'}")("a")
    store(out).append(ROWS, FEATURES)
    (sidecar,) = (tmp_path / "shared").rglob("shard-*.json")
    sidecar.unlink()
    assert not cache.leftovers(out)
    os.utime(sidecar.with_suffix(".safetensors"), (time.time() - 7200,) * 2)
    assert [path.name for path in cache.leftovers(out)] == [sidecar.with_suffix(".safetensors").name]


def test_what_belongs_to_one_machine_stays_there(machine: Machine, url: str) -> None:
    out = machine("a")
    for name in ("records/index.parquet", "training/abc/step-1.safetensors", ".remote.json", "features/.lock"):
        write_text(out / name, "{}")
    assert not at(url)


def test_models_are_pushed_with_their_configuration_last(flaky: Machine) -> None:
    model = flaky("a") / "models" / "abc"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("weights")
    remote.push(model)
    assert [name.rpartition("/")[2] for name in Flaky.store] == ["model.safetensors", "config.json"]
    remote.push(model.parents[3])


def test_names_that_lead_elsewhere_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("records/../../evil.json", "records/a/../b.json", "records/a\\b.json", "records//c.json"):
        memory.store[f"/runs/{name}"] = memory.open("/x", "wb")
    out = machines(monkeypatch, tmp_path, "memory://runs")("a")
    assert [path.name for path in tmp_path.rglob("*.json")] == [mirror.MARKER]
    assert out.is_dir()


def test_an_answer_is_not_waited_for_for_ever(flaky: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(Flaky, "slow", 1.0)
    with pytest.raises(StoreError, match="flaky://runs did not answer within 0 s"):
        flaky("a")


def test_a_missing_bucket_and_missing_rights_are_told(flaky: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "WHOLE_AT_ONCE", {"flaky"})

    def find(error: Exception) -> Callable[..., Any]:
        def raising(*_: Any, **__: Any) -> Any:
            raise error

        return raising

    monkeypatch.setattr(Flaky, "find", find(FileNotFoundError("The specified bucket does not exist")))
    with pytest.raises(StoreError, match="there is no bucket flaky://runs"):
        flaky("a")
    monkeypatch.setattr(Flaky, "find", find(PermissionError("Access Denied")))
    with pytest.raises(StoreError, match="no access to flaky://runs, which cannot be read"):
        flaky("b")


def test_an_output_folder_is_proved_writable_at_its_url(flaky: Machine) -> None:
    out = flaky("a")
    check_writable(out)
    assert not at("flaky://runs")
    Flaky.failures.append(PermissionError("Forbidden"))
    with pytest.raises(StoreError, match="no access"):
        check_writable(out)


def test_another_process_of_this_machine_needs_only_the_path(machine: Machine, url: str) -> None:
    out = machine("a")
    remote._MIRRORS.clear()
    write_text(out / "costs" / "one.json", "{}")
    assert at(url) == {"costs/one.json"}
    assert remote.url_of(out / "costs") == f"{url}/costs"
    assert remote.told(Path("results")) == "results"


def test_two_files_of_one_name_at_different_urls_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [remote.output_folder(f"memory://{name}/runs") for name in ("a", "b")]
    write_text(places[0] / "costs" / "one.json", "{}")
    assert at("memory://a/runs") == {"costs/one.json"}
    assert not at("memory://b/runs")


def test_no_such_results_names_the_url(machine: Machine, url: str) -> None:
    machine("a")
    with pytest.raises(VitbenchError, match=f"there are no results at {url}"):
        vitbench.load_results(url)


def test_a_damaged_note_of_the_mirror_costs_only_time(machine: Machine) -> None:
    record = make_record()
    out = machine("a")
    ResultStore(out).write(record, PREDICTIONS)
    for content in ("half of", json.dumps([]), json.dumps({"stamps": []})):
        (out / mirror.MARKER).write_text(content)
        (out / mirror.WRITTEN).write_text("half a line")
        assert record.key in ResultStore(machine("a"))
    assert key(record.identity) == record.key

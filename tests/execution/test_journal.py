"""The journal of a run: what its file says, when it is written, and that it never stops a run."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from vitbench.errors import StoppedError, StoreError
from vitbench.execution import journal as module
from vitbench.execution.journal import Journal, NoJournal, RunState, last_line, read_run, run_files

JOBS = [("demo", "digits"), ("demo", "shapes"), ("pixels", "digits"), ("pixels", "shapes")]


def journal(out: Path, **given: object) -> Journal:
    return Journal(out, "vitbench run", "local", JOBS, **given)  # type: ignore[arg-type]


def states(run: RunState) -> list[str]:
    return [job.state for job in run.jobs]


def test_the_file_is_there_from_the_first_moment_and_says_who_writes_it(tmp_path: Path) -> None:
    with journal(tmp_path) as kept:
        (path,) = run_files(tmp_path)
        run = read_run(path)
        assert path == kept.path
        assert path.stem == run.name
        assert path.stem.startswith(f"{run.started:%Y%m%dT%H%M%S%fZ}-")
        assert (run.state, run.pid, run.executor, run.command) == ("running", os.getpid(), "local", "vitbench run")
        assert [(job.backbone, job.task) for job in run.jobs] == JOBS
        assert all(job.keys is None and job.state == "waiting" for job in run.jobs)
    assert read_run(path).state == "finished"


def test_of_runs_that_begin_within_a_second_the_newest_is_first(tmp_path: Path) -> None:
    paths = []
    for _ in range(10):
        with journal(tmp_path) as kept:
            paths.append(kept.path)
    assert run_files(tmp_path) == paths[::-1]


def test_a_job_from_its_preparation_to_its_end(tmp_path: Path) -> None:
    with journal(tmp_path) as kept:
        kept.prepared("demo", "digits", ["k1", "k2"], 1, 30, 4.5)
        kept.running("demo", "digits", "extract")
        for _ in range(3):
            kept.advanced("demo", "digits", 10)
        kept.running("demo", "digits", "score")
        kept.done("demo", "digits")
    job = read_run(kept.path).jobs[0]
    assert (job.state, job.stage, job.keys, job.present) == ("done", "score", ["k1", "k2"], 1)
    assert (job.images, job.embedded, job.seconds) == (30, 30, 4.5)


def test_what_failed_stays_failed_while_the_rest_of_the_job_goes_on(tmp_path: Path) -> None:
    with journal(tmp_path) as kept:
        kept.failed("demo", "digits", "Traceback …\n  File …\nValueError: no\n")
        kept.failed("demo", "digits", "another representation")
        kept.prepared("demo", "digits", ["k1"], 0, 3, None)
        kept.running("demo", "digits", "score")
        kept.done("demo", "digits")
    job = read_run(kept.path).jobs[0]
    assert job.state == "failed"
    assert job.errors == ["ValueError: no", "another representation"]


@pytest.mark.parametrize(
    ("backbone", "task", "expected"),
    [
        ("pixels", "", ["done", "waiting", "failed", "failed"]),
        ("", "shapes", ["done", "failed", "waiting", "failed"]),
        ("", "digits", ["done", "waiting", "failed", "waiting"]),
    ],
)
def test_a_whole_backbone_or_a_whole_task_fails_but_for_what_is_done(
    backbone: str, task: str, expected: list[str], tmp_path: Path
) -> None:
    with journal(tmp_path) as kept:
        kept.done("demo", "digits")
        kept.failed(backbone, task, "cannot be loaded")
    run = read_run(kept.path)
    assert states(run) == expected
    assert run.failures == []


def test_what_belongs_to_no_job_is_kept_beside_them(tmp_path: Path) -> None:
    with journal(tmp_path) as kept:
        kept.failed("", "", "the cluster went away")
        kept.failed("timm:x", "digits", "a job that was not announced")
        for number in range(2 * module.KEEP_LINES):
            kept.retried(f"worker {number} was lost")
        kept.note("one note")
        kept.note("one note")
    run = read_run(kept.path)
    assert run.failures == ["the cluster went away"]
    assert (run.jobs[-1].backbone, run.jobs[-1].state) == ("timm:x", "failed")
    assert len(run.retried) == module.KEEP_LINES
    assert run.retried[-1].endswith(f"worker {2 * module.KEEP_LINES - 1} was lost")
    assert run.notes == ["one note"]


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (StoppedError("stopped by SIGTERM"), "stopped", "stopped by SIGTERM"),
        (KeyboardInterrupt(), "stopped", "Ctrl-C"),
        (SystemExit(3), "stopped", "3"),
        (StoreError("the disk is full"), "failed", "the disk is full"),
    ],
)
def test_the_end_says_how_the_run_ended(error: BaseException, state: str, reason: str, tmp_path: Path) -> None:
    kept = journal(tmp_path)
    with pytest.raises(type(error)), kept:
        raise error
    run = read_run(kept.path)
    assert (run.state, run.reason) == (state, reason)


def test_the_thread_beats_and_writes_changes_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.001)

    def until(holds: object) -> None:
        deadline = time.monotonic() + 30
        while not holds(read_run(kept.path)) and time.monotonic() < deadline:  # type: ignore[operator]
            time.sleep(0.005)
        assert holds(read_run(kept.path))  # type: ignore[operator]

    with journal(tmp_path) as kept:
        first = read_run(kept.path).heartbeat
        until(lambda run: run.heartbeat > first)
        kept.running("demo", "digits", "extract")
        until(lambda run: run.jobs[0].state == "running")
        kept.advanced("demo", "digits", 7)
        until(lambda run: run.jobs[0].embedded == 7 and run.working > 0)
    ended = read_run(kept.path).heartbeat
    time.sleep(0.1)
    assert read_run(kept.path).heartbeat == ended, "nothing is written after the end"


def test_many_changes_are_few_writings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    original = module.write_text
    monkeypatch.setattr(module, "write_text", lambda path, text: (written.append(path), original(path, text)))
    with journal(tmp_path) as kept:
        for number in range(5000):
            kept.running("demo", "digits", "extract")
            kept.note(str(number))
            kept.advanced("demo", "digits", 1)
    assert len(written) < 100
    assert read_run(kept.path).jobs[0].embedded == 5000


def test_threads_may_tell_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    with journal(tmp_path) as kept:

        def tell() -> None:
            for _ in range(500):
                kept.advanced("demo", "digits", 1)
                kept.advanced("pixels", "new", 1)

        threads = [threading.Thread(target=tell) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run = read_run(kept.path)
    assert [job.embedded for job in run.jobs] == [2000, 0, 0, 0, 2000]


def test_a_full_disk_is_told_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise StoreError(f"cannot write {path}: the disk is full; what was saved before is intact")

    told: list[str] = []
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.002)
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(module, "write_text", full)
    with journal(tmp_path, warn=told.append) as kept:
        kept.running("demo", "digits", "extract")
        time.sleep(0.05)
    (line,) = told
    assert "the disk is full" in line
    assert run_files(tmp_path) == []


def test_the_disk_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").write_text("a file where a folder must be")
    with journal(tmp_path) as kept:
        (tmp_path / "runs").unlink()
        kept.done("demo", "digits")
    assert read_run(kept.path).state == "finished"


def test_the_newest_files_are_kept_and_those_of_runs_that_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    old = [folder / f"2020010{day}T000000Z-{number:08x}.json" for day in (1, 2) for number in range(15)]
    for path in old:
        path.write_text("{}")
        os.utime(path, (1e9, 1e9))
    os.utime(old[0])  # another run, begun first, still writes to its file
    (folder / ".tmp-left").write_text("half")
    os.utime(folder / ".tmp-left", (1e9, 1e9))
    with journal(tmp_path) as kept:
        left = run_files(tmp_path)
    assert left == [kept.path, *reversed(old[-module.KEEP_RUNS + 1 :]), old[0]]
    assert not list(folder.glob(".tmp-*"))


def test_a_backbone_that_is_named_twice_is_one_job(tmp_path: Path) -> None:
    with Journal(tmp_path, "", "local", [("demo", "digits"), ("demo", "digits")]) as kept:
        kept.done("demo", "digits")
    assert states(read_run(kept.path)) == ["done"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Invalid JSON"),
        ('{"schema_version": 1, "na', "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"schema_version": 1}', "name: Field required"),
        ('{"schema_version": 2}', "schema version 2, and this vitbench reads 1"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"run\.json cannot be read") as told:
        read_run(path)
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_that_is_gone_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path / "gone.json")
    assert run_files(tmp_path / "nowhere") == []


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    with journal(tmp_path) as kept:
        kept.prepared("demo", "digits", ["k"], 0, 1, None)
    content = json.loads(kept.path.read_text())
    assert content["schema_version"] == 1
    assert content["jobs"][0]["seconds"] is None


def test_no_journal_takes_the_same_calls_and_writes_nothing(tmp_path: Path) -> None:
    told = [name for name in vars(Journal) if not name.startswith("_")]
    assert told == [name for name in vars(NoJournal) if not name.startswith("_")]
    with NoJournal() as nothing:
        nothing.prepared("demo", "digits", [], 0, 0, None)
        nothing.running("demo", "digits", "extract")
        nothing.advanced("demo", "digits", 1)
        nothing.done("demo", "digits")
        nothing.failed("demo", "", "line")
        nothing.retried("line")
        nothing.note("line")
    assert not list(tmp_path.iterdir())


def test_the_last_line_of_a_message() -> None:
    assert last_line("") == ""
    assert last_line("one\n\n  two  \n\n") == "two"
    assert len(last_line("x" * 1000)) == 300

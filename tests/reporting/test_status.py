"""What runs are doing, from their files and from the records that exist."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vitbench.errors import StoreError, UsageError
from vitbench.execution.journal import Journal, RunState, process_space, read_run
from vitbench.reporting.status import RunStatus, duration, read_status

JOBS = [("demo", "digits"), ("demo", "shapes"), ("pixels", "digits")]


def made(out: Path, keys: Sequence[str], written: float | None = None) -> None:
    folder = out / "records" / "some-backbone" / "some" / "task"
    folder.mkdir(parents=True, exist_ok=True)
    for key in keys:
        (folder / f"{key}.json").write_text("never opened")
        (folder / f"{key}.parquet").write_text("")
        if written is not None:
            os.utime(folder / f"{key}.json", (written, written))


def newest(out: Path) -> RunStatus:
    return read_status(out).runs[0]


def edit(path: Path, change: Callable[[RunState], None]) -> None:
    """Change the file of a run, as another machine or an accident would have written it."""
    run = read_run(path)
    change(run)
    path.write_text(run.model_dump_json())


def journal(out: Path) -> Journal:
    return Journal(out, "vitbench run", "local", JOBS)


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    kept = journal(tmp_path)
    kept.prepared("demo", "digits", ["a1", "a2", "a3"], 1, 40, None)
    kept.running("demo", "digits", "extract")
    kept.advanced("demo", "digits", 15)
    with kept:
        made(tmp_path, ["a1", "other"])
        run = newest(tmp_path)
    assert run.state == "running"
    assert run.heard is not None
    assert [job.state for job in run.jobs] == ["running", "waiting", "waiting"]
    first, second, _ = run.jobs
    assert (first.stage, first.records, first.records_total) == ("extract", 1, 3)
    assert (first.images, first.images_total) == (15, 40)
    assert (second.records, second.records_total, second.images_total) == (None, None, None)
    assert (run.records, run.records_total, run.unprepared) == (1, 3, 2)
    assert read_status(tmp_path).records == 2


def test_records_that_two_jobs_share_count_once_in_all(tmp_path: Path) -> None:
    with journal(tmp_path) as kept:
        kept.prepared("demo", "digits", ["a", "b"], 0, 0, None)
        kept.prepared("demo", "shapes", ["b", "c"], 0, 0, None)
        made(tmp_path, ["b"])
    run = newest(tmp_path)
    assert [job.records for job in run.jobs] == [1, 1, None]
    assert (run.records, run.records_total) == (1, 3)


def test_records_that_are_made_anew_do_not_count_before_they_are(tmp_path: Path) -> None:
    made(tmp_path, ["a", "b", "c"], written=1e9)
    kept = journal(tmp_path)
    kept.prepared("demo", "digits", ["a", "b", "c"], 0, 0, None)  # --on-existing rerun: none counts as present
    kept.prepared("demo", "shapes", ["a", "b", "d"], 2, 0, None)
    kept.running("demo", "digits", "score")
    with kept:
        assert [job.records for job in newest(tmp_path).jobs] == [0, 2, None]
        made(tmp_path, ["b"])
        made(tmp_path, ["d"])
        assert [job.records for job in newest(tmp_path).jobs] == [1, 3, None]


def test_what_an_ended_run_left_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), journal(tmp_path) as kept:
        kept.prepared("demo", "digits", ["a"], 0, 5, None)
        kept.running("demo", "digits", "score")
        raise KeyboardInterrupt
    run = newest(tmp_path)
    assert run.state == "stopped"
    assert [job.state for job in run.jobs] == ["stopped", "not begun", "not begun"]
    assert run.seconds_left is None
    made(tmp_path, ["a"])
    assert newest(tmp_path).jobs[0].state == "done", "a later run has made it"


def test_a_killed_process_is_a_stopped_run_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom vitbench.execution.journal import Journal\n"
        "with Journal(Path(sys.argv[1]), 'run', 'local', [('demo', 'digits')]):\n    print('on', flush=True)\n    time.sleep(300)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    assert newest(tmp_path).state == "running"
    process.send_signal(signal.SIGKILL)
    while newest(tmp_path).state == "running":  # a zombie, as long as nobody has waited for it
        time.sleep(0.01)
    zombie = newest(tmp_path)
    process.wait()
    process.stdout.close()
    run = newest(tmp_path)
    assert zombie.state == run.state == "stopped"
    assert run.reason == f"its process {process.pid} is gone"


def left_running(out: Path, change: Callable[[RunState], None], heard: float = 0.0, written: float = 0.0) -> float:
    """The file of a run that says it goes on; the time at which it is `heard` s old, and its file was written `written` s ago."""
    with journal(out) as kept:
        pass

    def edited(run: RunState) -> None:
        run.state = "running"
        change(run)

    edit(kept.path, edited)
    now = read_run(kept.path).heartbeat.timestamp() + heard
    os.utime(kept.path, (now - written, now - written))
    return now


def elsewhere(run: RunState) -> None:
    run.process_space, run.host = "another machine", "node-7"


@pytest.mark.parametrize(
    ("heard", "written", "state", "told"),
    [
        (3, 3, "running", 3),
        (59, 59, "running", 59),
        (61, 61, "stopped", 61),
        (900, 4, "running", 4),  # its clock is a quarter of an hour slow
        (-900, 4, "running", 4),  # and fast
        (-900, 400, "stopped", 400),
        (4, -900, "running", 4),  # the file system's clock is fast
        (400, -900, "stopped", 400),
        (-900, -900, "running", None),  # our own is slow: nothing can be said
        (-2, -2, "running", 0),
    ],
)
def test_a_run_of_another_machine_is_known_by_its_heartbeat(
    heard: float, written: float, state: str, told: float | None, tmp_path: Path
) -> None:
    now = left_running(tmp_path, elsewhere, heard, written)
    run = read_status(tmp_path, now=now).runs[0]
    assert run.state == state
    assert run.heard == (None if told is None else pytest.approx(told, abs=0.01))
    assert ("not been heard of" in run.reason) == (state == "stopped")


def test_a_process_that_does_nothing_counts_as_stopped(tmp_path: Path) -> None:
    now = left_running(tmp_path, lambda run: None, heard=300, written=300)
    run = read_status(tmp_path, now=now).runs[0]
    assert run.state == "stopped"
    assert run.reason == f"it has not been heard of for 5 min; its process {os.getpid()} is there, but does nothing"


def test_another_process_that_was_given_the_number_is_not_the_run(tmp_path: Path) -> None:
    def begun_earlier(run: RunState) -> None:
        run.process_started -= 3600

    now = left_running(tmp_path, begun_earlier, heard=10, written=10)
    assert read_status(tmp_path, now=now).runs[0].state == "stopped"


def test_a_process_number_of_another_machine_says_nothing_here(tmp_path: Path) -> None:
    def dead(run: RunState) -> None:
        elsewhere(run)
        run.pid = 2**22 - 3

    now = left_running(tmp_path, dead, heard=10, written=10)
    assert read_status(tmp_path, now=now).runs[0].state == "running"
    assert process_space() != "another machine"


def test_the_newest_run_and_all_that_go_on_are_shown(tmp_path: Path) -> None:
    names = []
    for day in (1, 2, 3):
        with journal(tmp_path) as kept:
            pass
        edit(kept.path, lambda run, day=day: setattr(run, "name", f"2020010{day}T000000Z-0"))  # type: ignore[misc]
        kept.path.rename(tmp_path / "runs" / f"2020010{day}T000000Z-0.json")
        names.append(f"2020010{day}T000000Z-0")
    status = read_status(tmp_path)
    assert ([run.name for run in status.runs], status.earlier) == ([names[2]], 2)
    assert [run.name for run in read_status(tmp_path, every=True).runs] == names[::-1]
    edit(tmp_path / "runs" / f"{names[0]}.json", lambda run: setattr(run, "state", "running"))
    status = read_status(tmp_path)
    assert ([run.name for run in status.runs], status.earlier) == ([names[2], names[0]], 1)


def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    with journal(tmp_path) as kept:
        pass
    (tmp_path / "runs" / "99990101T000000Z-0.json").write_text('{"schema_version": 1')
    status = read_status(tmp_path)
    assert [run.name for run in status.runs] == [kept.path.stem]
    (line,) = status.problems
    assert "99990101T000000Z-0.json cannot be read" in line


def test_records_without_a_run_file_are_counted(tmp_path: Path) -> None:
    made(tmp_path, ["a", "b"])
    status = read_status(tmp_path)
    assert (list(status.runs), status.records, status.earlier) == ([], 2, 0)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "there are no runs and no records at .*nowhere: start one with"),
        (".", "did you mean .*/out?"),
        ("out/records", "did you mean .*/out?"),
        ("file", "is a file: name the output folder"),
    ],
)
def test_where_there_is_nothing_one_line_says_so(place: str, said: str, tmp_path: Path) -> None:
    made(tmp_path / "out", ["a"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=said) as told:
        read_status(tmp_path / place)
    assert "\n" not in str(told.value)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    made(tmp_path, ["a"])
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(StoreError, match="cannot be read: Permission denied"):
        read_status(tmp_path)


def left_of(
    tmp_path: Path, tell: Callable[[Journal], None], working: float, records: Sequence[str] = ()
) -> float | None:
    """The time left of a run that has worked for so many seconds."""
    kept = journal(tmp_path)
    tell(kept)
    with kept:
        pass

    def edited(run: RunState) -> None:
        run.state, run.working = "running", working

    edit(kept.path, edited)
    if records:
        made(tmp_path, records)
    return newest(tmp_path).seconds_left


def test_time_left_goes_by_the_estimates(tmp_path: Path) -> None:
    def tell(kept: Journal) -> None:
        kept.prepared("demo", "digits", ["a"], 0, 100, 10.0)
        kept.prepared("demo", "shapes", ["b"], 0, 1, 30.0)
        kept.prepared("pixels", "digits", ["c"], 0, 99, 60.0)
        kept.done("demo", "digits")
        kept.running("pixels", "digits", "extract")
        kept.advanced("pixels", "digits", 50)  # half of its 99 images and its record

    # Done: 10 + 60/2 = 40 of 100 estimated seconds, in 80 s: the other 60 take 120 s.
    assert left_of(tmp_path, tell, working=80.0, records=["a"]) == pytest.approx(120.0)


def test_time_left_goes_by_images_and_records_where_an_estimate_lacks(tmp_path: Path) -> None:
    def tell(kept: Journal) -> None:
        kept.prepared("demo", "digits", ["a", "b", "c", "d"], 2, 6, None)
        kept.prepared("demo", "shapes", [f"e{number}" for number in range(8)], 0, 0, 30.0)
        kept.running("demo", "digits", "score")
        kept.advanced("demo", "digits", 6)

    # 6 images and 1 of 2 missing records are 7 units in 14 s; 1 and 8 records are left.
    assert left_of(tmp_path, tell, working=14.0, records=["a", "b", "c"]) == pytest.approx(18.0)


def test_time_left_of_trainings_goes_by_their_records(tmp_path: Path) -> None:
    def tell(kept: Journal) -> None:
        kept.prepared("demo", "digits", ["a", "b", "c"], 0, 1_000_000, None)
        kept.running("demo", "digits", "train")

    assert left_of(tmp_path, tell, working=100.0, records=["a"]) == pytest.approx(200.0)


def test_time_left_is_not_guessed(tmp_path: Path) -> None:
    def nothing(kept: Journal) -> None:
        pass

    def begun(kept: Journal) -> None:
        kept.prepared("demo", "digits", ["a"], 0, 1000, 10.0)
        kept.running("demo", "digits", "extract")

    def hardly_begun(kept: Journal) -> None:
        begun(kept)
        kept.advanced("demo", "digits", 5)

    def early(kept: Journal) -> None:
        begun(kept)
        kept.advanced("demo", "digits", 500)

    def over(kept: Journal) -> None:
        begun(kept)
        kept.done("demo", "digits")

    for number, (tell, working) in enumerate([(nothing, 9.0), (begun, 9.0), (hardly_begun, 9.0), (early, 1.0)]):
        assert left_of(tmp_path / str(number), tell, working) is None
    assert left_of(tmp_path / "over", over, 9.0) == 0.0


def test_what_failed_takes_no_more_time(tmp_path: Path) -> None:
    def tell(kept: Journal) -> None:
        kept.prepared("demo", "digits", ["a"], 0, 0, 10.0)
        kept.prepared("demo", "shapes", ["b"], 0, 0, 1000.0)
        kept.prepared("pixels", "digits", ["c"], 0, 0, 10.0)
        kept.running("demo", "digits", "score")
        kept.done("demo", "digits")
        kept.failed("demo", "shapes", "no")

    assert left_of(tmp_path, tell, working=20.0, records=["a"]) == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (42.4, "42 s"), (119, "119 s"), (720, "12 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text

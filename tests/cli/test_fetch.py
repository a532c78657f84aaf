"""`vitbench fetch` as a user runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.hub_server import COMMIT, Fault, Hub, serve_hub, use_hub
from tests.tasks.test_hub import REPO, first_shard, task_file, write_shoes
from vitbench.cli import fetch
from vitbench.errors import StoreError, UsageError
from vitbench.tasks import fetch as fetching


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    write_shoes(tmp_path / "hub" / REPO)
    with serve_hub(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path / "home")
        yield hub


@pytest.fixture
def task(tmp_path: Path) -> str:
    return task_file(tmp_path / "tasks")


def invoke(*arguments: str) -> Result:
    app = typer.Typer()
    app.command("fetch")(fetch.fetch)
    return CliRunner().invoke(app, list(arguments))


def test_a_table_first_then_the_files_then_proof(hub: Hub, task: str) -> None:
    done = invoke("--tasks", f"{task},digits")
    assert done.exit_code == 0, done.output
    assert "3 files, " in done.stdout
    assert "to fetch" in done.stdout
    assert "free on the disk" in done.stdout
    assert "shoes: loads: train 8, test 3 images, 2 classes" in done.stdout
    assert "builtin/digits: nothing to fetch" in done.stdout
    assert "fetch: 1 MB in" in done.stderr
    again = invoke("--tasks", task)
    assert "; 0 bytes to fetch" in again.stdout
    assert len(hub.contents(".parquet")) == 3


def test_a_dry_run_asks_for_lists_only(hub: Hub, task: str) -> None:
    done = invoke("--tasks", task, "--dry-run")
    assert done.exit_code == 0
    assert "train, test" in done.stdout
    assert "loads" not in done.stdout
    assert not hub.contents(".parquet")


def test_json(hub: Hub, task: str) -> None:
    dry = json.loads(invoke("--tasks", task, "--dry-run", "--json").stdout)
    assert dry["bytes"] == dry["bytes_to_fetch"] == dry["tasks"][0]["bytes"] > 100_000
    assert dry["bytes_free"] > 0
    assert "images" not in dry["tasks"][0]
    done = json.loads(invoke("--tasks", task, "--splits", "test", "--json").stdout)
    row = done["tasks"][0]
    assert (row["task"], row["splits"], row["files"], row["commit"]) == ("shoes", ["test"], 1, COMMIT)
    assert (row["images"], row["classes"], row["error"]) == ({"test": 3}, 2, None)
    assert hub.files() == ["test-00000-of-00001.parquet"]


def test_failures_come_at_the_end_and_set_the_status(hub: Hub, task: str, tmp_path: Path) -> None:
    gone = Path(task_file(tmp_path / "gone"))
    gone.write_text(gone.read_text().replace("someone/shoes", "someone/boots"))
    gone = gone.rename(gone.with_name("gone.yaml"))
    done = invoke("--tasks", f"{gone},{task}")
    assert done.exit_code == 1
    assert "cannot be fetched" in done.stdout
    assert "shoes: loads" in done.stdout
    assert "1 failed:" in done.stderr
    assert "someone/boots@0123456 does not exist on the hub" in done.stderr
    dry = invoke("--tasks", str(gone), "--dry-run")
    assert dry.exit_code == 2, "nothing worked"
    assert "someone/boots" in dry.stderr


def test_an_unverified_task_says_what_was_found_and_pinned(hub: Hub, tmp_path: Path) -> None:
    done = invoke("--tasks", task_file(tmp_path, revision="", extra="unverified: true\n"))
    assert f"shoes: pinned to commit {COMMIT} of someone/shoes" in done.stdout
    assert "unverified until now: found train 8, test 3 images of 2 classes" in done.stdout


def test_an_interruption(hub: Hub, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "obtain", interrupted)
    done = invoke("--tasks", task)
    assert done.exit_code == 130
    assert "interrupted: run the same command again to go on from here" in done.stderr
    monkeypatch.undo()


def test_a_disk_that_is_too_small(hub: Hub, task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    done = invoke("--tasks", task)
    assert isinstance(done.exception, StoreError)
    assert "1.0 kB are free" in str(done.exception)
    assert not hub.contents(".parquet")


@pytest.mark.parametrize("arguments", [["--tasks", ""], ["--tasks", "digits", "--splits", ","], ["--tasks", "cifra10"]])
def test_mistakes_in_the_options(arguments: list[str]) -> None:
    assert isinstance(invoke(*arguments).exception, UsageError)


def test_progress_counts_every_megabyte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    from vitbench.cli import console

    steps: list[int] = []

    @contextmanager
    def track(self: object, label: str, total: int, unit: str) -> Iterator[object]:
        yield steps.append
        assert sum(steps) == total == 3

    monkeypatch.setattr(console.ConsoleReporter, "track", track)
    item = fetching.FetchItem((), (), fetching.Repository("a/b", COMMIT), "f", 0, 0)
    with fetch._bar(2_500_000) as progress:
        for count in (900_000, 900_000, -700_000, 900_000, 500_000):
            progress(item, count)


def test_a_half_file_is_shown_as_there(hub: Hub, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.tasks.sources import hub_transfer

    monkeypatch.setattr(hub_transfer, "sleep", lambda seconds: None)
    hub.fail(first_shard(), Fault(cut_after=20_000))
    hub.fail(first_shard(), Fault(cut_after=0), times=5)
    assert invoke("--tasks", task).exit_code == 2
    row = json.loads(invoke("--tasks", task, "--dry-run", "--json").stdout)["tasks"][0]
    assert row["bytes_there"] == 20_000
    assert invoke("--tasks", task).exit_code == 0


def test_a_login_page_in_between_is_one_line_for_its_task(hub: Hub, task: str) -> None:
    hub.fail("tree", Fault(content=b"<html>"), times=2)
    both = invoke("--tasks", f"{task},digits")
    assert both.exit_code == 1, both.output
    assert "builtin/digits: nothing to fetch" in both.stdout
    (line,) = [line for line in both.stderr.splitlines() if "shoes" in line]
    assert line.endswith("is not what a hub says: is there a proxy or a login page in between?")
    alone = invoke("--tasks", task)
    assert alone.exit_code == 2
    assert invoke("--tasks", task).exit_code == 0


def test_a_dry_run_without_a_network_shows_the_task_files_size(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "elsewhere")
    task = task_file(tmp_path / "told", extra="download_bytes: 170500000\n")
    done = invoke("--tasks", task, "--dry-run")
    assert done.exit_code == 2
    (row,) = [line for line in done.stdout.splitlines() if line.lstrip().startswith("shoes")]
    assert "170.5 MB (task file)" in row
    assert "0 files, 0 bytes; 0 bytes to fetch; 170.5 MB more by the task files, " in done.stdout
    told = json.loads(invoke("--tasks", task, "--dry-run", "--json").stdout)
    assert (told["bytes_estimated"], told["bytes"]) == (170500000, 0)
    row = told["tasks"][0]
    assert (row["bytes_estimated"], row["bytes"], row["bytes_there"], row["files"]) == (170500000, None, None, None)
    silent = invoke("--tasks", task_file(tmp_path / "silent"), "--dry-run")
    (row,) = [line for line in silent.stdout.splitlines() if line.lstrip().startswith("shoes")]
    assert row.count("?") == 3
    assert "0 bytes" not in row


def test_help_says_which_tasks_need_no_fetch() -> None:
    assert "needs no fetch" in " ".join(invoke("--help").stdout.replace("│", " ").split())

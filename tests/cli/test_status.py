"""`vitbench status` as a user sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.conftest import ImageFolderMaker
from vitbench.cli import status as module
from vitbench.cli.main import app, main
from vitbench.errors import StoppedError
from vitbench.execution.journal import Journal

LONG = "timm:vit_base_patch16_224.augreg_in21k,checkpoint=weights/some-long-name.safetensors"
JOBS = [(LONG, "vtab/structured/dsprites_orientation"), (LONG, "digits"), ("pixels", "digits")]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def journal(out: Path) -> Journal:
    return Journal(out, "vitbench run -b … -t digits", "ray", JOBS)


def begin(kept: Journal) -> None:
    kept.prepared(*JOBS[0], ["a", "b"], 0, 12_000, 60.0)
    kept.running(*JOBS[0], "extract")
    kept.advanced(*JOBS[0], 1_500)
    kept.failed("pixels", "", "cannot be loaded\n")
    kept.retried("the worker of digits was lost; it is tried again (1 of 2)")
    kept.note("12 tasks were left out")


def test_a_job_whose_images_another_run_has_embedded_had_nothing_to_do(tmp_path: Path) -> None:
    kept = journal(tmp_path)
    for place, images in zip(JOBS[:2], (12_000, 580), strict=True):
        kept.prepared(*place, [], 0, images, 60.0)
    kept.advanced(*JOBS[0], 12_000)
    for place in JOBS[:2]:
        kept.done(*place)
    with kept:
        text = invoke("status", str(tmp_path)).stdout
        told = json.loads(invoke("status", str(tmp_path), "--json").stdout)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "vtab/structured/dsprites_orientation done – 12,000 / 12,000" in lines
    assert "digits done – –" in lines
    assert "12,000 of 12,000 images" in " ".join(text.split())
    assert [(job["images"], job["images_total"]) for job in told["runs"][0]["jobs"][:2]] == [(12_000, 12_000), (0, 0)]


def test_a_run_that_goes_on_job_by_job(tmp_path: Path) -> None:
    kept = journal(tmp_path)
    begin(kept)
    with kept:
        text = invoke("status", str(tmp_path)).stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith(f"run {kept.path.stem} · running · heard of 0 s ago")
    assert "executor ray" in lines[1]
    assert lines[2] == "vitbench run -b … -t digits"
    assert LONG in lines
    assert "vtab/structured/dsprites_orientation extracting 0 / 2 1,500 / 12,000" in lines
    assert "digits waiting ? ?" in lines
    assert "digits failed ? ?" in lines
    assert (
        "0 of 3 jobs done, 1 running, 1 failed, 1 waiting · 0 of 2 records · 1,500 of 12,000 images · "
        "jobs not looked at yet: 1 · time left: ?"
    ) in lines
    assert "failed: pixels on digits: cannot be loaded" in lines
    assert any(line.startswith("retried: ") and line.endswith("tried again (1 of 2)") for line in lines)
    assert "note: 12 tasks were left out" in lines


@pytest.mark.parametrize("width", [80, 120, 240])
def test_the_table_fits(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    kept = journal(tmp_path)
    begin(kept)
    with kept:
        monkeypatch.setattr(
            "vitbench.cli.console.console", lambda stderr=False: Console(file=sys.stdout, width=width, highlight=False)
        )
        text = invoke("status", str(tmp_path)).stdout
    table = text[text.index("backbone and task") : text.index("0 of 3 jobs done")].splitlines()
    assert max(map(len, table)) <= width
    assert any("extracting" in line and "1,500 / 12,000" in line for line in table), "no number is cut"
    assert LONG in "".join("".join(line.split()) for line in table), "what is too long is folded, not cut"
    assert any(line.strip() == LONG for line in table) == (width > len(LONG) + 40)
    assert any("dsprites_orientation extracting" in " ".join(line.split()) for line in table)


def test_a_run_that_was_stopped_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(StoppedError), journal(tmp_path) as kept:
        begin(kept)
        raise StoppedError("stopped by SIGTERM after 12 steps")
    text = invoke("status", str(tmp_path)).stdout
    assert "stopped: stopped by SIGTERM after 12 steps" in text
    assert "stopped (extracting)" in text
    assert "not begun" in text
    assert "the same command goes on from there" in text
    assert "time left" not in text


def test_json_holds_all_of_it(tmp_path: Path) -> None:
    with journal(tmp_path) as kept:
        begin(kept)
    with journal(tmp_path):
        pass
    found = json.loads(invoke("status", str(tmp_path), "--json", "--all").stdout)
    assert (found["earlier"], found["records"], found["problems"]) == (0, 0, [])
    run = next(run for run in found["runs"] if run["name"] == kept.path.stem)
    assert (run["state"], run["images"], run["images_total"], run["seconds_left"]) == ("finished", 1500, 12_000, None)
    assert run["states"] == {"stopped": 1, "not begun": 1, "failed": 1}
    assert run["jobs"][1] == {
        "backbone": LONG,
        "task": "digits",
        "state": "not begun",
        "stage": "",
        "records": None,
        "records_total": None,
        "images": 0,
        "images_total": None,
        "errors": [],
    }


def test_earlier_runs_damaged_files_and_lone_records_are_told(tmp_path: Path) -> None:
    (tmp_path / "records" / "b" / "t").mkdir(parents=True)
    (tmp_path / "records" / "b" / "t" / "key.json").write_text("")
    assert "1 records, and no file of a run" in invoke("status", str(tmp_path)).stdout
    for _ in range(2):
        with journal(tmp_path):
            pass
    (tmp_path / "runs" / "x.json").write_text("{")
    text = invoke("status", str(tmp_path)).stdout
    assert "1 earlier run in" in text
    assert "--all shows them too" in text
    assert "left out: the run file" in text
    assert "earlier run" not in invoke("status", str(tmp_path), "--all").stdout


def test_watching_what_has_ended_shows_it_once(tmp_path: Path) -> None:
    with journal(tmp_path):
        pass
    shown = invoke("status", str(tmp_path), "--watch").stdout
    assert shown.count("finished") == 1


def test_watching_without_a_terminal_is_a_line_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = journal(tmp_path)
    looks = iter(range(3))

    def rest(seconds: float) -> None:
        if next(looks) == 2:
            kept.__exit__(None, None, None)

    monkeypatch.setattr("time.sleep", rest)
    monkeypatch.setattr("vitbench.cli.console.PLAIN_SECONDS", 0.0)
    kept.__enter__()
    lines = invoke("status", str(tmp_path), "--watch").stdout.splitlines()
    assert [line.startswith(f"{kept.path.stem}: 0 of 3 jobs done") for line in lines[:4]] == [True, True, True, False]
    assert lines[3].startswith(f"run {kept.path.stem} · finished")


def test_what_a_watched_table_has_no_room_for_is_counted(tmp_path: Path) -> None:
    from rich.console import Console

    from vitbench.reporting.status import read_status

    jobs = [("demo", f"task-{number}") for number in range(50)]
    kept = Journal(tmp_path, "", "local", jobs)
    for job in jobs[:40]:
        kept.done(*job)
    kept.running(*jobs[40], "score")
    kept.failed(*jobs[41], "no")
    with kept:
        (run,) = read_status(tmp_path).runs
    shown = module._fitting(run.jobs, 6)
    assert [job.task for job in shown] == ["task-40", "task-41", "task-42", "task-43"]
    assert [job.task for job in module._fitting(run.jobs, None)] == [task for _, task in jobs]
    with (tmp_path / "text").open("w+") as file:
        Console(file=file, width=80).print(module._table(run, 6))
        file.seek(0)
        assert "… and 46 more" in file.read()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "there are no runs and no records at nowhere"),
        (["."], "there are no runs and no records at .: start one"),
        (["--watch", "--json"], "leave one of them out"),
        (["--al"], "--all"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vitbench", "status", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capfd.readouterr().err.strip()
    assert stop.value.code == 2
    assert expected in told
    assert "\n" not in told


def test_a_real_run_from_its_command_to_its_status(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    task = f"imagefolder:{image_folder()}"
    run = ["run", "-b", "pixels", "-t", task, "--shots", "1,2", "--seeds", "2", "-o", str(tmp_path / "out")]
    assert invoke(*run, "--quiet").exit_code == 0
    (first,) = json.loads(invoke("status", str(tmp_path / "out"), "--json").stdout)["runs"]
    (job,) = first["jobs"]
    assert (first["state"], job["state"], job["records"], job["records_total"]) == ("finished", "done", 4, 4)
    assert job["images"] == job["images_total"] > 0
    assert invoke(*run, "--quiet").exit_code == 0
    (second,) = json.loads(invoke("status", str(tmp_path / "out"), "--json").stdout)["runs"]
    (job,) = second["jobs"]
    assert second["name"] > first["name"] or second["started"] >= first["started"]
    assert (job["state"], job["records"], job["images_total"]) == ("done", 4, 0)


def test_status_needs_neither_torch_nor_pandas(tmp_path: Path) -> None:
    with journal(tmp_path):
        pass
    code = (
        "import sys\n"
        f"sys.argv = ['vitbench', 'status', {str(tmp_path)!r}]\n"
        "from vitbench.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('HEAVY', sorted({'torch', 'pandas', 'timm', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout[-300:] + done.stderr

"""The command as a user runs it. Fast ones in this process; what a fresh process must prove, in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.cli.console import ConsoleReporter
from vitbench.cli.main import app, main

HEAVY = {"torch", "pandas", "datasets", "timm", "transformers", "scipy", "sklearn", "PIL", "pyarrow"}


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def fresh(*arguments: str, cwd: Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitbench", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["status", "--help"],
        ["cache", "gc", "--help"],
        ["ls", "tasks"],
        ["ls", "suites", "--json"],
        ["show", "task", "cifar10"],
    ],
)
def test_what_must_answer_at_once_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['vitbench', *{arguments!r}]\n"
        "from vitbench.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_the_only_failure_is_told_once_quiet_or_not(
    image_folder: ImageFolderMaker, tmp_path: Path, quiet: list[str]
) -> None:
    folder = image_folder()
    (folder / "test" / "boot" / "000.png").write_bytes(b"no image")
    done = invoke("run", "-b", "pixels", "-t", f"imagefolder:{folder}", "-o", str(tmp_path), "--shots", "1", *quiet)
    assert done.exit_code == 2
    assert " ".join(done.stderr.split()).count("000.png") == 1, done.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such name")
def test_a_file_name_that_is_no_text_is_a_name(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder()
    image = folder / "test" / "boot" / "000.png"
    image.rename(os.fsdecode(os.fsencode(image.parent) + b"/caf\xe9.png"))
    done = invoke(
        "run", "-b", "pixels", "-t", f"imagefolder:{folder}", "-o", str(tmp_path / "out"), "--protocol", "ridge"
    )
    assert done.exit_code == 0, done.output
    next(path for path in image.parent.iterdir() if path.name.startswith("caf")).write_bytes(b"no image")
    done = invoke("run", "-b", "pixels", "-t", f"imagefolder:{folder}", "-o", str(tmp_path / "out"), "--shots", "1")
    assert done.exit_code == 2, done.output
    assert r"caf\udce9.png" in "".join(done.stderr.split())
    assert json.loads(max((tmp_path / "out" / "runs").glob("*.json")).read_text())["state"] == "finished"


def test_tables_of_records_need_no_torch() -> None:
    code = (
        "import sys\n"
        "import vitbench.records.store, vitbench.reporting.formats, vitbench.reporting.leaderboard, vitbench.reporting.recorded\n"
        "print(sorted({'torch', 'scipy.sparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    "verb",
    [
        ["run"],
        ["status"],
        ["leaderboard"],
        ["ls"],
        ["show", "task"],
        ["show", "backbone"],
        ["show", "recipe"],
        ["doctor"],
        ["analyze"],
        ["parity"],
        ["convert"],
        ["fetch"],
        ["audit"],
        ["ablate"],
        ["compare"],
        ["diagnose"],
        ["cost"],
        ["report"],
        ["why"],
        ["replay"],
        ["export"],
        ["cache", "ls"],
        ["cache", "verify"],
        ["cache", "gc"],
    ],
)
def test_every_verb_has_help_with_an_example(verb: list[str]) -> None:
    result = invoke(*verb, "--help")
    assert result.exit_code == 0
    assert f"vitbench {' '.join(verb)}" in result.stdout
    assert "Example" in result.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vitbench lead", ["leaderboard"]),
        ("vitbench run --tasks cif", ["cifar10"]),
        ("vitbench run --tasks digits,paper/ox", ["digits,paper/oxford_flowers102", "digits,paper/oxford_pets"]),
        ("vitbench run --backbone j", ["jax:"]),
        ("vitbench run --backbone timm:vit_tiny_patch16_224.augreg_in21k", None),
        ("vitbench ls rep", ["representations"]),
    ],
)
def test_the_shell_completes_names(line: str, expected: list[str] | None) -> None:
    words = line.split()
    asked = {"_VITBENCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    executable = Path(sys.executable).with_name("vitbench")
    done = subprocess.run([executable], env=os.environ | asked, capture_output=True, text=True, check=False)
    found = done.stdout.split()
    assert found == expected if expected is not None else "timm:vit_tiny_patch16_224.augreg_in21k" in found


@pytest.mark.parametrize("kind", ["tasks", "suites", "backbones", "protocols", "representations"])
def test_ls_as_a_table_and_as_json(kind: str) -> None:
    assert invoke("ls", kind).exit_code == 0
    rows = json.loads(invoke("ls", kind, "--json").stdout)
    assert rows
    assert all(isinstance(row, dict) for row in rows)


def test_show_task_and_backbone() -> None:
    shown = json.loads(invoke("show", "task", "cifar10", "--json").stdout)
    assert shown["splits"]["train"] == "plain_text/train-*.parquet · 50,000 images"
    assert shown["source"]["repo"] == "uoft-cs/cifar10"
    backbone = json.loads(invoke("show", "backbone", "pixels", "--json").stdout)
    assert backbone["representations"] == {"pixels": "3,072 dimensions, trained"}


def test_doctor_times_a_batch_and_looks_at_the_output(tiny_vit: str) -> None:
    result = json.loads(invoke("doctor", "--backbone", tiny_vit, "--batch-size", "2", "--json").stdout)
    assert result["output"]["cls"] == "[2, 24], all finite"
    assert "images/s" in result["batch"]
    assert "an alias of cls" in result["representations"]["pooler"]


def test_run_then_leaderboard(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder()
    done = fresh(
        "run",
        "-b",
        "pixels",
        "--tasks",
        f"imagefolder:{folder}",
        "--shots",
        "1,2",
        "--seeds",
        "2",
        "-o",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "4 records written, 0 there already" in done.stdout
    assert "12 images in" in done.stderr
    table = fresh("leaderboard", "-o", "out", "--shots", "2", "--format", "csv", cwd=tmp_path)
    assert "imagefolder/shoes" in table.stdout
    saved = next((tmp_path / "out" / "configs").glob("*.yaml"))
    again = fresh("run", "--config", str(saved), cwd=tmp_path)
    assert "0 records written, 4 there already" in again.stdout, again.stderr
    assert "images in" not in again.stderr


def test_dry_run_prints_the_plan_and_writes_nothing(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    task = f"imagefolder:{image_folder()}"
    result = invoke("run", "-b", "pixels", "-t", task, "--shots", "1", "--seeds", "1", "-o", str(out), "--dry-run")
    assert result.exit_code == 0
    assert "15 images would go through a backbone" in result.stdout
    assert not out.exists()


BAD_INPUT = [
    (["run", "-b", "timm:vit_tiny_patch16_223"], "vit_tiny_patch16_224"),
    (["run", "-b", "timn:vit_tiny_patch16_224"], "did you mean 'timm'?"),
    (["run", "-b", "timm:resnet18,checkpoint=a, b.pt"], "option ' b.pt' is not of the form key=value"),
    (["run", "-t", "cifar11"], "cifar10"),
    (["run", "-t", "imagefolder:"], "names no folder"),
    (["run", "-t", "."], "task '.' is a folder: to use its images write imagefolder:."),
    (["run", "--protocol", "fewshots"], "did you mean 'fewshot'?"),
    (["run", "-r", "cls,,g@p"], "representation 'g@p' cannot be read"),
    (["run", "-b", "pixels", "-t", "digits", "-r", "clss"], "did you mean 'cls'?"),
    (["run", "-r", "cls+cls"], "has 'cls' twice"),
    (["run", "--shots", "0"], "shots must be whole numbers from 1"),
    (["run", "--shots", "five"], "got 'five'"),
    (["run", "--shots", "100000000000000000000"], "shots must be whole numbers from 1 to"),
    (["run", "--shots", ""], "--shots is empty"),
    (["run", "--out", ""], "--out is empty"),
    (["run", "--seeds", "-1"], "seeds"),
    (["run", "--seeds", "1000000000"], "the number of seeds must be whole numbers from 1 to 10000"),
    (["run", "--l2", "-3"], "l2"),
    (["run", "--set", "criterion"], "--set 'criterion' is not of the form KEY=VALUE"),
    (["run", "--set", "criteron=accuracy"], "did you mean 'criterion'?"),
    (["run", "--preprocess", "bigvision"], "bigvision_fewshot"),
    (["run", "--on-existing", "skp"], "takes skip, rerun, error, got 'skp'; did you mean skip?"),
    (["run", "--limit", "0"], "limit must be at least 1, got 0"),
    (["run", "--limit", "abc"], "(see `vitbench run --help`)"),
    (["run", "--bogus"], "No such option: --bogus"),
    (["run", "-t", "imagefolder:./nowhere"], "there is no image folder"),
    (["run", "-o", "/dev/null/out"], "cannot be written to"),
    (["run", "--config", "nowhere.yaml"], "there is no file nowhere.yaml"),
    (["run", "-b", "jax:nowhere.npz"], "nowhere.npz"),
    (["run", "-b", "hf:./nowhere"], "nowhere"),
    (["run", "-b", "pixels,resolution=0"], "resolution '0'"),
    (["run", "-b", "pixels,res=3"], "did you mean 'resolution'?"),
    (["leaderboard", "--format", "tabel"], "did you mean 'table'?"),
    (["leaderboard", "-o", "nowhere"], "there are no results at nowhere"),
    (["leaderboard", "--shots", "x"], "--shots takes whole numbers"),
    (["leaderboard", "--shots", ""], "--shots is empty"),
    (["ls", "task"], "did you mean 'tasks'?"),
    (["ls"], "Missing argument"),
    (["lss"], "No such command 'lss'"),
    (["show", "task", "cifar11"], "cifar10"),
    (["doctor", "-b", "timm:resnet19"], "resnet18"),
    (["doctor", "-b", "pixels,preprocess=foo"], "foo"),
    (["doctor", "-b", "pixels", "--batch-size", "100000000"], "does not fit in memory"),
]


@pytest.mark.parametrize(("arguments", "expected"), BAD_INPUT, ids=[" ".join(arguments) for arguments, _ in BAD_INPUT])
def test_bad_input_is_one_clear_line_and_exit_2(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vitbench", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capfd.readouterr().err.strip()
    assert stop.value.code == 2, told
    assert expected in told
    assert told.startswith(("error: ", "failed: "))
    assert "\n" not in told


def test_main_prints_the_error_and_exits_2(tmp_path: Path) -> None:
    done = fresh("run", "--tasks", "cifar11", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown task 'cifar11'; did you mean")
    assert done.stderr.count("\n") == 1


def test_a_failed_job_among_others_is_exit_1(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    good, bad = image_folder("good"), image_folder("bad")
    (bad / "test" / "boot" / "000.png").write_bytes(b"x")
    result = invoke(
        "run",
        "-b",
        "pixels",
        "-t",
        f"imagefolder:{bad},imagefolder:{good}",
        "--shots",
        "1",
        "-o",
        str(tmp_path / "out"),
    )
    assert result.exit_code == 1
    assert "1 failed:" in result.stderr
    assert "row 0 (test/boot/000.png)" in result.stderr
    assert set(vitbench.load_results(tmp_path / "out")["task"]) == {"imagefolder/good"}


def test_more_shots_than_images_is_told_and_recorded(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    result = invoke("run", "-t", f"imagefolder:{image_folder()}", "--shots", "10", "-o", str(tmp_path / "out"))
    assert result.exit_code == 0
    assert "fewer than 10" in result.stderr.replace("\n", " ")
    frame = vitbench.load_results(tmp_path / "out")
    assert frame["warnings"].str.contains("fewer than 10").all()
    assert frame["n_support"].eq(18).all()


EAGER = """
import sys, time
import vitbench.features.writer as writer
from vitbench.features.store import FeatureStore
from vitbench.records.store import ResultStore
writer.FLUSH_SECONDS = -1.0  # a shard for every batch, so that there is a middle of the extraction to be killed in
for kind, name in ((FeatureStore, "append"), (ResultStore, "write")):
    def slow(self, *given, original=getattr(kind, name)):
        result = original(self, *given)
        time.sleep(0.15)
        return result
    setattr(kind, name, slow)
from vitbench.cli.main import main
main()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_while_embedding_and_while_scoring_the_same_command_goes_on_and_ends_equal(
    how: signal.Signals, image_folder: ImageFolderMaker, tiny_vit: str, tmp_path: Path
) -> None:
    folder = image_folder(train=30, test=30)
    arguments = [
        "run",
        "-b",
        tiny_vit,
        "-t",
        f"imagefolder:{folder}",
        "--shots",
        "1,5",
        "--seeds",
        "2",
        "--batch-size",
        "8",
    ]
    whole = fresh(*arguments, "-o", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    for watched, total in (("features/**/shard-*.json", 15), ("records/**/*.json", 12)):
        process = subprocess.Popen(
            [sys.executable, "-c", EAGER, *arguments, "-o", "cut"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while (
            len(list((tmp_path / "cut").glob(watched))) < 3 and process.poll() is None and time.monotonic() < deadline
        ):
            time.sleep(0.002)
        process.send_signal(how)
        assert process.wait(timeout=60) != 0, "it was over before it could be killed"
        assert 3 <= len(list((tmp_path / "cut").glob(watched))) < total, "it was killed in the middle"
    done = fresh(*arguments, "-o", "cut", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    columns = ["key", "representation", "shot", "seed", "accuracy", "l2", "n_support", "n_test"]
    cut, undisturbed = (vitbench.load_results(tmp_path / name)[columns] for name in ("cut", "whole"))
    pd.testing.assert_frame_equal(cut, undisturbed)


def test_output_that_nobody_reads_or_that_does_not_fit_is_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m vitbench ls tasks"
    full = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr) == (1, "error: the output cannot be written: the disk is full\n")
    piped = subprocess.run(f"{command} | true", shell=True, capture_output=True, text=True, check=False)
    assert piped.stderr == ""


def test_two_processes_on_one_store_do_not_harm_each_other(
    image_folder: ImageFolderMaker, tiny_vit: str, tmp_path: Path
) -> None:
    folder = image_folder(train=30, test=30)
    arguments = ["-m", "vitbench", "run", "-b", tiny_vit, "-t", f"imagefolder:{folder}", "--shots", "1,5", "-o", "out"]
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    frame = vitbench.load_results(tmp_path / "out")
    assert len(frame) == 3 * 2 * 3
    assert frame["key"].is_unique
    shards = list((tmp_path / "out" / "features").glob("**/shard-*.safetensors"))
    assert len(shards) == 2, "one for train, one for test: nothing was embedded twice"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a small tmpfs")
def test_a_full_disk_is_one_clear_line_and_loses_nothing(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        folder = image_folder(train=10, test=60)
        run = ["run", "-b", "pixels", "-t", f"imagefolder:{folder}", "--shots", "1", "--seeds", "1"]
        first = fresh(*run, "--limit", "3", "-o", str(small), cwd=tmp_path)
        assert first.returncode == 0, first.stderr
        full = fresh(*run, "-o", str(small), cwd=tmp_path)
        assert full.returncode == 2
        assert "the disk is full; what was saved before is intact" in full.stderr
        assert "Traceback" not in full.stderr
        assert len(vitbench.load_results(small)) == 1
        assert not list(small.glob("**/.tmp-*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_stage_that_ends_early_says_how_much_of_it_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    for done in (3, 5):
        with reporter.track("extract pixels", 5, "images") as advance:
            advance(done)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("extract pixels: 3 of 5 images in ")
    assert second.startswith("extract pixels: 5 images in ")

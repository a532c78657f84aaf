from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import vitbench
from vitbench.cli import replay, run, why
from vitbench.cli.why import parse_run
from vitbench.errors import UsageError, VitbenchError
from vitbench.execution import execute as executing
from vitbench.execution.config import RunConfig
from vitbench.execution.plan import RunResult
from vitbench.records.store import ResultStore

app = typer.Typer(rich_markup_mode="markdown")
for verb, module in (("run", run), ("why", why), ("replay", replay)):
    app.command(verb, epilog=module.EXAMPLES)(getattr(module, verb))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def said(result: Result) -> str:
    """What a mistake says: our errors leave the command as exceptions, the parser's as its output."""
    return str(result.exception) if isinstance(result.exception, VitbenchError) else result.output


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("why") / "out"
    vitbench.run("pixels", "digits", shots=[1, 5], seeds=2, out=folder)
    return folder


def key_of(out: Path, shot: int) -> str:
    results = ResultStore(out)
    return next(path.stem for path in out.rglob("records/**/*.json") if results.read(path.stem).shot == shot)


def test_why_a_record_as_text_and_as_json(out: Path) -> None:
    key = key_of(out, 5)
    done = invoke("why", key[:10], "-o", str(out))
    assert done.exit_code == 0, done.output
    assert "pixels · pixels · builtin/digits · fewshot, l2 = 1024 · 5-shot" in done.stdout
    assert "would be used again: every field of its identity is the same today; as" in done.stdout
    told = json.loads(invoke("why", str(next(out.rglob(f"{key}.json"))), "--json").stdout)
    assert (told["key"], told["used_again"], told["differences"]) == (key, True, [])
    assert told["identity"]["shot"] == 5


@pytest.mark.parametrize("quoted", [False, True])
def test_why_a_command_as_words_and_as_one_text(quoted: bool, out: Path) -> None:
    words = ["run", "-b", "pixels", "--task", "digits", "--shots", "1,5,10", "--seeds", "2", "-o", str(out)]
    given = ["vitbench " + " ".join(words)] if quoted else ["--", *words]
    done = invoke("why", *given)
    assert done.exit_code == 0, done.output
    assert "6 records: 4 there, 2 to be made" in done.stdout
    assert "2 × builtin/digits · pixels · 10-shot · seed 0, 1" in done.stdout
    assert "shot: another shot" in done.stdout
    told = json.loads(invoke("why", "--json", *given).stdout)
    assert told["present"] == 4
    assert [row["shot"] for row in told["missing"]] == [10, 10]
    assert {part["field"] for row in told["missing"] for part in row["differences"]} == {"shot"}


def test_why_a_command_that_cannot_be_prepared(out: Path) -> None:
    done = invoke("why", "--", "run", "-b", "timm:no_such_model", "-t", "digits", "-o", str(out))
    assert done.exit_code == 1
    assert "failed: " in done.stderr


COMMANDS = [
    [],
    ["-b", "timm:vit_tiny_patch16_224,resolution=32,pixels", "-t", "digits,paper", "--task", "cifar10"],
    ["--shots", "1,5", "--shots", "10", "--seeds", "0,7", "--l2", "loo", "--set", "criterion=accuracy"],
    ["--suite", "vtab", "--tune", "--limit", "3", "--dtype", "bfloat16", "--batch-size", "8", "--workers", "2"],
    ["-r", "cls,gap@-1", "--protocol", "ridge", "--preprocess", "vtab", "--train-split", "train[:9]", "--offline"],
    ["--task-data", "cifar10=/a", "--task-data", "dtd=/b=c", "--accept-sizes", "--allow-untrained", "-o", "x/y", "-q"],
    ["--on-existing", "rerun", "--device", "cpu", "--test-split", "test[:5]", "--dry-run"],
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_command_is_read_as_run_reads_it(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunConfig] = []

    def caught(config: RunConfig, *_: Any, **__: Any) -> RunResult:
        seen.append(config)
        return RunResult()

    monkeypatch.setattr(executing, "execute", caught)
    done = invoke("run", *arguments)
    assert done.exit_code == 0, done.output
    assert parse_run(arguments).model_dump() == seen[0].model_dump()


def test_a_configuration_file_of_a_command_is_read(out: Path, tmp_path: Path) -> None:
    (saved,) = (out / "configs").glob("*.yaml")
    assert "4 records: 4 there, 0 to be made" in invoke("why", "--", "run", "--config", str(saved)).stdout
    assert parse_run(["--config", str(saved), "--shots", "3"]).options["shots"] == "3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothere"], "no record in"),
        (["vitbench leaderboard --shots 5"], "is neither one record nor a command"),
        (["one", "two"], "is neither one record nor a command"),
        (["vitbench"], "is neither one record nor a command"),
        (["vitbench run --task 'digits"], "the command cannot be read: No closing quotation"),
        (["--", "run", "--bakbone", "pixels"], "--backbone"),
        (["--", "run", "--task", "digit"], "did you mean"),
        (["--", "run", "--task", ""], "--tasks is empty"),
        (["-b", "pixels", "--", "run"], "write them behind `run`"),
        (["nowhere/a.json"], "there is no record nowhere/a.json"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, out: Path) -> None:
    given = arguments if "run" in " ".join(arguments) else ["-o", str(out), *arguments]
    done = invoke("why", *given)
    assert done.exit_code
    assert message in said(done)
    if isinstance(done.exception, VitbenchError):
        assert "\n" not in said(done)


def test_the_options_of_a_command_can_be_asked_for() -> None:
    assert "--representations" in invoke("why", "--", "run", "--help").stdout


def test_replay_says_how_it_went_and_ends_with_its_status(out: Path) -> None:
    key = key_of(out, 1)
    done = invoke("replay", key, "-o", str(out), "-q")
    assert done.exit_code == 0, done.output
    assert "identity: equal" in done.stdout
    assert "all 797 predictions" in done.stdout
    other = invoke("replay", key, "-o", str(out), "--json", "--task-data", "x")
    assert isinstance(other.exception, UsageError)
    path = next(out.rglob(f"{key}.json"))
    text = path.read_text()
    record = json.loads(text)
    record["scores"]["accuracy"] += 0.001
    path.write_text(json.dumps(record))
    try:
        assert invoke("replay", key, "-o", str(out), "-q").exit_code == 1
        near = invoke("replay", key, "-o", str(out), "-q", "--json", "--tolerance", "0.2")
        assert near.exit_code == 0
        told = json.loads(near.stdout)
        assert told["agrees"]
        assert told["predictions"] == {"scored": 797, "differ": 0}
        assert told["verdict"].startswith("the same within 0.2 points")
    finally:
        path.write_text(text)
    assert invoke("replay", key, "--tolerance", "-1").exit_code


@pytest.mark.parametrize("name", ["why", "replay"])
def test_help_has_an_example(name: str) -> None:
    done = invoke(name, "--help")
    assert f"vitbench {name} 1f2e3d4c" in done.stdout

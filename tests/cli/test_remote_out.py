from __future__ import annotations

import json
import pickle
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.cli.main import app
from vitbench.errors import UsageError
from vitbench.execution.config import RunConfig, make_config
from vitbench.records import remote


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(remote, "_MIRRORS", {})
    on_machine("a", tmp_path, monkeypatch)
    return f"file://{tmp_path / 'shared' / 'runs'}"


def on_machine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, as a new process of a machine that has a cache of its own."""
    monkeypatch.setenv("VITBENCH_CACHE", str(tmp_path / f"cache-{name}"))
    remote._MIRRORS.clear()


@pytest.fixture
def ran(url: str, image_folder: ImageFolderMaker, monkeypatch: pytest.MonkeyPatch) -> str:
    run = ("run", "-b", "pixels", "-t", f"imagefolder:{image_folder()}", "--shots", "1,2", "--seeds", "2")
    result = invoke(*run, "--out", url)
    assert result.exit_code == 0, result.output
    assert f"4 records written, 0 there already, in {url}/records" in result.stdout.replace("\n", "")
    return url


def test_a_run_to_a_url_and_the_leaderboard_from_another_machine(
    ran: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared" / "runs"
    records = {path.stem for path in (shared / "records").rglob("*.json")}
    assert len(records) == 4
    assert {path.stem for path in (shared / "records").rglob("*.parquet")} == records
    assert len([*(shared / "features").rglob("*.safetensors")]) == 2
    here = invoke("leaderboard", "--out", ran, "-f", "csv")
    on_machine("b", tmp_path, monkeypatch)
    there = invoke("leaderboard", "--out", ran, "-f", "csv")
    assert there.exit_code == 0, there.output
    assert there.stdout == here.stdout
    assert "pixels" in there.stdout


def test_another_machine_goes_on_with_the_records_and_features_that_are_there(
    ran: str, image_folder: ImageFolderMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    on_machine("b", tmp_path, monkeypatch)
    task = f"imagefolder:{tmp_path / 'shoes'}"
    result = invoke("run", "-b", "pixels", "-t", task, "--shots", "1,2", "--seeds", "2", "--out", ran)
    assert "0 records written, 4 there already" in result.stdout
    frame = vitbench.run("pixels", task, l2="loo", shots=[1, 2], seeds=2, out=ran)
    assert len(frame) == 4
    assert not encoded
    on_machine("a", tmp_path, monkeypatch)
    assert len(vitbench.load_results(ran)) == 8


def test_records_at_a_url_equal_those_of_a_folder(ran: str, tmp_path: Path) -> None:
    local = vitbench.run("pixels", f"imagefolder:{tmp_path / 'shoes'}", shots=[1, 2], seeds=2, out=tmp_path / "local")
    there = vitbench.load_results(ran)
    other = ["seconds", "created", "command"]
    pd.testing.assert_frame_equal(there.drop(columns=other), local.drop(columns=other))


@pytest.mark.parametrize(
    "verb",
    [
        ("export", "--out-file", "{tmp}/all.csv", "--out"),
        ("diagnose", "--to", "{tmp}/diagnostics", "--no-gallery", "--out"),
        ("report", "--out", "{tmp}/report", "--no-images", "--results"),
        ("cache", "ls", "--out"),
        ("cache", "verify", "--out"),
    ],
)
def test_verbs_that_read_take_a_url(
    verb: tuple[str, ...], ran: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine("b", tmp_path, monkeypatch)
    result = invoke(*(word.format(tmp=tmp_path) for word in verb), ran)
    assert result.exit_code == 0, result.output


def test_compare_takes_urls_and_folders(ran: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine("b", tmp_path, monkeypatch)
    result = invoke("compare", ran, tmp_path / "shared" / "runs")
    assert result.exit_code == 0, result.output
    assert "identical" in result.stdout


def test_why_and_replay_find_a_record_at_a_url(ran: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine("b", tmp_path, monkeypatch)
    key = vitbench.load_results(ran)["key"][0]
    assert "used_again" in invoke("why", key, "--out", ran, "--json").stdout
    for extra in ((), ("--reuse-features",)):
        told = json.loads(invoke("replay", key, "--out", ran, "--json", "-q", *extra).stdout)
        assert told["agrees"]
    asked = invoke("why", f"run -b pixels -t imagefolder:{tmp_path / 'shoes'} --shots 1,2 --seeds 3 --out {ran}")
    assert f"({ran})" in asked.stdout.replace("\n", "")


def test_gc_removes_features_at_the_url(ran: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine("b", tmp_path, monkeypatch)
    removed = invoke("cache", "gc", "--out", ran, "--older-than", "0m", "--yes")
    assert "removed: 2 stores" in removed.stdout, removed.output
    assert not [path for path in (tmp_path / "shared" / "runs" / "features").rglob("*") if path.is_file()]
    assert len(vitbench.load_results(ran)) == 4


def test_a_configuration_comes_back_from_its_yaml_on_any_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(out=url, tasks=("builtin",))
    assert (config.out, config.out_url) == (remote.mirror_of(url), url)
    assert not config.out.exists()
    saved = config.save()
    text = (tmp_path / "shared" / "runs" / "configs" / saved.name).read_text()
    assert yaml.safe_load(text)["out"] == yaml.safe_load(text)["out_url"] == url
    assert make_config({}, saved) == config
    assert make_config(config.model_dump()) == config
    assert make_config(config.model_dump(mode="json")) == config
    on_machine("b", tmp_path, monkeypatch)
    there = make_config(config.model_dump(mode="json"))
    assert (there.out, there.out_url) == (remote.mirror_of(url), url)
    assert there.out != config.out


def test_a_pickled_configuration_is_attached_on_the_workers_machine(
    ran: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = pickle.dumps(RunConfig(out=ran))
    on_machine("b", tmp_path, monkeypatch)
    config = pickle.loads(sent).attached()  # noqa: S301 - Ray sends it so
    assert config.out == remote.mirror_of(ran)
    assert len([*config.out.rglob("records/**/*.json")]) == 4
    plain = RunConfig(out=tmp_path)
    assert plain.attached() is plain


def test_what_is_said_of_out_later_goes_first(url: str, tmp_path: Path) -> None:
    saved = RunConfig(out=url).save()
    config = make_config({"out": tmp_path / "local"}, saved)
    assert (config.out, config.out_url) == (tmp_path / "local", "")
    assert RunConfig(out_url=url).out == remote.mirror_of(url)
    assert RunConfig(out=tmp_path, out_url=url).out_url == ""
    assert RunConfig(out=remote.mirror_of(url)).out_url == url
    with pytest.raises(UsageError, match="out-url 'runs' is no URL"):
        RunConfig(out_url="runs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "-t", "builtin", "--out", "mem0ry://x"), "unknown protocol 'mem0ry'; did you mean 'memory'?"),
        (("leaderboard", "--out", "{url}"), "there are no results at {url}: make some with"),
        (("leaderboard", "--save", "s3://b/x.md", "-f", "markdown"), "--save s3://b/x.md: only a run's output folder"),
        (("report", "--out", "s3://b/x"), "--out s3://b/x: only a run's output folder may be a URL"),
        (("audit", "-t", "builtin", "--out", "s3://b/x"), "--out s3://b/x: only a run's output folder may be a URL"),
        (("run", "-t", "builtin", "--out", "s3://me:secret@b/x"), "a password in the URL s3://…@b/…"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: tuple[str, ...], message: str, url: str) -> None:
    result = invoke(*(word.format(url=url) for word in arguments))
    assert result.exit_code != 0
    assert message.format(url=url) in str(result.exception)


def test_a_finished_training_is_at_the_url_with_its_model_and_without_its_checkpoints(
    url: str, image_folder: ImageFolderMaker, tiny_vit: str, tmp_path: Path
) -> None:
    short = ("--set", "steps=3", "--set", "warmup_steps=1", "--set", "batch_size=6", "--set", "preprocess=vit_jax")
    run = ("run", "-b", tiny_vit, "-t", f"imagefolder:{image_folder()}", "--recipe", "light", "--seeds", "1")
    result = invoke(*run, *short, "--checkpoint-steps", "1", "--tracker", "none", "--device", "cpu", "--out", url)
    assert result.exit_code == 0, result.output
    shared = tmp_path / "shared" / "runs"
    (record,) = (shared / "records").rglob("*.json")
    assert {"".join(path.suffixes) for path in record.parent.glob(f"{record.stem}*")} >= {".json", ".history.jsonl"}
    models = [path for path in (shared / "models").rglob("*") if path.is_file()]
    mirrored = [path for path in (remote.mirror_of(url) / "models").rglob("*") if path.is_file()]
    assert {path.name for path in models} == {path.name for path in mirrored}
    assert any(path.suffix == ".safetensors" for path in models)
    assert not (shared / "training").exists()

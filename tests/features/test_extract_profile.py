from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.cli.main import app
from vitbench.features import profile
from vitbench.features.profile import STAGES, Profile, forward_and_pool, recording, stage


@pytest.fixture
def trace(tiny_vit: str, image_folder: ImageFolderMaker, tmp_path: Path) -> dict[str, Any]:
    vitbench.run(
        tiny_vit,
        f"imagefolder:{image_folder()}",
        representations="cls,gap",
        shots=[1, 2],
        seeds=2,
        out=tmp_path / "out",
        profile=True,
    )
    (path,) = (tmp_path / "out" / "profile").iterdir()
    assert path.name.endswith(".trace.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_every_stage_of_a_run_is_in_its_trace(trace: dict[str, Any]) -> None:
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["name"] for event in spans} == {*STAGES, "run"}
    (whole,) = (event for event in spans if event["name"] == "run")
    assert whole["ts"] == 0
    for event in spans:
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        assert event["ts"] + event["dur"] <= whole["dur"] + 1e-3
    images = {name: sum(e["args"].get("images", 0) for e in spans if e["name"] == name) for name in STAGES}
    assert images["read"] == images["transform"] == images["forward"] == images["pool"] == 3 * 4 + 12
    assert sum(event["name"] == "score" for event in spans) == 8


def test_spans_of_one_thread_never_cross_and_every_thread_has_a_name(trace: dict[str, Any]) -> None:
    events = trace["traceEvents"]
    named = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = [event for event in events if event["ph"] == "X"]
    assert {event["tid"] for event in spans} == set(named)
    assert named[0] == "main"
    assert all(named[e["tid"]].startswith("decode") for e in spans if e["name"] in ("read", "decode", "transform"))
    for thread in named:
        own = sorted((e for e in spans if e["tid"] == thread), key=lambda e: (e["ts"], -e["dur"]))
        open_until: list[float] = []
        for event in own:
            while open_until and open_until[-1] <= event["ts"] + 1e-3:
                open_until.pop()
            assert not open_until or event["ts"] + event["dur"] <= open_until[-1] + 1e-3
            open_until.append(event["ts"] + event["dur"])


def test_the_command_prints_the_table_and_a_run_without_the_option_writes_nothing(tmp_path: Path) -> None:
    arguments = ["run", "-b", "pixels", "-t", "builtin/digits", "--shots", "1", "--seeds", "1", "-q", "-o"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "a"), "--profile"])
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in (*STAGES, "other", "images/s", ".trace.json"))
    assert CliRunner().invoke(app, [*arguments, str(tmp_path / "b")]).exit_code == 0
    assert not (tmp_path / "b" / "profile").exists()


def test_nothing_is_noted_while_nothing_records() -> None:
    assert stage("forward", 3) is stage("read")
    recorded = Profile()
    with recording(None), stage("forward"):
        assert profile.active() is None
    with recording(recorded), stage("forward", 3):
        assert profile.active() is recorded
    with stage("forward"):
        pass
    assert [(span.stage, span.images) for span in recorded.spans] == [("forward", 3)]


def test_what_fails_is_noted_and_ends_the_recording() -> None:
    recorded = Profile()
    with pytest.raises(ValueError), recording(recorded), stage("write"):
        raise ValueError
    assert profile.active() is None
    assert [span.stage for span in recorded.spans] == ["write"]


def test_the_table_adds_up_by_thread() -> None:
    recorded = Profile()
    with recording(recorded):
        with stage("forward", 4):
            pass
        worker = threading.Thread(target=lambda: recorded.note("decode", recorded._begun, recorded._begun + 10**12, 5))
        worker.start()
        worker.join()
    rows = {row.stage: row for row in recorded.rows()}
    assert list(rows) == [*STAGES, "other"]
    assert rows["decode"].images_per_second == pytest.approx(5 / 1000)
    assert rows["decode"].share > 1, "threads beside the main one may take longer than the run"
    assert rows["other"].seconds == pytest.approx(recorded.seconds - rows["forward"].seconds)
    assert rows["pool"].images_per_second is None


def test_pooling_begins_after_the_last_output_that_is_not_a_vector_per_image() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.pooler = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.pooler(self.trunk(tokens).mean(1))
            return pooled

    model, recorded = Model(), Profile()
    with recording(recorded), forward_and_pool([model], torch.device("cpu"), 2):
        model(torch.zeros(2, 3, 4))
    first, second = recorded.spans
    assert (first.stage, second.stage) == ("forward", "pool")
    assert first.start + first.duration == second.start
    assert not model.trunk._forward_hooks
    with recording(recorded), forward_and_pool([], torch.device("cpu"), 2):
        pass
    assert [span.stage for span in recorded.spans[2:]] == ["forward"]


def test_two_profiles_of_one_second_are_two_files(tmp_path: Path) -> None:
    recorded = Profile()
    recorded.stop()
    assert len({recorded.save(tmp_path) for _ in range(3)}) == 3
    assert not list(tmp_path.glob(".tmp-*"))

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.errors import UsageError
from vitbench.execution import budget
from vitbench.execution.budget import Fitted, fit
from vitbench.execution.config import RunConfig, make_config
from vitbench.execution.estimate import RECORD_SECONDS, Rate, Work, load_seconds, seconds, work_of
from vitbench.execution.job import Job, load_for, prepare
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Protocol
from vitbench.protocols.fewshot import FewShot
from vitbench.records.store import ResultStore
from vitbench.tasks.catalog import load_task

RATE = Rate({"float32": 1.0}, 1.0, decoders=1, apart=False)
"""One operation a second: operations are seconds."""


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs without data, whose work is their task's weight for every image per class of every cell; those that were prepared."""
    calls: list[str] = []
    _fake(monkeypatch, calls)
    return calls


def _fake(patch: Any, calls: list[str]) -> None:
    def fake_prepare(config: RunConfig, backbone: Any, task: Any, protocol: Protocol, results: Any) -> Job:
        calls.append(f"{backbone.spec.text} {task.name}")
        if task.weight is None:
            raise UsageError("cannot be prepared")
        cells = protocol.cells() if task.weight else []
        splits: Any = {"train": SimpleNamespace(labels=np.zeros(1, np.int64))}
        rows = {"train": np.arange(1), "test": np.arange(1)}
        wanted = {"cls": cells} if cells else {}
        none: Any = None
        return Job(backbone, task, protocol, ["cls"], none, {}, wanted, splits, rows, {}, None, [], [])

    def fake_work(job: Job) -> Work:
        cells = [cell for cells in job.wanted.values() for cell in cells]
        return Work(embed_flops=job.task.weight * sum(cell.shot for cell in cells), records=len(cells))

    patch.setattr(budget, "prepare", fake_prepare)
    patch.setattr(budget, "work_of", fake_work)
    patch.setattr(budget, "_names", lambda config, kept: tuple(task.name for task in kept))
    patch.setattr(FewShot, "train_rows", lambda self, labels, num_classes, cells: np.arange(1))


def fitted(
    available: float,
    weights: Sequence[float | None],
    protocol: Protocol,
    slots: int = 1,
    backbones: int = 1,
) -> Fitted:
    tasks: list[Any] = [
        SimpleNamespace(name=f"t{number}", weight=weight, num_classes=1) for number, weight in enumerate(weights)
    ]
    described: list[Any] = [
        SimpleNamespace(spec=SimpleNamespace(text=f"b{number}"), num_parameters=0) for number in range(backbones)
    ]
    none: Any = None
    return fit(RunConfig(), protocol, described, tasks, none, available, RATE, slots)


def cost(weights: Sequence[float], shots: Sequence[int], seeds: int, slots: int = 1, backbones: int = 1) -> float:
    """What the run of `fitted` takes."""
    load = load_seconds(SimpleNamespace(num_parameters=0))  # type: ignore[arg-type]
    each = [seeds * (weight * sum(shots) + len(shots) * RECORD_SECONDS) for weight in weights if weight]
    return backbones * (bool(each) * load + sum(each) / slots)


PROTOCOL = FewShot(shots=(1, 5, 10), seeds=(4, 2, 7))
WEIGHTS = [1.0, 3.0, 2.0]


def test_a_run_that_fits_is_left_as_it_is(prepared: list[str]) -> None:
    found = fitted(1e9, WEIGHTS, PROTOCOL)
    assert found.dropped == []
    assert found.protocol == PROTOCOL
    assert [task.name for task in found.tasks] == ["t0", "t1", "t2"]
    assert found.config == RunConfig()
    assert found.seconds == pytest.approx(cost(WEIGHTS, PROTOCOL.shots, 3))


def test_the_last_seeds_go_first(prepared: list[str]) -> None:
    found = fitted(cost(WEIGHTS, PROTOCOL.shots, 2) + 1e-6, WEIGHTS, PROTOCOL)
    assert found.protocol == FewShot(shots=(1, 5, 10), seeds=(4, 2))
    assert found.dropped == ["seed 7 (seeds 4, 2 stay)"]
    assert found.config.options == {"seeds": [4, 2]}
    assert PROTOCOL.from_options(found.config.options | {"shots": [1, 5, 10]}) == found.protocol
    assert fitted(cost(WEIGHTS, PROTOCOL.shots, 1) + 1e-6, WEIGHTS, PROTOCOL).dropped == ["seeds 2, 7 (seed 4 stays)"]


def test_then_the_largest_shots(prepared: list[str]) -> None:
    found = fitted(cost(WEIGHTS, (1, 5), 1) + 1e-6, WEIGHTS, PROTOCOL)
    assert found.dropped == ["seeds 2, 7 (seed 4 stays)", "shot 10 (shots 1, 5 stay)"]
    assert found.config.options == {"seeds": [4], "shots": [1, 5]}
    assert len(found.tasks) == 3


def test_then_the_most_expensive_tasks(prepared: list[str]) -> None:
    found = fitted(cost([1.0, 2.0], (1,), 1) + 1e-6, WEIGHTS, PROTOCOL)
    assert [task.name for task in found.tasks] == ["t0", "t2"]
    assert found.dropped[2:] == ["task t1 (about 3.3 s)"]
    assert found.config.tasks == ("t0", "t2")
    assert [task.name for task in fitted(cost([1.0], (1,), 1) + 1e-6, WEIGHTS, PROTOCOL).tasks] == ["t0"]


def test_if_not_even_the_least_fits_its_estimate_is_told(prepared: list[str]) -> None:
    with pytest.raises(
        UsageError, match=r"--budget 0\.5 s is too short: .*seed 4 and shot 1 and task t0 on one .* about 1\.3 s"
    ):
        fitted(0.5, WEIGHTS, PROTOCOL)


def test_a_protocol_without_seeds_or_shots_goes_on_to_tasks(
    prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    knn = PROTOCOLS.load("knn").from_options({"k": [1]})
    monkeypatch.setattr(
        budget, "work_of", lambda job: Work(embed_flops=job.task.weight * 10, records=job.records_wanted)
    )
    found = fitted(21, [1.0, 2.0], knn)
    assert [task.name for task in found.tasks] == ["t0"]
    assert found.protocol is knn
    assert found.config.options == {}
    with pytest.raises(UsageError, match=r"the least that could stay, task t0 on 2 backbones, takes about"):
        fitted(1, [1.0, 2.0], knn, backbones=2)


def test_a_job_is_prepared_once_however_much_is_dropped(prepared: list[str]) -> None:
    fitted(cost([1.0], (1,), 1, backbones=2) + 1e-6, WEIGHTS, PROTOCOL, backbones=2)
    assert sorted(prepared) == sorted(f"b{backbone} t{task}" for backbone in range(2) for task in range(3))


def test_what_is_there_or_cannot_be_prepared_costs_nothing_and_stays(prepared: list[str]) -> None:
    assert fitted(0, [0.0, None], PROTOCOL).dropped == []
    found = fitted(cost([1.0], (1,), 1) + 1e-6, [2.0, 0.0, 1.0, None], PROTOCOL)
    assert [task.name for task in found.tasks] == ["t1", "t2", "t3"]


def test_slots_share_the_work(prepared: list[str]) -> None:
    assert fitted(cost(WEIGHTS, PROTOCOL.shots, 3, slots=4) + 1e-6, WEIGHTS, PROTOCOL, slots=4).dropped == []


@settings(max_examples=150, deadline=None)
@given(
    weights=st.lists(st.floats(0, 100), min_size=1, max_size=5),
    shots=st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True),
    seeds=st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True),
    share=st.floats(0, 1.2),
    slots=st.integers(1, 4),
    backbones=st.integers(1, 2),
)
def test_it_never_exceeds_the_budget_and_drops_no_more_and_in_no_other_order_than_it_must(
    weights: list[float], shots: list[int], seeds: list[int], share: float, slots: int, backbones: int
) -> None:
    protocol = FewShot(shots=tuple(shots), seeds=tuple(seeds))
    with pytest.MonkeyPatch.context() as patch:
        _fake(patch, [])
        whole = fitted(float("inf"), weights, protocol, slots, backbones)
        assert whole.dropped == []
        available = share * whole.seconds
        least = fitted(float("inf"), [min(weights)], FewShot((min(shots),), (seeds[0],)), slots, backbones)
        if least.seconds > available:
            with pytest.raises(UsageError, match="too short"):
                fitted(available, weights, protocol, slots, backbones)
            return
        found = fitted(available, weights, protocol, slots, backbones)
        assert found.seconds <= available
        assert (found.dropped == []) == (whole.seconds <= available)
        kept: Any = found.protocol
        assert kept.seeds == tuple(seeds[: len(kept.seeds)])
        assert set(kept.shots) == set(sorted(shots)[: len(kept.shots)])
        assert kept.seeds
        assert kept.shots
        assert found.tasks
        assert len(kept.shots) == len(shots) or len(kept.seeds) == 1
        assert len(found.tasks) == len(weights) or (len(kept.seeds) == len(kept.shots) == 1)
        more = _one_more(found, protocol)
        if more is not None and len(found.tasks) == len(weights):
            assert fitted(float("inf"), weights, more, slots, backbones).seconds > available


def _one_more(found: Fitted, before: FewShot) -> FewShot | None:
    """The protocol with what was dropped last, without tasks."""
    kept: Any = found.protocol
    if len(kept.shots) < len(before.shots):
        return replace(kept, shots=tuple(sorted(before.shots)[: len(kept.shots) + 1]))
    if len(kept.seeds) < len(before.seeds):
        return replace(kept, seeds=before.seeds[: len(kept.seeds) + 1])
    return None


def test_fewer_cells_need_what_a_run_of_them_alone_needs(
    tiny_vit: str, image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    """What follows from the one prepared job is what `prepare` says of the smaller run, cached features and records included."""
    shoes = f"imagefolder:{image_folder(train=12)}"
    vitbench.run(tiny_vit, shoes, shots=[2], seeds=[1], representations="cls", out=tmp_path)
    config = make_config({"backbones": [tiny_vit], "tasks": [shoes], "out": tmp_path})
    protocol, results, task = FewShot((1, 2, 5), (0, 1)), ResultStore(tmp_path), load_task(shoes)
    backbone = load_for(tiny_vit, config, protocol)
    rate = Rate({"float32": 1e9}, 1e9, decoders=1, apart=False)

    def alone(used: FewShot) -> float:
        return load_seconds(backbone) + seconds(work_of(prepare(config, backbone, task, used, results)), rate)

    steps = [FewShot((1, 2, 5), (0,)), FewShot((1, 2), (0,)), FewShot((1,), (0,))]
    for step in steps:
        found = fit(config, protocol, [backbone], [task], results, alone(step) * 1.000001, rate)
        assert found.protocol == step
        assert found.seconds == pytest.approx(alone(step))
    with pytest.raises(UsageError, match="too short"):
        fit(config, protocol, [backbone], [task], results, alone(steps[-1]) * 0.9, rate)


def test_a_dropped_task_leaves_the_configuration_with_names_that_can_be_run(
    image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    shoes = f"imagefolder:{image_folder()}"
    config = make_config({"backbones": ["pixels"], "tasks": [shoes, "digits"], "out": tmp_path, "options": {"l2": 3}})
    protocol = FewShot((1,), (0,), l2=3)
    backbone = load_for("pixels", config, protocol)
    tasks = [load_task(name) for name in config.tasks]
    rate, results = Rate({"float32": 1e9}, 1e9, decoders=1, apart=False), ResultStore(tmp_path)
    least = fit(config, protocol, [backbone], tasks[:1], results, 1e9, rate).seconds
    found = fit(config, protocol, [backbone], tasks, results, least * 1.000001, rate)
    assert found.config.tasks == (shoes,)
    assert found.config.options == {"l2": 3}
    assert found.dropped[0].startswith("task builtin/digits (about ")


def test_trainings_have_seeds_to_drop(tiny_vit: str, image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    shoes = f"imagefolder:{image_folder()}"
    options = {"steps": 5, "batch_size": 4, "warmup_steps": 1, "seeds": 3}
    config = make_config({"backbones": [tiny_vit], "tasks": [shoes], "out": tmp_path, "options": options})
    protocol = PROTOCOLS.load("finetune").from_options(options)
    backbone = load_for(tiny_vit, config, protocol)
    rate = Rate({"float32": 1e7}, 1e9, decoders=1, apart=False)
    given: Any = (config, protocol, [backbone], [load_task(shoes)], ResultStore(tmp_path))
    whole = fit(*given, 1e9, rate)
    found = fit(*given, whole.seconds * 0.9, rate)
    assert found.dropped == ["seed 2 (seeds 0, 1 stay)"]
    assert found.config.options["seeds"] == [0, 1]
    assert found.config.options["steps"] == 5

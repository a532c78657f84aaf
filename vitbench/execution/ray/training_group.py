"""A training that several processes share, through Ray Train: each has one GPU, and Accelerate joins them.

Each does what a process does that `torchrun` started. They end together: where one is lost, or cannot go on, the
others are ended, and the training is taken up again as a whole.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import replace
from typing import Any

import ray
import torch

from vitbench.errors import one_line
from vitbench.execution.ray.training_task import Files, Trained, Training, carry_out
from vitbench.execution.ray.worker import Setting
from vitbench.training import processes

WORD_SECONDS = 10.0
"""How long a process that cannot go on waits for the main one to say the same, which then has the training's files."""


class Basket:
    """Takes what comes of a training out of its processes, which end with it; an actor."""

    def __init__(self) -> None:
        self._main: Trained | None = None
        self._other: Trained | None = None

    def put(self, result: Trained, main: bool) -> None:
        """Take up what a process has come to."""
        if main:
            self._main = result
        else:
            self._other = self._other or result

    def has_main(self) -> bool:
        """Whether the main process has come to anything."""
        return self._main is not None

    def take(self) -> Trained | None:
        """What the training has come to; None where its processes were lost."""
        return self._main or self._other


class GroupError(Exception):
    """Ends the processes of a training that cannot go on; what is wrong is in the basket."""


def train_together(setting: Setting, training: Training, begun: Files, count: int, on_gpus: bool) -> Trained:
    """Train one cell in several processes; a Ray task, which itself only waits.

    Args:
        setting: What workers are told.
        training: What to train.
        begun: What an earlier attempt has left, for workers that do not see the output folder.
        count: Number of processes.
        on_gpus: Whether each has a GPU; else they compute on the CPU.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    basket: Any = ray.remote(num_cpus=0)(Basket).remote()
    # Rounded down, so that all of them together take no more than one job's share.
    cores = math.floor(1000 * setting.cpus / count) / 1000
    share = replace(setting, cpus=max(1, setting.cpus // count))
    why, killed = "", list[int]()
    with tempfile.TemporaryDirectory(prefix="vitbench-", ignore_cleanup_errors=True) as notes:
        trainer = TorchTrainer(
            _one_of_several,
            train_loop_config={"setting": share, "training": training, "begun": ray.put(begun), "basket": basket},
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=on_gpus,
                resources_per_worker={"CPU": cores, **({"GPU": 1} if on_gpus else {})},
                placement_strategy="STRICT_PACK",  # on one node, where jobs were counted to fit
            ),
            torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
            run_config=RunConfig(storage_path=notes, failure_config=FailureConfig(max_failures=0)),
        )
        try:
            trainer.fit()
        except Exception as error:
            why = one_line(error)
            failures = getattr(error, "worker_failures", {})
            killed = sorted(rank for rank, failure in failures.items() if GroupError.__name__ not in repr(failure))
    found: Trained | None = ray.get(basket.take.remote())
    if found is None:
        return Trained(lost=_lost(killed, count, why))
    if found.problem is not None and not found.problem.kind:
        # What a process says of one that it has lost is an error that nobody expected, too.
        return replace(found, lost=_lost(killed, count, found.problem.text))
    return found


def _lost(killed: list[int], count: int, why: str) -> str:
    """Why a training ended early, as a clause; a process that was killed goes before what the others say of it."""
    return f"process {killed[0]} of {count} was lost" if killed else f"a process failed ({why})"


def _one_of_several(config: dict[str, Any]) -> None:
    """What each process does.

    Raises:
        GroupError: It cannot go on.
    """
    setting, basket = config["setting"], config["basket"]
    processes.join(cpu=setting.config.device == "cpu" or not torch.cuda.is_available())
    result = carry_out(setting, config["training"], ray.get(config["begun"]))
    if processes.is_main() or result.bad:
        ray.get(basket.put.remote(result, processes.is_main()))
    if result.bad:
        until = time.monotonic() + WORD_SECONDS
        while time.monotonic() < until and not ray.get(basket.has_main.remote()):
            time.sleep(0.5)
        raise GroupError(result.lost or str(result.problem) or result.failures[0])

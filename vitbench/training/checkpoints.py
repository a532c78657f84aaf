"""The state of a training between two updates: tensors as safetensors, no pickle, in place whole or not at all.

Accelerate's own `save_state` is not used: it reads further state back by unpickling, and goes on in silence where the states of
the random generators cannot be read.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vitbench.errors import StoreError
from vitbench.records.atomic import write_file, write_problem

_PREFIX = "step-"
_SUFFIX = ".safetensors"
_NAME = re.compile(rf"{_PREFIX}(\d+){re.escape(_SUFFIX)}")


class Checkpoints:
    """The checkpoints of one training, in one folder; the newest `keep` are there.

    Attributes:
        damaged: Those that `load` passed over because they cannot be read.
    """

    def __init__(self, folder: Path, identity: str, keep: int = 2) -> None:
        """See to the folder.

        Args:
            folder: Where they are.
            identity: What is being trained; checkpoints of another training are refused.
            keep: How many are kept.
        """
        self.folder, self.identity, self.keep = folder, identity, keep
        self.damaged: list[Path] = []

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, increasing."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob(f"{_PREFIX}*{_SUFFIX}"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """The file of a step's checkpoint."""
        return self.folder / f"{_PREFIX}{step:08d}{_SUFFIX}"

    def save(self, step: int, state: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
        """Write the state after `step` updates, and remove what is older than the newest `keep`, or of a later step.

        A later one is damaged, or of a branch of the training that was given up; it must not be in the way of this one.

        Args:
            step: Number of updates that have been made.
            state: Name to tensor.
            values: What else is to be kept, as JSON values.

        Raises:
            StoreError: It cannot be written, as on a full disk; the checkpoints before it are whole.
        """
        metadata = {"identity": self.identity, "step": str(step), "values": json.dumps(dict(values))}
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        try:
            write_file(self.path(step), lambda temporary: save_file(tensors, temporary, metadata))
        except (StoreError, SafetensorError) as error:
            before = [number for number in self.steps() if number < step]
            again = f"goes on from step {before[-1]:,}, whose checkpoint is whole" if before else "begins anew"
            raise StoreError(
                f"the checkpoint of step {step:,} cannot be written to {self.folder}: {write_problem(error.__cause__ or error)}; "
                f"with that mended, the same command {again}"
            ) from error
        steps = self.steps()
        for other in [*[old for old in steps if old <= step][: -self.keep], *[late for late in steps if late > step]]:
            self.path(other).unlink(missing_ok=True)
        return self.path(step)

    def remove_from(self, step: int) -> None:
        """Remove the checkpoints of this step and of later ones."""
        for late in self.steps():
            if late >= step:
                self.path(late).unlink(missing_ok=True)

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that can be read: its step, tensors and values; None when there is none.

        Raises:
            StoreError: It is of another training.
        """
        for step in reversed(self.steps()):
            try:
                with safe_open(self.path(step), framework="pt") as file:
                    metadata = file.metadata() or {}
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError):
                self.damaged.append(self.path(step))
                continue
            if metadata.get("identity") != self.identity:
                raise StoreError(
                    f"{self.path(step)} is a checkpoint of another training (its recipe, backbone, task or seed differ): "
                    f"move it away, or choose another --out"
                )
            return step, tensors, json.loads(metadata["values"])
        return None

    def clear(self) -> None:
        """Remove them all: the training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that the next update depends on: weights, the optimiser's state, the average of the weights, random generators."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    scalars: dict[str, Any] = {}
    whole = optimizer.state_dict()
    # LAMB counts its updates in the groups.
    counted = {
        str(number): float(group["step"]) for number, group in enumerate(whole["param_groups"]) if "step" in group
    }
    for index, state in whole["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is not None:
                scalars[f"{index}.{name}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"random.cuda.{number}": value for number, value in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"optimizer": scalars, "updates": counted}


def restore_state(
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
) -> None:
    """Put back what `training_state` gave."""
    model.load_state_dict(_below("model.", tensors))
    if average is not None:
        average.load_state_dict(_below("average.", tensors))
    found: dict[int, dict[str, Any]] = {}
    for name, value in [*_below("optimizer.", tensors).items(), *values["optimizer"].items()]:
        index, _, field = name.partition(".")
        found.setdefault(int(index), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    for number, step in values.get("updates", {}).items():
        groups[int(number)]["step"] = torch.tensor(step)
    optimizer.load_state_dict({"state": found, "param_groups": groups})
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda.0" in tensors:
        torch.cuda.set_rng_state_all([value for name, value in sorted(_below("random.cuda.", tensors).items())])


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

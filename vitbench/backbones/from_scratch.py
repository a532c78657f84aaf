"""Building a model without weights and drawing them anew, to train it from scratch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vitbench.backbones.spec import BackboneSpec
from vitbench.errors import UsageError

WEIGHTS_DIGEST = hashlib.sha256(b"from scratch").hexdigest()
"""Stands for the digest of weights that no file has: a result's identity has the recipe and its seed instead."""
NOTE = "from scratch: every weight newly initialised, none read from a checkpoint"
FIRST_SEED = 0
"""What a model is initialised with until `initialise` is called."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed what a model's constructor draws from, torch's generator of the CPU, and put that back afterwards.

    `torch.manual_seed` would also seed the generators of every GPU, which nobody restores.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def copy_weights(model: nn.Module, fresh: nn.Module) -> None:
    """Copy all parameters and buffers of `fresh` into `model`, in place, wherever each of the two is."""
    with torch.no_grad():
        model.load_state_dict(fresh.state_dict())


def check_initialised(spec: BackboneSpec) -> None:
    """Check that a backbone was loaded to be trained from scratch, so that its digest does not name weights that are gone.

    Raises:
        UsageError: It was not.
    """
    if not spec.initialise:
        raise UsageError(
            f"backbone '{spec.text}' was loaded with its weights: load it with from_scratch=True to draw them anew"
        )

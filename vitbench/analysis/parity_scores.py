"""Few-shot scores of the models that are compared, and by how much they differ."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from vitbench.execution.run import run
from vitbench.protocols import PROTOCOLS
from vitbench.tasks.catalog import expand_tasks

_PROTOCOL = "fewshot"


@dataclass(frozen=True)
class Score:
    """Few-shot accuracy of both, means over seeds, as fractions.

    Attributes:
        task: The task's full name.
        representation: What was scored.
        shot: Images per class.
        a: A's accuracy.
        b: B's accuracy.
    """

    task: str
    representation: str
    shot: int
    a: float
    b: float


@dataclass(frozen=True)
class Scoring:
    """What the models are scored on.

    Attributes:
        tasks: Task names; none for no scores.
        shots: Images per class.
        seeds: Number of support sets.
        limit: Number of test images, or None for all.
        out: Where records and features are kept; None for a temporary folder.
    """

    tasks: tuple[str, ...] = ()
    shots: tuple[int, ...] = (5,)
    seeds: int = 3
    limit: int | None = None
    out: Path | None = None


def check_scoring(scoring: Scoring) -> None:
    """Fail on a mistake in the scoring's options before any model is loaded.

    Raises:
        UsageError: A task or an option cannot be meant.
    """
    expand_tasks(list(scoring.tasks))
    PROTOCOLS.load(_PROTOCOL).from_options({"shots": list(scoring.shots), "seeds": scoring.seeds})


def score_pair(a: str, b: str, scoring: Scoring, out: Path, device: str) -> tuple[list[Score], list[str]]:
    """Score two models by the few-shot protocol, each with its own preprocessing.

    Args:
        a: The reference's spec.
        b: The other's spec.
        scoring: Tasks and options.
        out: Where records and features go; what is there already is used again.
        device: Where the models are run.

    Returns:
        A score per task, representation that both have trained, and shot; and what could not be scored, a line each.

    Raises:
        VitbenchError: Nothing could be scored at all.
    """
    tables: list[dict[tuple[str, str, int], float]] = []
    failures: list[str] = []
    for spec in (a, b):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the failures are in the frame
            frame = run(
                [spec],
                list(scoring.tasks),
                protocol=_PROTOCOL,
                shots=list(scoring.shots),
                seeds=scoring.seeds,
                limit=scoring.limit,
                out=out,
                device=device,
                dtype="float32",
            )
        means = frame.groupby(["task", "representation", "shot"], as_index=False)["accuracy"].mean()
        columns = (means[name] for name in ("task", "representation", "shot", "accuracy"))
        tables.append({(task, name, int(shot)): float(mean) for task, name, shot, mean in zip(*columns, strict=True)})
        failures += [line for line in frame.attrs["failures"] if line not in failures]
    one, other = tables
    scores = [Score(*key, one[key], other[key]) for key in one if key in other]
    return scores, failures

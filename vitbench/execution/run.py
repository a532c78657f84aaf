"""`vitbench.run`: the whole main job from Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.execution.config import make_config
from vitbench.execution.execute import execute
from vitbench.execution.reporter import Reporter
from vitbench.records.store import ResultStore, as_frame

if TYPE_CHECKING:
    import pandas as pd


def run(
    backbones: str | Sequence[str] | None = None,
    tasks: str | Sequence[str] | None = None,
    *,
    representations: str | Sequence[str] | None = None,
    protocol: str | None = None,
    shots: int | Iterable[int] | None = None,
    seeds: int | Iterable[int] | None = None,
    l2: str | float | None = None,
    out: str | Path | None = None,
    config: str | Path | None = None,
    reporter: Reporter | None = None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Score backbones on tasks, as `vitbench run` does, and return this run's records.

    What is already in the output folder is used again when its identity is equal. What fails does not stop the rest: each
    failure is a warning, and all of them are in `frame.attrs["failures"]`.

    Args:
        backbones: Backbone specs; `demo` and the `pixels` baseline if not given.
        tasks: Task names, suites, globs, files or `imagefolder:PATH`; the built-in suite if not given.
        representations: Representation names; every trained one that a backbone has if not given.
        protocol: Name of the protocol; `fewshot` if not given.
        shots: Images per class in the support set.
        seeds: A number of seeds (3 is seeds 0, 1, 2) or the seeds.
        l2: `paper` (1024), `loo` (chosen by leave-one-out on the support set), or a number.
        out: Output folder; `results/runs` if not given.
        config: A YAML file with the fields of `vitbench.execution.config.RunConfig`; the arguments override it.
        reporter: Hears of the progress; nobody does if not given.
        options: Further options of the protocol.
        **settings: `suite` (`vtab`: its tasks, protocol and preprocessing), and further fields of `RunConfig`, such as `limit`,
            `dtype`, `device`, `batch_size`, `on_existing`, `train_split`, `task_data`.

    Returns:
        One row per record, as `vitbench.load_results` gives them.

    Raises:
        VitbenchError: A name or value cannot be meant, the output folder cannot be written to, or nothing could be done.
    """
    chosen = {name: value for name, value in (("shots", shots), ("seeds", seeds), ("l2", l2)) if value is not None}
    values = {
        "backbones": backbones,
        "tasks": tasks,
        "representations": representations,
        "protocol": protocol,
        "out": out,
        "options": {**(options or {}), **chosen} or None,
        **settings,
    }
    resolved = make_config(values, Path(config) if config is not None else None)
    result = execute(resolved, reporter or Reporter(), command="vitbench.run")
    if result.first_error is not None and not result.planned:
        raise result.first_error
    for failure in result.failures:
        warnings.warn(failure, stacklevel=2)
    results = ResultStore(resolved.out)
    frame = as_frame(results.read(key) for key in result.keys)
    frame.attrs["failures"] = list(result.failures)
    return frame

"""The pipeline of an extraction: Ray Data gives units of work to actors that keep a backbone loaded, and streams what comes."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from vitbench.execution.ray.cluster import PerJob
from vitbench.execution.ray.worker import Embedder, Setting

_STOP_SECONDS = 10.0


class PipelineStalledError(Exception):
    """A node was lost, and Ray Data waits: the actor that is to be started anew has no room, while others stand idle."""


def streamed(
    units: Sequence[str], setting: Setting, per_job: PerJob, idle: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """What `Embedder` gives back for each unit, in the order of the units.

    Args:
        units: What to embed, as `Unit.text` gives it.
        setting: What workers are told.
        per_job: What one actor takes.
        idle: Called about once a second while the next unit is waited for; what it raises ends the pipeline.

    Raises:
        RayError: The pipeline was lost.
    """
    client: Any = ray.util.client.ray
    pipeline = (_FarAway if client.is_connected() else _Here)(units, setting, per_job)
    yield from _without_blocking(pipeline.rows(), idle, pipeline.stop)


def _dataset(units: Sequence[str], setting: Setting, per_job: PerJob) -> Any:
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # what of it a user can use, the run tells
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    actors = min(per_job.slots, len(units))
    # An actor that is lost is started again, and its unit given out again, by Ray Data, without end; a unit that has lost
    # its worker too often gives up by itself (`Embedder`).
    return ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units)).map_batches(
        Embedder,
        fn_constructor_args=(setting,),
        batch_size=1,
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=actors,
            initial_size=actors,
            max_tasks_in_flight_per_actor=2,
            # One call after the other, in the actor's first thread, whose heap can be kept (`features.heap`).
            max_concurrent_calls_per_actor=1,
            enable_true_multi_threading=True,
        ),
        num_cpus=per_job.cpus,
        num_gpus=per_job.gpus,
    )


class _Here:
    """A pipeline that this process drives."""

    def __init__(self, units: Sequence[str], setting: Setting, per_job: PerJob) -> None:
        self._dataset = _dataset(units, setting, per_job)
        self._executors: list[Any] = []
        # A data set knows what executes it only once its first row is there, and it may have to be stopped before.
        if (create := getattr(self._dataset, "_create_executor", None)) is not None:

            def created() -> Any:
                self._executors.append(create())
                return self._executors[-1]

            self._dataset._create_executor = created

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, as they come."""
        yield from self._dataset.iter_rows()

    def stop(self) -> None:
        """End it and its actors, whatever they are at."""
        for executor in self._executors:
            executor.shutdown(force=True)


class _FarPipeline:
    """The pipeline in an actor of the cluster, for a driver that is no part of it (`ray://`), in which Ray Data does not run."""

    def __init__(self, units: Sequence[str], setting: Setting, per_job: PerJob) -> None:
        self._rows = iter(_dataset(units, setting, per_job).iter_rows())

    def next(self) -> dict[str, Any] | None:
        """The next row; None after the last."""
        return next(self._rows, None)


class _FarAway:
    """A pipeline that an actor of the cluster drives."""

    def __init__(self, units: Sequence[str], setting: Setting, per_job: PerJob) -> None:
        actor: Any = ray.remote(num_cpus=0)(_FarPipeline)
        self._pipeline = actor.remote(units, setting, per_job)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, as they come."""
        while (row := ray.get(self._pipeline.next.remote())) is not None:
            yield row

    def stop(self) -> None:
        """End it and its actors, whatever they are at."""
        ray.kill(self._pipeline)


def _without_blocking(
    rows: Iterator[dict[str, Any]], idle: Callable[[], None], stop: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """The rows, waited for in a thread, so that this one can do other things meanwhile; `stop` where not all are taken."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=1)
    stopped = threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for row in rows:
                put(row)
                if stopped.is_set():
                    return
            put(end)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=read, name="extraction", daemon=True)
    thread.start()
    item: Any = None
    try:
        while True:
            try:
                item = ready.get(timeout=1.0)
            except queue.Empty:
                idle()
                continue
            if item is end:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        if item is not end:
            with suppress(Exception):  # it may have gone by itself
                stop()
            thread.join(_STOP_SECONDS)

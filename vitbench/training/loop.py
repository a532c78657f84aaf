"""The training loop: from a trainee and a split to trained weights, safe against whatever stops it on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from torch.nn import functional

from vitbench.errors import StoppedError, UsageError, VitbenchError
from vitbench.features.extract import is_out_of_memory
from vitbench.tasks.task import Split
from vitbench.tasks.transforms import Preprocessing
from vitbench.training import history, processes
from vitbench.training.augment import batch_mixing, erase, mix, training_geometry
from vitbench.training.checkpoints import Checkpoints, restore_state, training_state
from vitbench.training.optimisation import clip_gradients, make_optimizer, make_schedule, round_momentum
from vitbench.training.options import TrainingOptions, halved, images_at_once
from vitbench.training.recipe import Recipe
from vitbench.training.signals import stop_signals
from vitbench.training.stream import Batch, batches
from vitbench.training.trainee import Trainee

HISTORY = "history.jsonl"
HISTORY_LINES = 2000
_DIVERGED = 10.0
_WORTH_SAVING = 60.0
_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class DivergedError(VitbenchError):
    """The loss is no number any more, or far above that of a guess."""


def train(
    trainee: Trainee,
    split: Split,
    preprocessing: Preprocessing,
    recipe: Recipe,
    *,
    seed: int,
    num_classes: int,
    folder: Path,
    identity: str,
    options: TrainingOptions,
) -> dict[str, Any]:
    """Train, or go on from the newest checkpoint in `folder`. The weights are in `trainee` afterwards, averaged where asked.

    On a CPU the result is the same to the bit however often the training was stopped and run again.

    Args:
        trainee: What to train, with the weights to begin with; dropout draws from torch's global generator.
        split: The images to learn from.
        preprocessing: That of the evaluation; its normalisation is the training's too.
        recipe: How.
        seed: Of the order of the images and their augmentation.
        num_classes: K.
        folder: Where checkpoints and the history are kept.
        identity: What is being trained, for the checkpoints.
        options: How to go about it.

    Returns:
        `train_loss` and `train_accuracy` over the last tenth of the updates, and `images_at_once`, how many went through together
        in the end.

    Raises:
        UsageError: The batch is larger than the split, memory does not suffice, or the device lacks the dtype.
        StoppedError: The process got SIGTERM or SIGINT; a checkpoint has been written.
        DivergedError: The loss became NaN, infinite or hopeless.
        StoreError: A checkpoint cannot be written; those before it are whole. Or it is of another training.
        DataError: An image is broken.
    """
    check_batch(recipe, split)
    run = _Run(trainee, split, preprocessing, recipe, seed, num_classes, folder, identity, options)
    with stop_signals() as stopped:
        try:
            return run.all(stopped)
        finally:
            run.close()


def check_batch(recipe: Recipe, split: Split) -> None:
    """Refuse a batch that is larger than what is learned from, or too small for the processes that share it.

    Raises:
        UsageError: It is.
    """
    if recipe.batch_size > len(split):
        raise UsageError(
            f"batch_size {recipe.batch_size} is larger than split '{split.name}' of {split.task}, which has {len(split):,} "
            f"images: --set batch_size={_power_below(len(split))}"
        )
    if processes.count() > 1 and recipe.batch_size < 2 * processes.count():
        raise UsageError(
            f"batch_size {recipe.batch_size} is too small to be shared by {processes.count()} processes: start fewer, or --set "
            f"batch_size={2 * processes.count()}"
        )


class _Run:
    """One training under way."""

    def __init__(
        self,
        trainee: Trainee,
        split: Split,
        preprocessing: Preprocessing,
        recipe: Recipe,
        seed: int,
        num_classes: int,
        folder: Path,
        identity: str,
        options: TrainingOptions,
    ) -> None:
        self.recipe, self.split, self.preprocessing, self.seed, self.options = (
            recipe,
            split,
            preprocessing,
            seed,
            options,
        )
        self.num_classes = num_classes
        device = trainee.backbone.device
        self.several = processes.count() > 1
        if trainee.backbone.dtype == "float16" and device.type == "cpu":
            raise UsageError("a CPU cannot train in float16: --dtype bfloat16 or float32")
        # Accelerate keeps the precision of the first Accelerator of a process for all: each training has its own.
        AcceleratorState._reset_state(reset_partial_state=not self.several)
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            device_placement=False,
            mixed_precision=_PRECISIONS[trainee.backbone.dtype],
            log_with=list(options.trackers) or None,
            project_dir=options.tracker_folder or folder / "trackers",
            # What the head does not read, such as a pooler, has no gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)] if self.several else None,
        )
        self.device = device
        self.trainee = trainee.to(device).train()
        self.average = ModelEmaV3(trainee, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.trained = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(trainee, recipe)
        self.schedule = make_schedule(self.optimizer, recipe)
        self.model, self.prepared = self.accelerator.prepare(trainee, self.optimizer)
        self.mixing = batch_mixing(recipe, num_classes)
        self.at_once = images_at_once(options, device)
        self.checkpoints = Checkpoints(folder / "checkpoints", identity, options.keep)
        self.history = folder / HISTORY
        self.started = time.monotonic()
        self.recent: list[tuple[float, float]] = []
        self.unlogged: list[tuple[float, float]] = []
        self.window = max(1, recipe.steps // 10)

    def all(self, stopped: Callable[[], int]) -> dict[str, Any]:
        """Every update that is still to be made."""
        start = self._resume()
        if self.options.trackers:
            self.accelerator.init_trackers(
                "vitbench",
                config=_flat(self.recipe.parameters()),
                init_kwargs={"tensorboard": {"purge_step": start + 1}},
            )
        every = max(1, math.ceil(self.recipe.steps / HISTORY_LINES))
        saved = before = logged = time.monotonic()
        stream = batches(
            self.split,
            training_geometry(self.recipe, self.preprocessing),
            seed=self.seed,
            batch_size=self.recipe.batch_size,
            start_step=start,
            steps=self.recipe.steps,
            workers=self.options.workers,
            pin_memory=self.device.type == "cuda",
            share=processes.share(self.recipe.batch_size) if self.several else None,
        )
        with closing(stream):
            for step, batch in enumerate(stream, start=start):
                loss, accuracy, number = self._update(step, batch, stopped)
                self.recent = [*self.recent, (loss, accuracy)][-self.window :]
                self.unlogged.append((loss, accuracy))
                self._check(step)
                done, now = step + 1, time.monotonic()
                if step % every == 0 or done == self.recipe.steps:
                    self._log(done, now - logged)
                    logged = now
                speed, before = self.recipe.batch_size / max(now - before, 1e-9), now
                self.options.progress(1, f"loss {loss:.3f} · accuracy {accuracy:.2f} · {speed:,.0f} images/s")
                if number:
                    self._save(done)
                    raise StoppedError(
                        f"stopped after {done:,} of {self.recipe.steps:,} steps; the state is saved in "
                        f"{self.checkpoints.folder}: run the same command again to go on from there",
                        status=128 + number,
                    )
                # While the loss is hopeless nothing is saved: it would push out the last good checkpoint.
                if self._due(done, now - saved) and not self._hopeless(loss):
                    self._save(done)
                    saved = now
        if self.average is not None:
            self.trainee.load_state_dict(self.average.module.state_dict())
        self.trainee.eval()
        loss, accuracy = _means(self.recent)
        return {"train_loss": loss, "train_accuracy": accuracy, "images_at_once": self.at_once}

    def close(self) -> None:
        """Close the files of the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _due(self, done: int, seconds: float) -> bool:
        """Whether the state is to be saved after `done` updates, `seconds` after it was last saved."""
        if done == self.recipe.steps:
            return seconds >= _WORTH_SAVING  # the test images are still to be scored, and that may be interrupted too
        by_number = self.options.every_steps and done % self.options.every_steps == 0
        return bool(by_number) or seconds >= self.options.every_seconds

    def _update(self, step: int, batch: Batch, stopped: Callable[[], int]) -> tuple[float, float, int]:
        """One update: forward and backward in parts, clip, step.

        Returns:
            The mean loss over the batch, the accuracy, and the number of the signal that asks to stop, 0 for none; of several
            processes, all learn of it after the same update.
        """
        pixels, labels = batch
        pixels = self.preprocessing.finish(pixels.to(self.device, non_blocking=True))
        labels = labels.to(self.device, non_blocking=True)
        if self.recipe.erase:
            pixels = erase(self.recipe.erase, pixels, seed=self.seed + processes.index(), step=step)
        targets = labels
        if self.mixing is not None:
            pixels, targets = mix(self.mixing, pixels, labels, seed=self.seed, step=step)
        self.schedule.step_update(step)
        while True:
            state = torch.get_rng_state()
            self.prepared.zero_grad()
            try:
                total, hits = self._gradients(pixels, labels, targets)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.at_once = halved(self.at_once, self.options, self.device, error)
            # Outside the except clause, where the exception no longer holds the failed pass's tensors.
            torch.set_rng_state(state)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        clip_gradients(self.trained, self.recipe.clip_norm)
        self.prepared.step()
        round_momentum(self.optimizer, self.recipe.momentum_dtype)
        if self.average is not None:
            self.average.update(self.trainee)
        number = stopped()
        loss, right, asked, numbers = processes.summed([total, hits, bool(number), number], self.device)
        return loss, right / self.recipe.batch_size, round(numbers / asked) if asked else 0

    def _gradients(self, pixels: Tensor, labels: Tensor, targets: Tensor) -> tuple[float, int]:
        """Gradients of the mean loss over the batch, part by part; the loss and the number of right answers."""
        total, hits = 0.0, 0
        parts = list(zip(*(torch.split(tensor, self.at_once) for tensor in (pixels, labels, targets)), strict=True))
        for number, (part, answers, wanted) in enumerate(parts):
            # Several processes exchange gradients once, with the last part; what they exchange is the mean over processes.
            alone = self.several and number < len(parts) - 1
            with self.accelerator.no_sync(self.model) if alone else nullcontext():
                logits = self.model(part)
                smoothing = 0.0 if wanted.is_floating_point() else self.recipe.label_smoothing
                loss = functional.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing)
                loss = loss / self.recipe.batch_size
                self.accelerator.backward(loss * processes.count() if self.several else loss)
            total += float(loss.detach())
            hits += int((logits.detach().argmax(1) == answers).sum())
        if self.accelerator.mixed_precision == "fp16":
            self.accelerator.unscale_gradients(self.prepared)
        return total, hits

    def _check(self, step: int) -> None:
        """Stop where the last loss is no number, or where all of the last tenth of the updates are hopeless.

        One loss far above a guess may be a spike, from which training recovers. The loss of update `step` is that of the weights
        after `step` updates, so that a checkpoint of that step or of a later one is no good any more.

        Raises:
            DivergedError: Training diverged.
        """
        guess = math.log(self.num_classes)
        losses = [loss for loss, _ in self.recent]
        bad = [self._hopeless(loss) for loss in losses]
        if math.isfinite(losses[-1]) and not (all(bad) and len(bad) == self.window):
            return
        first = step + 1 - (bad[::-1].index(False) if False in bad else len(bad))
        if processes.is_main():
            self.checkpoints.remove_from(first)
        good = [number for number in self.checkpoints.steps() if number < first]
        kept = (
            f"; the last good checkpoint is {self.checkpoints.path(good[-1])}" if good else "; there is no checkpoint"
        )
        rate = self.optimizer.param_groups[-1]["lr"]
        raise DivergedError(
            f"training diverged at step {first + 1:,}: the loss is {losses[first - step - 1]:.3g}, where a guess has {guess:.3g} "
            f"(learning rate {rate:.3g}){kept}; use a lower learning_rate than {self.recipe.learning_rate:g}, or a longer warm-up"
        )

    def _hopeless(self, loss: float) -> bool:
        """Whether a loss is no number, or many times that of a guess."""
        return not math.isfinite(loss) or loss > _DIVERGED * max(math.log(self.num_classes), 1.0)

    def _log(self, done: int, seconds: float) -> None:
        """A line of the history, on the updates since the line before."""
        loss, accuracy = _means(self.unlogged)
        images, self.unlogged = len(self.unlogged) * self.recipe.batch_size, []
        entry = history.Entry(
            step=done,
            loss=loss,
            accuracy=accuracy,
            learning_rate=self.optimizer.param_groups[-1]["lr"],
            images_per_second=round(images / max(seconds, 1e-9), 1),
            seconds=round(time.monotonic() - self.started, 3),
        )
        if processes.is_main():
            history.append(self.history, entry)
        if self.options.trackers:
            self.accelerator.log(entry.model_dump(exclude={"step"}), step=done)

    def _save(self, done: int) -> None:
        if not processes.is_main():
            return
        tensors, values = training_state(self.trainee, self.optimizer, self.average)
        values |= {"recent": self.recent, "unlogged": self.unlogged, "seconds": time.monotonic() - self.started}
        if self.accelerator.scaler is not None:
            values["scaler"] = self.accelerator.scaler.state_dict()
        self.checkpoints.save(done, tensors, values)

    def _resume(self) -> int:
        """The step to begin with: 0, or that of the newest checkpoint, whose state is put back."""
        found = self.checkpoints.load()
        for path in self.checkpoints.damaged:
            self.options.message(f"the checkpoint {path} is damaged and passed over")
        step = found[0] if found else 0
        if found is not None:
            _, tensors, values = found
            restore_state(tensors, values, self.trainee, self.optimizer, self.average)
            self.recent = [(loss, accuracy) for loss, accuracy in values["recent"]]
            self.unlogged = [(loss, accuracy) for loss, accuracy in values.get("unlogged", [])]
            self.started -= values["seconds"]
            if self.accelerator.scaler is not None and "scaler" in values:
                self.accelerator.scaler.load_state_dict(values["scaler"])
            self.options.message(f"going on from the checkpoint of step {step:,} of {self.recipe.steps:,}")
            self.options.progress(step, "")
        if processes.is_main():
            history.cut_after(self.history, step)
        else:
            # Or dropout would drop the same of every process's images.
            torch.manual_seed(int(np.random.SeedSequence([self.seed, 4, processes.index(), step]).generate_state(1)[0]))
        return step


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The means of losses and accuracies."""
    return sum(loss for loss, _ in pairs) / len(pairs), sum(accuracy for _, accuracy in pairs) / len(pairs)


def _power_below(size: int) -> int:
    return 1 << (size.bit_length() - 1)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that every tracker takes: numbers and texts."""
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in values.items()}

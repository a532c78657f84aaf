"""Fine-tuning: every weight of the backbone (or the head alone, or adapters) is trained on the train split by a recipe.

The recipe decides every number; `vitbench.training` carries it out. What is measured is the test score of the weights after the
last step, once. `--tune` tries the recipe's grid on the dev split before: the images that the task names for tuning, or a share
of each class's train images; the winner is then trained on the whole train split from the beginning.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from vitbench.backbones.base import Backbone
from vitbench.errors import StoreError, UsageError
from vitbench.features.featureset import FeatureSet, IntArray
from vitbench.protocols.base import Cell, Outcome, Protocol, Tuning
from vitbench.protocols.closed_form import class_counts, missing_classes
from vitbench.protocols.metrics import RANKED, accuracy
from vitbench.protocols.options import distinct, seed_items, switch, whole_number
from vitbench.protocols.own_head import own_head
from vitbench.records.atomic import write_text
from vitbench.tasks.task import Split, Task
from vitbench.tasks.transforms import Preprocessing
from vitbench.training import processes
from vitbench.training.dev_split import divided
from vitbench.training.evaluate import predict
from vitbench.training.loop import DivergedError, check_batch, train
from vitbench.training.options import TrainingOptions
from vitbench.training.recipe import Recipe, load_recipe, validated
from vitbench.training.recipe_files import recipe_folders
from vitbench.training.trainee import Trainee

if TYPE_CHECKING:
    from vitbench.backbones.classifier import Classifier

DEFAULT_RECIPE = "light"
_DIVERGED = -1.0
"""The score of a trial that diverged, below that of any that did not."""


@dataclass(frozen=True)
class FineTune(Protocol):
    """Fine-tuning by a recipe.

    Attributes:
        recipe: How to train; for one task once it is bound to it.
        seeds: Seeds of the order of the images, the augmentation, dropout and newly initialised weights.
        tune: Whether the recipe's grid is tried on the dev split.
        dev: What `--tune` chooses on: the task's tuning splits, or a share of the train split. None until bound, and when nothing
            is chosen.
        head: The checkpoint's own head, where its classes are the task's: its score is what training begins with. None until
            bound, and where there is none.
    """

    name: ClassVar[str] = "finetune"
    summary: ClassVar[str] = "train the backbone's weights by a recipe (vitbench ls recipes), and score the result"

    recipe: Recipe
    seeds: tuple[int, ...] = (0,)
    tune: bool = False
    dev: tuple[Split, Split] | None = field(default=None, compare=False)
    head: Classifier | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the protocol from `recipe`, `seeds`, `tune`, and fields of the recipe to override.

        A recipe is a name, a file, or the recipe itself as a mapping.

        Raises:
            UsageError: There is no such recipe, or an option or value that cannot be meant.
        """
        values = dict(options)
        if "shots" in values:
            raise UsageError(
                "protocol 'finetune' learns from the whole train split, and has no shots: --train-split 'train[:100]' takes less"
            )
        if "l2" in values:
            raise UsageError(
                "protocol 'finetune' has no l2; its recipe's weight_decay is another penalty: --set weight_decay=…"
            )
        seeds = distinct(
            "seeds", [whole_number("seeds", item, least=0) for item in seed_items(values.pop("seeds", (0,)))]
        )
        tune = switch("tune", values.pop("tune", False))
        given = values.pop("recipe", DEFAULT_RECIPE)
        if isinstance(given, Mapping):
            name = str(given.get("name", "")) or "unnamed"
            return cls(validated({**given, **values, "name": name}, f"recipe '{name}'"), seeds, tune)
        return cls(load_recipe(str(given), recipe_folders(), values), seeds, tune)

    @classmethod
    def options_of(cls, parameters: Mapping[str, Any], details: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
        """The whole recipe, not its name, which may mean another one today; see `Protocol.options_of`."""
        recipe = {name: value for name, value in parameters.items() if name in Recipe.model_fields}
        own = {"name": details.get("recipe", "")} | recipe
        return {"recipe": own, "seeds": [cell.seed], "tune": bool(parameters.get("tune", False))}

    @property
    def trains(self) -> bool:
        """It does; see `Protocol.trains`."""
        return True

    @property
    def preprocess(self) -> str:
        """The recipe's evaluation preprocessing; see `Protocol.preprocess`."""
        return self.recipe.preprocess

    @property
    def loading(self) -> Mapping[str, Any]:
        """The recipe's resolution and position embeddings, and whether weights are read; see `Protocol.loading`."""
        given: dict[str, Any] = {"from_scratch": True} if self.recipe.from_scratch else {}
        if self.recipe.resolution is not None:
            given |= {"resolution": self.recipe.resolution}
        return given | ({"positions": self.recipe.positions} if self.recipe.positions != "library" else {})

    def bind(self, backbone: Backbone, task: Task) -> FineTune:
        """The recipe as it is for this task, and what is chosen on; see `Protocol.bind`.

        Raises:
            UsageError: There is nothing to choose, or too little to choose on; a batch is larger than the split; the head is to
                be the checkpoint's, and that has none of the task's classes; or the spec has other position embeddings.
        """
        recipe, head = self.recipe.for_task(task.name), None
        if backbone.spec.positions not in ("", recipe.positions):
            raise UsageError(
                f"backbone '{backbone.spec.text}' asks for positions={backbone.spec.positions}, and recipe '{recipe.name}' for "
                f"{recipe.positions}: --set positions={backbone.spec.positions}, or leave it out of the spec"
            )
        check_batch(recipe, task.train)
        try:
            head = None if recipe.from_scratch else own_head(backbone, task)
        except UsageError:
            if recipe.head_init == "checkpoint":
                raise
        if not self.tune:
            return replace(self, recipe=recipe, head=head)
        if len(recipe.trials()) < 2:
            raise UsageError(
                f"--tune: the grid of recipe '{recipe.name}' holds one recipe for {task.name}: give it values, such as "
                f"--set grid.learning_rate=0.003,0.01,0.03"
            )
        dev = task.tuning_splits() or divided(task.train, recipe.dev_fraction)
        check_batch(recipe, dev[0])
        return replace(self, recipe=recipe, head=head, dev=dev)

    @property
    def reads(self) -> str:
        """What the checkpoint's own head reads, where training begins with it; see `Protocol.reads`."""
        return self.head.representation if self.head and self.recipe.head_init == "checkpoint" else ""

    def parameters(self) -> dict[str, Any]:
        """The whole recipe, as far as it decides a number; see `Protocol.parameters`."""
        found = self.recipe.parameters()
        found.pop("preprocess")  # what was really done is a field of the record, and a user may have said otherwise
        if not self.tune:
            return {name: value for name, value in found.items() if name not in ("grid", "dev_fraction")}
        chosen = {
            f"{role}_fingerprint": part.fingerprint for role, part in zip(("fit", "dev"), self.dev or (), strict=False)
        }
        return {**found, "tune": True, **chosen}

    def fingerprints(self) -> dict[str, str]:
        """Of the head that training begins with, where it is the checkpoint's; see `Protocol.fingerprints`."""
        return {"head": self.head.digest()} if self.head and self.recipe.head_init == "checkpoint" else {}

    def label(self) -> str:
        """The recipe's name and what is looked at first: `paper · lr 0.01 · 500 steps`; tuned: `paper · tuned over 4`."""
        if self.tune:
            return f"{self.recipe.name} · tuned over {len(self.recipe.trials())}"
        return f"{self.recipe.name} · lr {self.recipe.learning_rate:g} · {self.recipe.steps:,} steps"

    def cells(self) -> list[Cell]:
        """One for each seed."""
        return [Cell(shot=0, seed=seed) for seed in self.seeds]

    def check(self, labels: IntArray, num_classes: int) -> list[str]:
        """Says how many classes have no train image; see `Protocol.check`.

        Raises:
            DataError: No class has an image, or a label is not one of the classes.
        """
        return missing_classes(class_counts(labels, num_classes, "train"))

    def train_rows(self, labels: IntArray, num_classes: int, cells: Sequence[Cell]) -> IntArray:
        """Every row; see `Protocol.train_rows`."""
        return np.arange(len(labels) if cells else 0, dtype=np.int64)

    def evaluate(
        self,
        train: FeatureSet,
        test: FeatureSet,
        name: str,
        num_classes: int,
        cells: Sequence[Cell],
        tuning: Tuning | None = None,
    ) -> Iterator[Outcome]:
        """Nothing: frozen features are not what it works on.

        Raises:
            UsageError: Always.
        """
        raise UsageError("protocol 'finetune' trains the backbone, and frozen features are all that is given here")

    def carry_out(
        self,
        backbone: Backbone,
        train_split: Split,
        test_split: Split,
        test_rows: IntArray,
        preprocessing: Preprocessing,
        representation: str,
        num_classes: int,
        cell: Cell,
        folder: Path,
        identity: str,
        options: TrainingOptions,
    ) -> tuple[Outcome, Trainee]:
        """Train and score one cell.

        Args:
            backbone: With the weights to begin with; it is copied.
            train_split: What is learned from.
            test_split: What is scored.
            test_rows: Which rows of it.
            preprocessing: The evaluation's.
            representation: What the head reads.
            num_classes: K.
            cell: Which seed.
            folder: Where checkpoints, the history and the trials are kept.
            identity: What is being trained, for the checkpoints.
            options: How to go about it.

        Returns:
            What was measured, and the trained model.

        Raises:
            UsageError: The recipe does not fit the backbone or the task.
            StoppedError: The process was asked to end; the state is saved.
            DivergedError: The loss became NaN, infinite or hopeless.
        """
        counts = class_counts(train_split.labels, num_classes, "train")
        recipe, details = self.recipe, dict[str, Any]()
        head = self.head if self.head is not None and self.head.representation == representation else None
        with torch.random.fork_rng(devices=_devices(backbone)):

            def begin(chosen: Recipe) -> Trainee:
                torch.manual_seed(cell.seed)
                return Trainee(backbone, representation, num_classes, chosen, head)

            if self.tune and self.dev is not None:
                recipe, details = self._choose(begin, preprocessing, num_classes, cell, folder, identity, options)
            # What the gain is counted from: the checkpoint's own head where its classes are the task's, else the new one.
            first = begin(recipe if head is None else recipe.changed(head_init="checkpoint"))
            before = predict(first, test_split, test_rows, preprocessing, options)
            del first
            trainee = begin(recipe)
            measured = train(
                trainee,
                train_split,
                preprocessing,
                recipe,
                seed=cell.seed,
                num_classes=num_classes,
                folder=folder,
                identity=identity,
                options=options,
            )
            trainee.merge()
            logits = predict(trainee, test_split, test_rows, preprocessing, options)
        labels = test_split.labels[test_rows]
        ranking = logits.topk(min(RANKED, num_classes), dim=1).indices.numpy()
        details |= {
            "recipe": recipe.name,
            "learning_rate": recipe.learning_rate,
            "steps": recipe.steps,
            "accuracy_before": accuracy(before.argmax(1).numpy(), labels),
            "head_before": "new" if head is None else "checkpoint",
            "n_per_class_min": int(counts.min()),
            "n_per_class_max": int(counts.max()),
            **measured,
        }
        outcome = Outcome(
            cell=cell,
            ranking=ranking,
            confidence=logits.softmax(dim=1).amax(dim=1).numpy(),
            n_support=len(train_split),
            n_test=len(test_rows),
            details=details,
            warnings=tuple(missing_classes(counts)),
        )
        return outcome, trainee

    def _choose(
        self,
        begin: Any,
        preprocessing: Preprocessing,
        num_classes: int,
        cell: Cell,
        folder: Path,
        identity: str,
        options: TrainingOptions,
    ) -> tuple[Recipe, dict[str, Any]]:
        """The trial of the highest dev accuracy, and what to record of the choice; finished trials are not run again.

        Raises:
            DivergedError: Every trial diverged. One that does is merely not chosen.
        """
        assert self.dev is not None
        fit, dev = self.dev
        rows, found = np.arange(len(dev), dtype=np.int64), dict[str, tuple[float, Recipe]]()
        for trial in self.recipe.trials():
            name = f"lr{trial.learning_rate:.12g}-steps{trial.steps}"
            result = folder / "trials" / f"{name}.result"
            score = _finished(result, identity)
            if score is None:
                options.message(f"tuning: learning rate {trial.learning_rate:g}, {trial.steps:,} steps")
                trainee = begin(trial)
                try:
                    train(
                        trainee,
                        fit,
                        preprocessing,
                        trial,
                        seed=cell.seed,
                        num_classes=num_classes,
                        folder=folder / "trials" / name,
                        identity=f"{identity} {name}",
                        options=replace(options, trackers=()),
                    )
                    score = accuracy(predict(trainee, dev, rows, preprocessing, options).argmax(1).numpy(), dev.labels)
                except DivergedError as error:
                    options.message(f"tuning: {error}")
                    score = _DIVERGED
                if processes.is_main():
                    write_text(result, json.dumps({"identity": identity, "dev_accuracy": score}) + "\n")
                    shutil.rmtree(folder / "trials" / name, ignore_errors=True)
            else:
                options.progress(trial.steps, "")
            found[name] = (score, trial)
        best = max(found, key=lambda name: found[name][0])
        if found[best][0] == _DIVERGED:
            raise DivergedError(
                f"--tune: every trial diverged ({', '.join(found)}): --set grid.learning_rate= lower ones"
            )
        told = "; ".join(f"{name}: {_percent(score)}" for name, (score, _) in found.items())
        return found[best][1], {"dev_accuracy": found[best][0], "n_dev": len(dev), "trials": told}


def _percent(score: float) -> str:
    return "diverged" if score == _DIVERGED else f"{100 * score:.1f} %"


def _finished(path: Path, identity: str) -> float | None:
    """The dev accuracy of a trial that was finished before; None where it was not.

    Raises:
        StoreError: It is a trial of another training.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        score = float(found["dev_accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if found.get("identity") != identity:
        raise StoreError(f"{path} is a trial of another training: move its folder away, or choose another --out")
    return score


def _devices(backbone: Backbone) -> list[torch.device]:
    return [backbone.device] if backbone.device.type == "cuda" else []

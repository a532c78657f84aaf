"""What one classifier got right and wrong, from its stored predictions: confusion, classes, calibration, examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitbench.errors import StoreError, UsageError
from vitbench.records.predictions import Predictions, read_predictions
from vitbench.reporting.hits import PAIRING_FIELDS
from vitbench.reporting.labels import ROW_FIELDS, shot_label
from vitbench.reporting.selection import backbone_label
from vitbench.reporting.statistics import Reliability, reliability
from vitbench.tasks.task import Task

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

SAME_BUT_SEED = [*ROW_FIELDS, *PAIRING_FIELDS, "task", "protocol", "parameters", "metric"]
"""Records that agree in these differ in nothing but their seed."""

EXAMPLES = 12
PAIRS = 20
BINS = 10


@dataclass(frozen=True)
class Examples:
    """Some test images and what was said of them.

    Attributes:
        title: What they have in common.
        row: `[M]` int64, rows of the test split.
        label: `[M]` int64.
        prediction: `[M]` int64.
        confidence: `[M]` float32, or None where it is not known.
    """

    title: str
    row: IntArray
    label: IntArray
    prediction: IntArray
    confidence: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class Diagnostics:
    """What there is to say of one classifier, over its seeds.

    Attributes:
        title: Backbone, representation, task, protocol, shot.
        seeds: The seeds, increasing; everything is pooled over them.
        n_test: N test images; each counts once for every seed.
        metric: The task's own metric.
        score: Its value, a fraction, mean over seeds.
        class_names: K names; numbers where nobody knows them.
        confusion: `[K, K]` int64, rows are the true classes, columns the predicted ones; it sums to N × seeds.
        per_class: One row per class: `label`, `name`, `support` (its test images), `predicted` (images taken for it, mean over
            seeds), `accuracy`, `precision`, `f1`; NaN where one is not defined.
        macro_f1: The mean of `f1` over the classes that have a test image.
        pairs: Pairs of classes that are taken for each other, the most often first: `one`, `other` (labels), `one_name`,
            `other_name`, `one_as_other`, `other_as_one`, `total` (counts), `share` (of the images of both).
        reliability: Accuracy against confidence; None where no record has a confidence.
        right: Images that are recognised, drawn at random.
        wrong: Images that are not and are not in `confident`, drawn at random.
        confident: Images that are not although the classifier was sure, the surest first; empty without confidence.
        notes: What a reader must know, a line each.
    """

    title: str
    seeds: tuple[int, ...]
    n_test: int
    metric: str
    score: float
    class_names: tuple[str, ...]
    confusion: IntArray
    per_class: pd.DataFrame
    macro_f1: float
    pairs: pd.DataFrame
    reliability: Reliability | None
    right: Examples
    wrong: Examples
    confident: Examples
    notes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """The share of right predictions, a fraction."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def ece(self) -> float | None:
        """Expected calibration error, a fraction; None where no record has a confidence."""
        return None if self.reliability is None else self.reliability.ece

    @property
    def normalised(self) -> FloatArray:
        """`[K, K]`: what the images of a true class (row) were taken for; rows sum to 1, NaN for a class without images."""
        totals = self.confusion.sum(axis=1, keepdims=True)
        shares: FloatArray = np.full(self.confusion.shape, np.nan)
        np.divide(self.confusion, totals, out=shares, where=totals > 0)
        return shares


def cells(records: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Records in groups that differ in nothing but their seed, in the order of the frame."""
    for _, group in records.groupby(SAME_BUT_SEED, dropna=False, sort=False):
        yield group.sort_values("seed", kind="stable")


def diagnose(
    records: pd.DataFrame,
    paths: Sequence[Path],
    task: Task | None = None,
    *,
    examples: int = EXAMPLES,
    pairs: int = PAIRS,
) -> Diagnostics:
    """Look at the predictions of one classifier.

    Args:
        records: Rows of `load_results` that differ in nothing but their seed.
        paths: The JSON file of each, in their order.
        task: Their task, for the names of its classes; None when it cannot be loaded. A task with other test data than the
            records' is not used, and a note says so.
        examples: How many images of each kind are picked.
        pairs: How many pairs of classes are kept.

    Raises:
        UsageError: The records differ in more than their seed.
        StoreError: Predictions are missing or damaged, or are not those of their record.
    """
    order = np.argsort(records["seed"].to_numpy(), kind="stable")
    records, paths = records.iloc[order], [paths[place] for place in order]
    if len(records.drop_duplicates(SAME_BUT_SEED)) != 1 or records["seed"].duplicated().any():
        raise UsageError("these records are not the seeds of one measurement: choose them with more filters")
    first = records.iloc[0]
    num_classes = int(first["num_classes"])
    tables = [
        _read(path, num_classes, float(record.get("accuracy", np.nan)))
        for path, (_, record) in zip(paths, records.iterrows(), strict=True)
    ]
    for path, table in zip(paths, tables, strict=True):
        if not np.array_equal(table.row, tables[0].row) or not np.array_equal(table.label, tables[0].label):
            raise StoreError(f"the predictions beside {path} are of other test images than those of its other seeds")
    names, notes = _names(task, first, num_classes)
    confusion = np.sum([_confusion(table, num_classes) for table in tables], axis=0)
    per_class = _per_class(tables, num_classes, names)
    calibration, about = _calibration(tables, records["seed"].tolist())
    right, wrong, confident = _examples(tables[0], examples)
    return Diagnostics(
        title=_title(first),
        seeds=tuple(map(int, records["seed"])),
        n_test=len(tables[0].row),
        metric=str(first["metric"]),
        score=float(records["score"].mean()),
        class_names=names,
        confusion=confusion,
        per_class=per_class,
        macro_f1=float(per_class["f1"][per_class["support"] > 0].mean()),
        pairs=_pairs(confusion, names).head(pairs),
        reliability=calibration,
        right=right,
        wrong=wrong,
        confident=confident,
        notes=(*_about(records, per_class), *about, *notes),
    )


def _read(path: Path, num_classes: int, accuracy: float) -> Predictions:
    """The predictions beside a record, once they are known to be its own."""
    table = read_predictions(path)
    values = np.concatenate([table.label, table.prediction])
    if not len(values) or values.min() < 0 or values.max() >= num_classes:
        raise StoreError(
            f"the predictions beside {path} are damaged: none are there, or of classes outside 0 to {num_classes - 1}; "
            f"run the record's command again with --on-existing rerun"
        )
    if table.episode is not None:
        raise UsageError(
            "episodes classify an image several times, among other classes each time: diagnose looks at records with one "
            "prediction for each test image, such as those of fewshot, ridge and knn"
        )
    sure = table.confidence
    if sure is not None and not bool(np.all((sure >= 0) & (sure <= 1))):
        raise StoreError(f"the predictions beside {path} are damaged: a confidence is no number from 0 to 1")
    # NaN, for a protocol that records no accuracy, fails no comparison.
    if abs(table.hits.mean() - accuracy) > 1e-6:
        raise StoreError(
            f"the predictions beside {path} have an accuracy of {100 * table.hits.mean():.2f} %, but the record's is "
            f"{100 * accuracy:.2f} %: one of them is not the other's; run the record's command again with --on-existing rerun"
        )
    return table


def _title(first: pd.Series) -> str:
    where = f"{backbone_label(str(first['backbone']))} · {first['representation']} · {first['task']}"
    limit = "" if pd.isna(first["limit"]) else f" · LIMITED to {int(first['limit'])} test images"
    shot = shot_label(int(first["shot"]), first["n_support"])
    return f"{where} · {first['protocol']}, {first['protocol_label']} · {shot}{limit}"


def _names(task: Task | None, first: pd.Series, num_classes: int) -> tuple[tuple[str, ...], list[str]]:
    numbers = tuple(map(str, range(num_classes)))
    if task is None:
        return numbers, []
    if not is_of(task, first):
        return numbers, ["the task's data is not what was scored: class names and pictures are left out"]
    names = tuple(map(str, task.class_names))
    return (names, []) if len(names) == num_classes else (numbers, [])


def is_of(task: Task, record: pd.Series) -> bool:
    """Whether a task's test split is the one that a record was scored on."""
    return bool(task.test.fingerprint == record["test_fingerprint"] and task.num_classes == record["num_classes"])


def _about(records: pd.DataFrame, per_class: pd.DataFrame) -> list[str]:
    seeds = records["seed"].tolist()
    notes = []
    if len(seeds) > 1:
        notes.append(
            f"pooled over {len(seeds)} seeds ({', '.join(map(str, seeds))}): every test image counts {len(seeds)} times; "
            f"examples are of seed {seeds[0]}"
        )
    absent = int((per_class["support"] == 0).sum())
    if absent:
        notes.append(f"{absent} of {len(per_class)} classes have no test image: macro F1 leaves them out")
    return notes + list(dict.fromkeys(text for text in records["warnings"] if text))


def _confusion(table: Predictions, num_classes: int) -> IntArray:
    from sklearn.metrics import confusion_matrix

    counts: IntArray = confusion_matrix(table.label, table.prediction, labels=np.arange(num_classes))
    return counts.astype(np.int64)


def _per_class(tables: Sequence[Predictions], num_classes: int, names: Sequence[str]) -> pd.DataFrame:
    from sklearn.metrics import precision_recall_fscore_support

    label = np.concatenate([table.label for table in tables])
    prediction = np.concatenate([table.prediction for table in tables])
    # NaN, not 0, where a class has no test image or is never predicted: neither is a measured failure.
    precision, recall, f1, support = precision_recall_fscore_support(
        label, prediction, labels=np.arange(num_classes), zero_division=np.nan
    )
    return pd.DataFrame(
        {
            "label": np.arange(num_classes),
            "name": list(names),
            "support": support // len(tables),
            "predicted": np.bincount(prediction, minlength=num_classes) / len(tables),
            "accuracy": recall,
            "precision": precision,
            "f1": f1,
        }
    )


def _pairs(confusion: IntArray, names: Sequence[str]) -> pd.DataFrame:
    """Every pair of classes that is confused at all, in order of how often; both directions of a pair in one row."""
    both = np.triu(confusion + confusion.T, k=1)
    one, other = np.nonzero(both)
    totals = confusion.sum(axis=1)
    frame = pd.DataFrame(
        {
            "one": one,
            "other": other,
            "one_name": [names[label] for label in one.tolist()],
            "other_name": [names[label] for label in other.tolist()],
            "one_as_other": confusion[one, other],
            "other_as_one": confusion[other, one],
            "total": both[one, other],
            "share": both[one, other] / (totals[one] + totals[other]),
        }
    )
    return frame.sort_values(["total", "one", "other"], ascending=[False, True, True], ignore_index=True)


def _calibration(tables: Sequence[Predictions], seeds: Sequence[int]) -> tuple[Reliability | None, list[str]]:
    known = [
        (seed, table.confidence, table.hits)
        for seed, table in zip(seeds, tables, strict=True)
        if table.confidence is not None
    ]
    if not known:
        return None, ["no calibration: these records hold no confidence; --on-existing rerun makes them anew with it"]
    found = reliability(
        np.concatenate([confidence for _, confidence, _ in known]).astype(np.float64),
        np.concatenate([hits for _, _, hits in known]),
        BINS,
    )
    if len(known) == len(tables):
        return found, []
    return found, [
        f"calibration is of seeds {', '.join(str(seed) for seed, _, _ in known)}: the others hold no confidence"
    ]


def _examples(table: Predictions, count: int) -> tuple[Examples, Examples, Examples]:
    """Right, wrong, and most confident wrong ones; what is drawn at random is drawn by a fixed seed, in order of row."""
    drawn = np.random.default_rng(0)

    def pick(title: str, places: IntArray) -> Examples:
        confidence = None if table.confidence is None else table.confidence[places]
        return Examples(title, table.row[places], table.label[places], table.prediction[places], confidence)

    def some(places: IntArray) -> IntArray:
        return np.sort(drawn.choice(places, min(count, len(places)), replace=False))

    right, wrong = np.flatnonzero(table.hits), np.flatnonzero(~table.hits)
    surest = wrong[:0]
    if table.confidence is not None:
        surest = wrong[np.argsort(-table.confidence[wrong], kind="stable")][:count]
    others = np.setdiff1d(wrong, surest)
    return (
        pick("right, drawn at random", some(right)),
        pick(
            "wrong, drawn at random from the other wrong ones" if len(surest) else "wrong, drawn at random",
            some(others),
        ),
        pick("wrong, the most confident first", surest),
    )

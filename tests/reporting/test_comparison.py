"""Pairs of measurements, what is said of them, and what is never compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.records.test_store import make_record
from vitbench.errors import UsageError
from vitbench.records.predictions import read_predictions
from vitbench.records.store import ResultStore
from vitbench.reporting import statistics
from vitbench.reporting.comparison import Compared, compare_backbones, compare_folders, drops, together
from vitbench.reporting.selection import Filters, match_backbone, read_measured

A: dict[str, Any] = {"backbone": "timm:vit_a", "backbone_name": "a", "weights": "aa"}
B: dict[str, Any] = {"backbone": "timm:vit_b", "backbone_name": "b", "weights": "bb"}
IMAGES = 200
LABELS = np.arange(IMAGES) % 10


def write(out: Path, rate: float, *, seeds: int | tuple[int, ...] = 3, noise: int = 0, **fields: Any) -> None:
    """Records whose predictions are right at `rate`; the images that are hard are the same ones for every backbone."""
    hard = np.random.default_rng(1).random(IMAGES)
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        wobble = np.random.default_rng([seed, noise]).normal(0, 0.05, IMAGES)
        put(out, np.where(hard + wobble < rate, LABELS, (LABELS + 1) % 10), seed=seed, **fields)


def put(out: Path, prediction: npt.NDArray[np.int64], label: npt.NDArray[np.int64] = LABELS, **fields: Any) -> Path:
    recall = [float(np.mean(prediction[label == k] == k)) for k in np.unique(label)]
    scores = {"accuracy": float(np.mean(prediction == label)), "mean_per_class_accuracy": float(np.mean(recall))}
    record = make_record(**{"scores": scores, "n_test": len(label), **fields})
    return ResultStore(out).write(record, {"row": np.arange(len(label)), "label": label, "prediction": prediction})


def compared(out: Path, a: str = "timm:vit_a", b: str = "timm:vit_b", **filters: Any) -> Compared:
    return compare_backbones(read_measured(out), a, b, Filters(**filters))


def test_a_clear_loss_is_a_drop_and_a_clear_win_is_none(tmp_path: Path) -> None:
    write(tmp_path, 0.8, **A)
    write(tmp_path, 0.6, noise=1, **B)
    (pair,) = compared(tmp_path).pairs
    assert pair.verdict == "worse"
    assert pair.points == pytest.approx(100 * (pair.b - pair.a))
    assert -25 < pair.points < -15
    assert pair.seeds == (0, 1, 2)
    assert max(pair.p_value, pair.adjusted.bootstrap, pair.adjusted.mcnemar) < 0.01
    (line,) = drops(compared(tmp_path), 0.2)
    assert line.startswith("cls · paper/cifar10 · 5-shot: -")
    back = compared(tmp_path, "timm:vit_b", "timm:vit_a")
    assert (back.pairs[0].verdict, drops(back, 0.2, strict=True)) == ("better", [])
    assert back.pairs[0].points == pytest.approx(-pair.points)


def test_the_numbers_are_those_of_the_statistics_of_b_minus_a(tmp_path: Path) -> None:
    write(tmp_path, 0.8, **A)
    write(tmp_path, 0.78, noise=1, **B)
    (pair,) = compared(tmp_path).pairs
    sides = []
    for spec in ("timm:vit_a", "timm:vit_b"):
        records = read_measured(tmp_path).records
        records = records[records["backbone"] == spec].sort_values("seed")
        sides.append(
            np.stack([(read_predictions(path).prediction == LABELS).astype(float) for path in records["path"]])
        )
    a, b = sides
    expected = statistics.paired_difference(b, a)
    assert pair.difference == expected
    assert pair.bootstrap == statistics.paired_bootstrap(b, a).p_value
    singles = sorted(statistics.mcnemar(b[s] > 0, a[s] > 0).p_value for s in range(3))
    assert pair.mcnemar == min(1.0, 2 * singles[1])


def test_a_drop_counts_beyond_the_tolerance_and_if_significant_or_strict(tmp_path: Path) -> None:
    right = LABELS.copy()
    for seed in range(3):
        put(tmp_path, right, seed=seed, **A)
        worse = right.copy()
        worse[seed * 7 : seed * 7 + 1] += 1
        put(tmp_path, worse % 10, seed=seed, **B)
    found = compared(tmp_path)
    assert found.pairs[0].points == pytest.approx(-0.5)
    assert found.pairs[0].p_value > 0.05
    assert drops(found, 0.2) == []
    assert len(drops(found, 0.2, strict=True)) == 1
    assert drops(found, 0.5, strict=True) == [], "a loss of exactly the tolerance is within it"


def test_the_mean_of_tasks_drops_where_no_single_one_does(tmp_path: Path) -> None:
    for number in range(6):
        task = f"paper/task{number}"
        write(tmp_path, 0.80, noise=2 * number, seeds=5, task=task, **A)
        write(tmp_path, 0.76, noise=2 * number + 1, seeds=5, task=task, **B)
    found = compared(tmp_path)
    (mean,) = found.means
    assert len(mean.pairs) == 6
    assert mean.points == pytest.approx(np.mean([pair.points for pair in found.pairs]))
    assert mean.count("better") + mean.count("tie", "identical") + mean.count("worse") == 6
    assert mean.p_value < 0.05
    assert any(line.startswith("cls · mean of 6 tasks · 5-shot: -") for line in drops(found, 0.2))


@pytest.mark.parametrize("seeds", [1, 4])
def test_what_its_interval_calls_a_tie_no_p_value_calls_significant(tmp_path: Path, seeds: int) -> None:
    for task in ("paper/cifar10", "paper/other"):
        write(tmp_path, 0.8, seeds=seeds, task=task, **A)
        write(tmp_path, 0.8, seeds=seeds, noise=1, task=task, **B)
    found = compared(tmp_path)
    for entry in (*found.pairs, *found.means):
        assert entry.difference.interval.contains(0) == (entry.difference.p_value >= 0.05)


def test_equal_predictions_are_identical_and_equal_scores_are_not(tmp_path: Path) -> None:
    write(tmp_path, 0.8, **A)
    write(tmp_path, 0.8, **B)
    found = compared(tmp_path)
    assert found.identical
    assert found.pairs[0].verdict == "identical"
    assert found.pairs[0].points == 0
    assert drops(found, 0.0, strict=True) == []
    shifted = tmp_path / "shifted"
    put(shifted, np.where(LABELS < 5, LABELS, 0), **A)
    put(shifted, np.where(LABELS >= 5, LABELS, 5), **B)
    found = compared(shifted)
    assert not found.identical
    assert (found.pairs[0].points, found.pairs[0].verdict) == (0.0, "tie")


def test_two_representations_of_one_backbone_are_compared(tmp_path: Path) -> None:
    write(tmp_path, 0.8, **A)
    write(tmp_path, 0.7, noise=1, representation="gap", **A)
    (pair,) = compared(tmp_path, "timm:vit_a/cls", "timm:vit_a/gap").pairs
    assert (pair.subject, pair.differs) == ("cls → gap", ())
    with pytest.raises(UsageError, match=r"unknown representation of timm:vit_a .*'gapp'; did you mean 'gap'\?"):
        compared(tmp_path, "timm:vit_a/cls", "timm:vit_a/gapp")


def test_what_is_on_other_data_is_listed_with_its_reason_and_never_compared(tmp_path: Path) -> None:
    for fields in (A, B):
        write(tmp_path, 0.8, **fields)
    for task, name in (("t/train", "train_fingerprint"), ("t/test", "test_fingerprint")):
        write(tmp_path, 0.8, task=task, **A)
        write(tmp_path, 0.8, task=task, **{name: "other"}, **B)
    write(tmp_path, 0.8, task="t/classes", **A)
    write(tmp_path, 0.8, task="t/classes", num_classes=11, **B)
    write(tmp_path, 0.8, task="t/parameters", **A)
    write(tmp_path, 0.8, task="t/parameters", parameters={"l2": "loo"}, **B)
    write(tmp_path, 0.8, task="t/only", **A)
    write(tmp_path, 0.8, shot=10, **B)
    write(tmp_path, 0.8, task="t/seeds", seeds=(0, 1), **A)
    write(tmp_path, 0.8, task="t/seeds", seeds=(2, 3), **B)
    write(tmp_path, 0.8, task="t/metric", metric="top5_accuracy", **A, scores={"top5_accuracy": 0.9, "accuracy": 0.8})
    write(tmp_path, 0.8, task="t/metric", metric="top5_accuracy", **B, scores={"top5_accuracy": 0.9, "accuracy": 0.8})
    found = compared(tmp_path)
    assert [pair.task for pair in found.pairs] == ["paper/cifar10"]
    told = {(entry.task, entry.shot): entry.reason for entry in found.unmatched}
    assert told == {
        ("t/train", 5): "other train images, so other support sets",
        ("t/test", 5): "other test images",
        ("t/classes", 5): "another number of classes",
        ("t/parameters", 5): "other parameters of the protocol",
        ("t/only", 5): "only in A",
        ("paper/cifar10", 10): "only in B",
        ("t/seeds", 5): "no seed that both sides have",
        ("t/metric", 5): "the metric top5_accuracy of task 't/metric' cannot be told from stored predictions",
    }


def test_only_shared_seeds_count_and_the_others_are_told(tmp_path: Path) -> None:
    write(tmp_path, 0.8, seeds=(0, 1, 2, 3), **A)
    write(tmp_path, 0.8, seeds=(1, 2, 3, 7), noise=1, **B)
    found = compared(tmp_path)
    assert found.pairs[0].seeds == (1, 2, 3)
    assert found.notes == (
        "cls · paper/cifar10 · 5-shot: seed 0 only in A: left out",
        "cls · paper/cifar10 · 5-shot: seed 7 only in B: left out",
    )


def test_limited_and_full_runs_never_meet(tmp_path: Path) -> None:
    write(tmp_path, 0.8, **A)
    write(tmp_path, 0.8, limit=200, **B)
    with pytest.raises(UsageError, match=r"B: all 3 records are limited; take them with --limited"):
        compared(tmp_path)
    write(tmp_path, 0.8, limit=150, **A)
    with pytest.raises(UsageError, match=r"nothing of A and B can be compared: .*another --limit"):
        compared(tmp_path, limited=True)


def test_preprocessings_that_both_have_go_together(tmp_path: Path) -> None:
    for number, text in enumerate(("resize(8x8,bilinear)|value_range(0,1)", "resize(9x9,bilinear)|value_range(0,1)")):
        for fields in (A, B):
            write(tmp_path, 0.8 - number / 10, preprocessing=text, **fields)
    write(tmp_path, 0.5, preprocessing="resize(7x7,bilinear)|value_range(0,1)", **A)
    found = compared(tmp_path)
    assert sorted(round(pair.a, 1) for pair in found.pairs) == [0.7, 0.8]
    assert [entry.reason for entry in found.unmatched] == ["only in A with its preprocessing"]


def test_which_of_several_is_meant_is_not_guessed(tmp_path: Path) -> None:
    write(tmp_path, 0.8, **A)
    for text in ("resize(8x8,bilinear)|value_range(0,1)", "resize(9x9,bilinear)|value_range(0,1)"):
        write(tmp_path, 0.8, preprocessing=text, **B)
    with pytest.raises(
        UsageError, match=r"several records would fit, which differ in preprocessing$|differ in preprocessing \(and"
    ):
        compared(tmp_path)


def test_folders_are_matched_by_identity_then_by_name_and_what_changed_is_told(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    write(before, 0.8, **A)
    write(after, 0.8, **A)
    write(before, 0.8, **B)
    write(after, 0.8, noise=1, **B | {"weights": "b2"})
    path = {"backbone": "timm:vit_c,checkpoint=/one/c.pt", "backbone_name": "c", "weights": "cc"}
    write(before, 0.8, **path)
    write(after, 0.7, noise=1, **path | {"backbone": "timm:vit_c,checkpoint=/two/c.pt", "weights": "c2"})
    write(before, 0.8, **A | {"representation": "gap"})
    found = compare_folders(before, after)
    assert {pair.subject: (pair.differs, pair.verdict) for pair in found.pairs} == {
        "timm:vit_a · cls": ((), "identical"),
        "timm:vit_b · cls": (("weights",), "tie"),
        "timm:vit_c,checkpoint=c.pt · cls": (("weights",), "worse"),
    }
    assert [entry.text for entry in found.unmatched] == ["timm:vit_a · gap · paper/cifar10 · 5-shot: only in A"]


def test_a_new_version_of_the_solver_can_be_compared_with_the_old_one(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    write(before, 0.8, parameters={"l2": 1024.0, "solver": 1}, **A)
    write(after, 0.8, parameters={"l2": 1024.0, "solver": 2}, **A)
    (pair,) = compare_folders(before, after).pairs
    assert pair.differs == ("parameters",)


def test_mean_per_class_accuracy_is_compared_as_such(tmp_path: Path) -> None:
    label = np.repeat([0, 1], [30, 170])
    some = np.where(np.arange(200) % 3 == 0, 1 - label, label)
    put(tmp_path, label.copy(), label, metric="mean_per_class_accuracy", num_classes=2, **A)
    put(tmp_path, np.where(label == 0, some, label), label, metric="mean_per_class_accuracy", num_classes=2, **B)
    (pair,) = compared(tmp_path).pairs
    assert (pair.a, pair.metric) == (pytest.approx(1.0), "mean_per_class_accuracy")
    assert pair.points == pytest.approx(-100 / 6), "a third of one of two classes"


def test_many_uneven_classes_with_many_mistakes_are_compared_as_their_scores_say(tmp_path: Path) -> None:
    """The difference is that of the two scores, and right or wrong is told by the predictions, whatever the classes weigh."""
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(6), [200, 90, 40, 20, 10, 5])
    right = {}
    for fields, rate in ((A, 0.6), (B, 0.4)):
        prediction = np.where(generator.random(len(label)) < rate, label, (label + 1) % 6)
        right[rate] = prediction == label
        put(tmp_path, prediction, label, metric="mean_per_class_accuracy", num_classes=6, **fields)
    (pair,) = compared(tmp_path).pairs
    assert pair.difference.difference == pytest.approx(pair.b - pair.a)
    assert pair.mcnemar == pytest.approx(statistics.mcnemar(right[0.4], right[0.6]).p_value)


def test_two_dtypes_of_one_task_are_two_subjects_and_no_mean(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        for fields, rate in ((A, 0.8), (B, 0.7)):
            write(tmp_path, rate, dtype=dtype, **fields)
    found = compared(tmp_path)
    assert sorted(pair.subject for pair in found.pairs) == ["cls bfloat16", "cls float32"]
    assert not found.means, "a task and itself are not two tasks"


def test_an_alias_and_equal_predictions_cost_no_correction(tmp_path: Path) -> None:
    for fields, rate in ((A, 0.8), (B, 0.7)):
        write(tmp_path, rate, **fields)
        write(tmp_path, rate, representation="pooler", alias_of="cls", **fields)
        write(tmp_path, 0.5, task="t/same", **fields)
    found = compared(tmp_path)
    assert [(pair.subject, pair.task) for pair in found.pairs] == [("cls", "paper/cifar10"), ("cls", "t/same")]
    assert found.pairs[0].p_value == found.pairs[0].difference.p_value


def test_damaged_and_missing_predictions_are_problems_and_the_rest_is_compared(tmp_path: Path) -> None:
    for task in ("paper/cifar10", "t/gone", "t/broken", "t/another"):
        for fields in (A, B):
            write(tmp_path, 0.8, task=task, **fields)
    paths = {task: sorted(tmp_path.glob(f"records/b/t/{task}/*.parquet"))[0] for task in ("gone", "broken", "another")}
    paths["gone"].unlink()
    paths["broken"].write_bytes(b"PAR1 no parquet")
    shifted = put(tmp_path / "x", (LABELS + 1) % 10, **B)
    paths["another"].write_bytes(shifted.with_suffix(".parquet").read_bytes())
    found = compared(tmp_path)
    assert [pair.task for pair in found.pairs] == ["paper/cifar10"]
    told = dict(line.split(": ", 1) for line in found.problems)
    assert "are missing" in told["cls · t/gone · 5-shot"]
    assert "are damaged" in told["cls · t/broken · 5-shot"]
    assert "give 0.00 %, but the record says" in told["cls · t/another · 5-shot"]
    assert all("--on-existing rerun" in line and "\n" not in line for line in found.problems)


def test_two_records_of_one_identity_are_a_conflict_unless_they_agree(tmp_path: Path) -> None:
    for fields in (A, B):
        write(tmp_path, 0.8, **fields)
    path = sorted(tmp_path.glob("records/b/paper/cifar10/*.json"))[0]
    copy = tmp_path / "records" / "copied" / path.name
    copy.parent.mkdir()
    for kind in (".json", ".parquet"):
        copy.with_suffix(kind).write_bytes(path.with_suffix(kind).read_bytes())
    measured = read_measured(tmp_path)
    assert (len(measured.records), measured.problems) == (6, ())
    text = copy.read_text()
    copy.write_text(text.replace('"accuracy": 0.', '"accuracy": 0.9'))
    measured = read_measured(tmp_path)
    assert len(measured.records) == 5
    (line,) = measured.problems
    assert "2 records of one identity (timm:vit_b · cls · paper/cifar10, shot 5" in line
    assert str(copy) in line
    assert "\n" not in line
    found = compared(tmp_path)
    assert found.problems == (line,)
    assert len(found.pairs[0].seeds) == 2


def test_a_name_means_a_spec_or_a_label_of_one_backbone(tmp_path: Path) -> None:
    write(tmp_path, 0.8, seeds=1, **A | {"backbone": "timm:vit_a,checkpoint=/x/one.pt", "weights": "1"})
    write(tmp_path, 0.8, seeds=1, **A | {"backbone": "timm:vit_a,checkpoint=/x/two.pt", "weights": "2"})
    write(tmp_path, 0.8, seeds=1, **B)
    records = read_measured(tmp_path).records
    assert len(match_backbone("timm:vit_a,checkpoint=/x/one.pt", records)[0]) == 1
    assert len(match_backbone("timm:vit_a,checkpoint=two.pt", records)[0]) == 1
    assert match_backbone("timm:vit_b/cls", records)[1] == "cls"
    with pytest.raises(
        UsageError, match=r"A: 'timm:vit_a' means 2 backbones: write one of their specs in full: timm:vit"
    ):
        match_backbone("timm:vit_a", records, side="A")
    with pytest.raises(
        UsageError, match=r"unknown backbone B among the records: 'timm:vitb'; did you mean .*'timm:vit_b'"
    ):
        match_backbone("timm:vitb", records, side="B")


def test_without_a_common_representation_one_must_be_named(tmp_path: Path) -> None:
    for name in ("cls", "gap"):
        write(tmp_path, 0.8, seeds=1, **A | {"representation": name})
    write(tmp_path, 0.5, seeds=1, **B | {"representation": "pixels"})
    with pytest.raises(UsageError, match=r"no representation in common \(A: cls, gap; B: pixels\)"):
        compared(tmp_path)
    (pair,) = compared(tmp_path, "timm:vit_a/gap").pairs
    assert pair.subject == "gap → pixels"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_p_values_of_seeds_together_are_twice_their_upper_median(values: list[float]) -> None:
    found = together(values)
    assert 0 <= found <= 1
    assert found == (values[0] if len(values) == 1 else min(1.0, 2 * sorted(values)[len(values) // 2]))
    assert together(values[::-1]) == found


def test_p_values_together_keep_their_level_under_full_dependence_and_none() -> None:
    random = np.random.default_rng(0)
    alone = random.random((4000, 5))
    same = np.repeat(random.random((4000, 1)), 5, axis=1)
    for draws in (alone, same):
        assert np.mean([together(list(row)) <= 0.05 for row in draws]) <= 0.055

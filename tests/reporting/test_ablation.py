"""The table and the pictures of an ablation, made of records whose predictions are known."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.records.test_store import make_record
from vitbench.errors import UsageError
from vitbench.execution.ablation import Ablation, Measurement
from vitbench.execution.ablation_levels import Lacking, Subject
from vitbench.records.store import ResultStore
from vitbench.reporting import statistics
from vitbench.reporting.ablation import report
from vitbench.reporting.ablation_plots import draw
from vitbench.reporting.ablation_table import AblationReport, Row, render, rich_tables

SPEC = "timm:vit_tiny_patch16_224"
IMAGES = 60
ACCURACY = {"cls": 0.8, "gap": 0.3, "pooler": 0.8}


def hits_of(level: str, task: str, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Right and wrong of 60 images; an alias shares its target's."""
    name = "cls" if level == "pooler" else level
    generator = np.random.default_rng([len(task), seed, *name.encode()])
    return np.asarray(generator.random(IMAGES) < ACCURACY.get(name, 0.6))


class Maker:
    """Writes records and collects them as an ablation."""

    def __init__(self, out: Path, axis: str = "representation") -> None:
        self.store, self.axis, self.out = ResultStore(out), axis, out
        self.found: list[Measurement] = []

    def add(self, level: str, *, task: str = "paper/cifar10", seed: int = 0, shot: int = 5, **changes: Any) -> None:
        hits = hits_of(level, task, seed)
        labels = np.arange(IMAGES) % 10
        given: dict[str, Any] = {"scores": {"accuracy": float(hits.mean())}}
        if self.axis == "representation":
            given |= {"representation": level, "alias_of": "cls" if level == "pooler" else None}
        record = make_record(task=task, seed=seed, shot=shot, n_test=IMAGES, **(given | changes))
        predictions = {
            "row": np.arange(IMAGES),
            "label": labels,
            "prediction": np.where(hits, labels, (labels + 1) % 10),
        }
        self.store.write(record, predictions)
        self.found.append(Measurement(record.key, SPEC, {self.axis: level}))

    def ablation(self, levels: tuple[str, ...], reference: str | None, **lacking: Lacking) -> Ablation:
        subject = Subject(
            SPEC,
            {self.axis: levels},
            reference=reference,
            lacking={(self.axis, level): why for level, why in lacking.items()},
        )
        return Ablation((self.axis,), self.axis, [subject], self.out, list(self.found))


def usual(out: Path, seeds: int = 3, tasks: tuple[str, ...] = ("paper/cifar10", "paper/pets")) -> Ablation:
    maker = Maker(out)
    for level in ("cls", "gap", "pooler"):
        for task in tasks:
            for seed in range(seeds):
                maker.add(level, task=task, seed=seed)
    return maker.ablation(("cls", "gap", "pooler"), "cls")


def row(shown: AblationReport, level: str, task: str = "") -> Row:
    (found,) = [row for row in shown.tables[0].rows if (row.level, row.task) == (level, task)]
    return found


def stacked(level: str, task: str, seeds: int = 3) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.stack([hits_of(level, task, seed) for seed in range(seeds)]).astype(float)


def test_differences_are_those_of_paired_statistics(tmp_path: Path) -> None:
    shown = report(usual(tmp_path))
    singles = {
        task: statistics.paired_difference(stacked("gap", task), stacked("cls", task))
        for task in ("paper/cifar10", "paper/pets")
    }
    for task, expected in singles.items():
        found = row(shown, "gap", task)
        assert found.comparison == expected
        assert found.score == pytest.approx(stacked("gap", task).mean())
        assert found.interval == statistics.combined_interval(stacked("gap", task))
    over = row(shown, "gap")
    assert over.comparison == statistics.mean_over_tasks(list(singles.values()))
    assert over.comparison is not None
    assert over.comparison.difference < -0.2
    assert over.counts == (0, 0, 2)
    assert (over.n_seeds, over.n_images) == (3, 120)
    assert row(shown, "cls").remark == "reference"
    assert row(shown, "cls").score == pytest.approx(np.mean([stacked("cls", task).mean() for task in singles]))


def test_an_alias_equals_by_construction_and_is_counted_once(tmp_path: Path) -> None:
    ablation = usual(tmp_path)
    shown = report(ablation)
    assert row(shown, "pooler").remark == "equals the reference"
    assert row(shown, "pooler").shown == "pooler (= cls)"
    assert row(shown, "pooler").comparison is None
    assert row(shown, "gap").p_adjusted == row(shown, "gap").p_value, "one comparison: nothing to correct"
    ablation.subjects[0].reference = "gap"
    against_gap = report(ablation)
    cls, pooler = row(against_gap, "cls"), row(against_gap, "pooler")
    assert cls.comparison == pooler.comparison
    assert cls.p_adjusted == pooler.p_adjusted == cls.p_value
    assert any(
        "by Holm for 1 comparison over tasks and, apart, 2 comparisons on single tasks;" in note
        for note in against_gap.notes
    )


@pytest.mark.parametrize("correction", ["holm", "fdr_bh"])
def test_p_values_are_corrected_by_family(tmp_path: Path, correction: Any) -> None:
    maker = Maker(tmp_path)
    levels = ("cls", "gap", "cls+gap")
    for level in levels:
        for task in ("paper/cifar10", "paper/pets"):
            for shot in (1, 5):
                for seed in range(2):
                    maker.add(level, task=task, shot=shot, seed=seed + 7 * shot)
    shown = report(maker.ablation(levels, "cls"), correction)
    assert len(shown.tables) == 2
    for mean in (True, False):
        rows = [row for table in shown.tables for row in table.rows if row.comparison and (row.task == "") == mean]
        assert len(rows) == (4 if mean else 8)
        expected = statistics.adjust([row.p_value for row in rows], method=correction)
        np.testing.assert_allclose([row.p_adjusted for row in rows], expected)


def test_what_a_backbone_lacks_is_listed_with_its_reason_and_never_scored(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    for level in ("cls", "gap"):
        for seed in range(2):
            maker.add(level, seed=seed)
    why = Lacking("untrained", "the checkpoint has no pooler.dense")
    shown = report(maker.ablation(("cls", "gap", "pooler"), "cls", pooler=why))
    found = row(shown, "pooler", "paper/cifar10")
    assert (found.provenance, found.remark) == ("untrained", "the checkpoint has no pooler.dense")
    assert np.isnan(found.score)
    note = f"pooler of {SPEC} is not scored: untrained (the checkpoint has no pooler.dense)"
    for form in ("markdown", "json"):
        assert note in render(shown, form)
    assert "untrained" in text(shown)
    assert "not scored" in text(shown)
    (line,) = [line for line in csv.DictReader(io.StringIO(render(shown, "csv"))) if line["level"] == "pooler"]
    assert (line["score"], line["provenance"]) == ("", "untrained")


def test_untrained_weights_that_were_scored_are_marked(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    for level in ("cls", "pooler"):
        maker.add(level, alias_of=None, representation_provenance="untrained" if level == "pooler" else "trained")
    shown = report(maker.ablation(("cls", "pooler"), "cls"))
    assert row(shown, "pooler", "paper/cifar10").provenance == "untrained"
    assert any(note.startswith("pooler: untrained, newly initialised weights") for note in shown.notes)
    assert any("one seed says nothing about other support sets" in note for note in shown.notes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train_fingerprint": "other"}, "other train images, so other support sets"),
        ({"test_fingerprint": "other"}, "other test images"),
        ({"limit": 60}, "another --limit, so other test images"),
        ({"seed": 9}, "no seed that both have"),
    ],
)
def test_what_cannot_be_paired_is_refused_with_the_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    maker = Maker(tmp_path)
    maker.add("cls")
    maker.add("gap", **changes)
    shown = report(maker.ablation(("cls", "gap"), "cls"))
    found = row(shown, "gap", "paper/cifar10")
    assert found.comparison is None
    assert found.remark == f"not paired: {reason}"
    assert found.score > 0, "the score itself is shown"
    assert f"gap: not paired: {reason}" in shown.notes


def test_levels_of_shots_are_never_paired(tmp_path: Path) -> None:
    maker = Maker(tmp_path, "shots")
    for shot in (1, 5):
        for seed in range(2):
            maker.add(str(shot), shot=shot, seed=seed)
    shown = report(maker.ablation(("1", "5"), "1"))
    assert row(shown, "5", "paper/cifar10").remark == "not paired: other support sets"
    assert "not paired" in text(shown)


def test_a_mean_needs_every_task(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    for level, tasks in (("cls", ("a/one", "a/two")), ("gap", ("a/one",))):
        for task in tasks:
            maker.add(level, task=task)
    shown = report(maker.ablation(("cls", "gap"), "cls"))
    assert row(shown, "gap").remark == "1 of 2 tasks"
    assert np.isnan(row(shown, "gap").score)
    assert row(shown, "gap", "a/one").comparison is not None
    assert row(shown, "gap", "a/two").provenance == "failed"


def test_damaged_predictions_are_told_and_the_score_stays(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    for level in ("cls", "gap"):
        maker.add(level)
    path = next(path for path in tmp_path.rglob("*.parquet") if path.stem == maker.found[1].key)
    path.write_bytes(b"broken")
    shown = report(maker.ablation(("cls", "gap"), "cls"))
    found = row(shown, "gap", "paper/cifar10")
    assert found.comparison is None
    assert "are damaged" in found.remark
    assert found.score == pytest.approx(hits_of("gap", "paper/cifar10", 0).mean())
    assert any("are damaged" in note for note in shown.notes)


def test_predictions_that_do_not_give_the_score_are_not_compared(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    maker.add("cls")
    maker.add("gap", scores={"accuracy": 0.123})
    shown = report(maker.ablation(("cls", "gap"), "cls"))
    assert "do not give its record's score" in row(shown, "gap", "paper/cifar10").remark


def test_equal_records_are_equal_by_construction(tmp_path: Path) -> None:
    maker = Maker(tmp_path, "preprocess")
    maker.add("auto")
    maker.found.append(Measurement(maker.found[0].key, SPEC, {"preprocess": "vit_jax"}))
    shown = report(maker.ablation(("auto", "vit_jax"), "auto"))
    assert row(shown, "vit_jax", "paper/cifar10").remark == "equals the reference"


def test_no_record_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the ablation has no record"):
        report(Maker(tmp_path).ablation(("cls",), "cls"))


def text(shown: AblationReport, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(rich_tables(shown))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_format_tells_the_same_numbers(tmp_path: Path) -> None:
    shown = report(usual(tmp_path))
    over = row(shown, "gap")
    assert over.comparison is not None
    rows = json.loads(render(shown, "json"))["rows"]
    (found,) = [line for line in rows if line["level"] == "gap" and line["task"] == "(mean)"]
    assert found["difference"] == pytest.approx(over.comparison.difference, abs=1e-9)
    assert found["low"] == pytest.approx(over.comparison.interval.low, abs=1e-9)
    assert (found["wins"], found["ties"], found["losses"]) == (0, 0, 2)
    assert (found["reference"], found["shot"], found["seeds"]) == ("cls", "5", 3)
    assert found["p_holm"] == pytest.approx(over.p_adjusted)
    table = list(csv.DictReader(io.StringIO(render(shown, "csv"))))
    assert [line["level"] for line in table] == [line["level"] for line in rows]
    points = f"{100 * over.comparison.difference:+.1f}".replace("-", "\u2212")
    for drawn in (render(shown, "markdown"), text(shown)):
        assert points in drawn
        assert "pooler (= cls)" in drawn
        assert "p (Holm)" in drawn
        assert "mean of 2 tasks" in drawn
        assert "0/0/2" in drawn


def test_names_with_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    maker = Maker(tmp_path, "preprocess")
    odd = "resize(32x32,bicubic)|normalize(0.5,0.5)"
    for level in ("auto", odd):
        maker.add(level, task="a/[red]x", preprocessing=level)
    shown = report(maker.ablation(("auto", odd), "auto"))
    assert "[red]x" in text(shown)
    assert odd in text(shown)
    body = render(shown, "markdown")
    assert odd.replace("|", "\\|") in body


def ink(path: Path) -> tuple[int, int]:
    """Width and height of a picture that has something on it, and nothing cut off at its border."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.min() < 100
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert border.min() == 255
    return pixels.shape[1], pixels.shape[0]


def test_a_forest_and_curves_are_drawn(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    for level in ("cls", "gap", "pooler"):
        for shot in (1, 5):
            for seed in range(2):
                maker.add(level, shot=shot, seed=seed)
    shown = report(maker.ablation(("cls", "gap", "pooler"), "cls"))
    drawn = draw(shown, tmp_path / "pictures")
    assert [path.name.rsplit("-", 1)[1] for path in drawn] == ["forest.png", "shots.png"]
    for path in drawn:
        width, height = ink(path)
        assert width > 300
        assert height > 200
    assert not list((tmp_path / "pictures").glob(".tmp-*"))
    stale = drawn[1].with_name(drawn[1].name.replace("shots", "depth"))
    stale.write_bytes(b"of an earlier ablation")
    draw(shown, tmp_path / "pictures")
    assert not stale.exists()


def test_the_path_marks_what_leave_one_out_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    original = Figure.savefig

    def keeping(self: Figure, *given: Any, **options: Any) -> None:
        figures.append(self)
        original(self, *given, **options)

    monkeypatch.setattr(Figure, "savefig", keeping)
    maker = Maker(tmp_path, "l2")
    for seed in range(2):
        for level in ("1", "1024", "4096"):
            maker.add(level, seed=seed, parameters={"l2": float(level)}, details={"l2": float(level)})
        maker.add("loo", seed=seed, parameters={"l2": "loo"}, details={"l2": 64.0 * (seed + 1)})
    shown = report(maker.ablation(("1", "1024", "4096", "loo"), "1024"))
    drawn = draw(shown, tmp_path / "pictures")
    assert [path.name.rsplit("-", 1)[1] for path in drawn] == ["forest.png", "lambda.png"]
    (axes,) = figures[1].axes
    assert axes.get_xscale() == "log"
    stars = [line for line in axes.lines if line.get_marker() == "*" and len(np.asarray(line.get_xdata()))]
    assert [float(np.asarray(line.get_xdata())[0]) for line in stars] == [64.0, 128.0]
    assert any(list(np.asarray(line.get_xdata())) == [1024.0, 1024.0] for line in axes.lines)
    (curve,) = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 3]
    means = [
        100 * np.mean([hits_of(level, "paper/cifar10", seed).mean() for seed in range(2)])
        for level in ("1", "1024", "4096")
    ]
    np.testing.assert_allclose(np.asarray(curve.get_ydata()), means)


def test_depth_is_drawn_by_pooling(tmp_path: Path) -> None:
    maker = Maker(tmp_path, "layer")
    levels = tuple(f"{pooling}@{layer}" for pooling in ("cls", "gap") for layer in range(9))
    for level in levels:
        maker.add(level, representation=level)
    drawn = draw(report(maker.ablation(levels, "cls@8")), tmp_path / "pictures")
    assert [path.name.rsplit("-", 1)[1] for path in drawn] == ["depth.png"], "17 lines are too many for a forest"
    ink(drawn[0])


def test_a_limited_ablation_has_pictures_of_its_own(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    for level in ("cls", "gap"):
        maker.add(level, limit=60)
    shown = report(maker.ablation(("cls", "gap"), "cls"))
    assert "LIMITED to 60 test images" in render(shown, "markdown")
    (drawn,) = draw(shown, tmp_path / "pictures")
    assert drawn.name.endswith("-representation-limit60-forest.png")

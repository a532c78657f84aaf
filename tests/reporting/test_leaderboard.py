from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

import vitbench
from tests.records.test_store import PREDICTIONS, make_record
from vitbench.errors import UsageError
from vitbench.records.store import ResultStore
from vitbench.reporting.formats import render, rich_tables
from vitbench.reporting.leaderboard import leaderboards, match_tasks
from vitbench.reporting.published import read_published


def frame_of(tmp_path: Path, *records: dict[str, Any]) -> pd.DataFrame:
    store = ResultStore(tmp_path)
    for record in records:
        store.write(make_record(**record), PREDICTIONS)
    return vitbench.load_results(tmp_path)


def seeds(*accuracies: float, **fields: Any) -> list[dict[str, Any]]:
    return [{"seed": seed, "scores": {"accuracy": value}, **fields} for seed, value in enumerate(accuracies)]


def test_cells_are_means_over_seeds_in_percent_and_the_spread_is_over_seeds(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.5, 0.6, 0.7)))
    row = ("timm:vit_tiny_patch16_224", "cls", "")
    assert board.cells.loc[row, "paper/cifar10"] == pytest.approx(60.0)
    assert board.spread.loc[row, "paper/cifar10"] == pytest.approx(10.0)
    assert board.cells.loc[("chance", "", ""), "paper/cifar10"] == pytest.approx(10.0)
    assert "3 seeds" in board.notes[0]


def test_the_mean_over_tasks_is_spread_over_seeds_and_wants_every_task(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.5, 0.7),
        *seeds(0.9, 0.7, task="paper/cifar100", num_classes=100, chance=0.01),
        *seeds(0.99, 0.99, representation="gap"),
    )
    (board,) = leaderboards(frame)
    assert board.cells["mean"].tolist()[0] == pytest.approx(70.0)
    assert board.spread["mean"].tolist()[0] == pytest.approx(0.0, abs=1e-9), "both seeds have a mean of 0.7"
    assert [label[1] for label in board.cells.index] == ["cls", "gap", ""]
    assert pd.isna(board.cells.loc[("timm:vit_tiny_patch16_224", "gap", ""), "mean"])
    assert any(note.startswith("rows without a mean lack a task") for note in board.notes)
    assert board.cells.loc[("chance", "", ""), "mean"] == pytest.approx(5.5)


def test_seeds_that_differ_are_told_and_a_mean_is_over_the_seeds_that_the_tasks_share(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.5, 0.6, 0.7),
        *seeds(0.9, task="paper/cifar100", chance=0.01),
        {"seed": 7, "representation": "gap"},
        {"seed": 7, "representation": "gap", "task": "paper/cifar100"},
    )
    (board,) = leaderboards(frame)
    row = ("timm:vit_tiny_patch16_224", "cls", "")
    assert board.cells.loc[row, "paper/cifar10"] == pytest.approx(60.0)
    assert board.cells.loc[row, "mean"] == pytest.approx(70.0), "seed 0 alone: (50 + 90) / 2"
    assert "NOT the same seeds everywhere" in board.notes[0]


def test_another_number_of_classes_is_another_column(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.5), *seeds(0.6, num_classes=20, chance=0.05)))
    assert len(board.cells.columns) == 3
    assert sorted(board.cells.iloc[0][:2]) == [pytest.approx(50.0), pytest.approx(60.0)]


def test_protocol_parameters_and_limits_never_share_a_table(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.5),
        *seeds(0.6, parameters={"l2": "loo"}, protocol_label="l2 by leave-one-out"),
        *seeds(0.9, limit=10),
    )
    boards = leaderboards(frame)
    assert [board.title for board in boards] == [
        "fewshot · l2 by leave-one-out · 5-shot",
        "fewshot · l2 = 1024 · 5-shot",
    ]
    assert all("1 limited records are left out: they are never mixed" in board.notes for board in boards)
    (limited,) = leaderboards(frame, limited=True)
    assert limited.title.endswith("LIMITED to 10 test images")
    assert limited.cells.iloc[0, 0] == pytest.approx(90.0)


def test_one_task_has_its_shots_as_columns_and_several_tasks_a_table_per_shot(tmp_path: Path) -> None:
    several = [*seeds(0.5), *seeds(0.6, shot=25), *seeds(0.1, shot=1)]
    (board,) = leaderboards(frame_of(tmp_path / "one", *several))
    assert list(board.cells.columns) == ["1-shot", "5-shot", "25-shot"]
    frame = frame_of(tmp_path / "two", *several, *[record | {"task": "paper/cifar100"} for record in several])
    assert [list(board.cells.columns) for board in leaderboards(frame)] == [
        ["paper/cifar10", "paper/cifar100", "mean"]
    ] * 3


def test_rows_that_differ_never_read_alike(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *seeds(0.5),
        *seeds(0.6, dtype="bfloat16"),
        *seeds(0.65, preprocessing="resize(8x8,bilinear)|normalize(0.5,0.5)"),
        *seeds(0.7, weights="ef01", backbone="timm:vit_tiny_patch16_224,checkpoint=/a/b/mine.pt"),
        *seeds(0.8, alias_of="cls", representation="pooler"),
        *seeds(0.9, representation_provenance="untrained", representation="cls+gap"),
    )
    (board,) = leaderboards(frame)
    labels = list(board.cells.index)
    assert len(set(labels)) == len(labels) == 7
    assert ("timm:vit_tiny_patch16_224", "cls", "preprocessing B float32") in labels
    assert "preprocessing B: resize(8x8,bilinear)|normalize(0.5,0.5)" in board.notes
    assert ("timm:vit_tiny_patch16_224,checkpoint=mine.pt", "cls", "") in labels
    assert ("timm:vit_tiny_patch16_224", "cls", "preprocessing A bfloat16") in labels
    assert any(label[1] == "pooler (= cls)" for label in labels)
    assert any(label[1] == "cls+gap (untrained)" for label in labels)
    assert any("--allow-untrained" in note for note in board.notes)


def test_two_data_sets_of_one_name_are_two_columns(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5), *seeds(0.6, test_fingerprint="99ff"))
    (board,) = leaderboards(frame)
    assert len(board.cells.columns) == 3
    assert board.cells.columns[0].startswith("paper/cifar10#")
    assert len([note for note in board.notes if "test images, 10 classes, first made by" in note]) == 2


def test_the_pixels_floor_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.5)))
    assert any("no pixels floor for paper/cifar10: vitbench run --backbone pixels" in note for note in board.notes)
    with_floor = frame_of(tmp_path, *seeds(0.2, backbone="pixels", architecture="pixels", representation="pixels"))
    (board,) = leaderboards(with_floor)
    assert not any("floor" in note for note in board.notes)


def test_warnings_of_records_are_told_below_the_table(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.5, warnings=["2 of 10 classes have fewer than 5 images"])))
    assert "paper/cifar10: 2 of 10 classes have fewer than 5 images" in board.notes


def test_nothing_left_says_what_there_is(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5))
    with pytest.raises(
        UsageError, match=r"no record has shots 7; there are shots 5; tasks paper/cifar10; protocols fewshot"
    ):
        leaderboards(frame, shots=[7])
    with pytest.raises(UsageError, match="all 1 records are full"):
        leaderboards(frame, limited=True)
    with pytest.raises(UsageError, match="there are no records yet"):
        leaderboards(vitbench.load_results(tmp_path / "records" / "timm-vit_tiny_patch16_224-abcd" / "paper").head(0))


def test_match_tasks(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5), *seeds(0.5, task="vtab/natural/dtd"))
    assert match_tasks(["cifar10"], frame) == match_tasks(["paper"], frame) == ["paper/cifar10"]
    assert match_tasks(["vtab", "paper/*"], frame) == ["vtab/natural/dtd", "paper/cifar10"]
    with pytest.raises(UsageError, match=r"did you mean .*cifar10"):
        match_tasks(["cifar"], frame)


@pytest.mark.parametrize("form", ["markdown", "csv", "json", "latex"])
def test_every_format_carries_the_number(tmp_path: Path, form: str) -> None:
    boards = leaderboards(frame_of(tmp_path, *seeds(0.5, 0.6, 0.7), *seeds(0.1, representation="gap")))
    text = render(boards, form)
    if form == "csv":
        table = pd.read_csv(io.StringIO(text))
        assert table.set_index("representation")["accuracy"]["cls"] == pytest.approx(0.6)
        assert table.set_index("representation")["accuracy_std"]["cls"] == pytest.approx(0.1)
    elif form == "json":
        assert {row["representation"]: row["seeds"] for row in json.loads(text)} == {"cls": 3, "gap": 1}
    elif form == "latex":
        assert r"60.0 $\pm$ 10.0" in text
        assert r"vit\_tiny" in text
        assert r"\toprule" in text
    else:
        assert re.search(r"\| cls +\| +60\.0 ± 10\.0 \|", text)
        assert re.search(r"\| chance +\| +\| +10\.0 \|", text)


def test_the_terminal_table_is_not_cut(tmp_path: Path) -> None:
    boards = leaderboards(frame_of(tmp_path, *seeds(0.5, 0.6, 0.7)))
    console = Console(file=io.StringIO(), width=200)
    console.print(rich_tables(boards))
    assert "60.0 ± 10.0" in console.file.getvalue()  # type: ignore[attr-defined]


SUITES = {
    "paper": ["paper/cifar10"],
    "vtab": ["vtab/natural/dtd", "vtab/natural/svhn", "vtab/structured/dmlab"],
    "vtab/natural": ["vtab/natural/dtd", "vtab/natural/svhn"],
    "vtab/structured": ["vtab/structured/dmlab"],
}
VIT = ("timm:vit_tiny_patch16_224", "cls", "")


def suite_seeds(dtd: list[float], svhn: list[float], dmlab: list[float], **fields: Any) -> list[dict[str, Any]]:
    scored = {"vtab/natural/dtd": dtd, "vtab/natural/svhn": svhn, "vtab/structured/dmlab": dmlab}
    return [record for task, values in scored.items() for record in seeds(*values, task=task, **fields)]


def text_of(boards: list[Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(rich_tables(boards))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_suite_with_groups_has_its_means_and_then_a_table_per_group(tmp_path: Path) -> None:
    records = [*suite_seeds([0.2, 0.4], [0.4, 0.2], [0.9, 0.9]), *seeds(0.7)]
    summary, natural, structured, rest = leaderboards(frame_of(tmp_path, *records), suites=SUITES)
    assert summary.title.endswith("· 5-shot · vtab")
    assert summary.cells.loc[VIT].to_dict() == pytest.approx(
        {"natural (2)": 30.0, "structured (1)": 90.0, "mean of 3": 50.0, "mean of 2 groups": 60.0}
    )
    # Within each seed first: natural is 0.3 for both seeds, so its spread is none, though each task's is 14 points.
    assert summary.spread.loc[VIT, "natural (2)"] == pytest.approx(0.0, abs=1e-9)
    assert natural.title.endswith("· 5-shot · vtab/natural")
    assert list(natural.cells.columns) == ["dtd", "svhn", "mean of 2"]
    assert natural.spread.loc[VIT, "dtd"] == pytest.approx(14.142, abs=1e-3)
    assert list(structured.cells.columns) == ["dmlab"]
    assert list(rest.cells.columns) == ["paper/cifar10"]
    assert summary.cells.loc[("chance", "", "")].tolist() == pytest.approx([10.0] * 4)


def test_without_its_suites_the_same_records_are_one_table(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *suite_seeds([0.2], [0.4], [0.9])))
    assert list(board.cells.columns) == [*SUITES["vtab"], "mean"]


def test_rows_are_ordered_by_the_mean_of_all_where_it_is_whole(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        *suite_seeds([0.5], [0.5], [0.1]),  # mean 36.7, mean of groups 30
        *suite_seeds([0.2], [0.2], [0.6], representation="gap"),  # mean 33.3, mean of groups 40
        *suite_seeds([0.9], [], [0.9], representation="pooler"),
    )
    summary = leaderboards(frame, suites=SUITES)[0]
    assert [label[1] for label in summary.cells.index] == ["cls", "gap", "pooler", ""]


def test_a_suites_mean_is_never_of_some_of_its_tasks(tmp_path: Path) -> None:
    whole, part = suite_seeds([0.2], [0.4], [0.9]), suite_seeds([0.99], [], [0.9], representation="gap")
    summary, natural, _ = leaderboards(frame_of(tmp_path / "a", *whole, *part), suites=SUITES)
    gap = ("timm:vit_tiny_patch16_224", "gap", "")
    assert summary.cells.loc[gap].isna().tolist() == [True, False, True, True]
    assert summary.cells.loc[gap, "structured (1)"] == pytest.approx(90.0)
    reason = "no mean: 2 of 3 tasks, without vtab/natural/svhn (timm:vit_tiny_patch16_224 gap)"
    assert reason in summary.notes
    assert natural.cells.loc[gap, "dtd"] == pytest.approx(99.0)
    assert pd.isna(natural.cells.loc[gap, "mean of 2"])
    assert re.search(r"gap +\| +— \| +90\.0 \| +— \| +— \|", render([summary], "markdown"))
    only_part = leaderboards(frame_of(tmp_path / "b", *part), suites=SUITES)
    assert [board.title.split(" · ")[-1] for board in only_part] == ["vtab", "vtab/natural", "vtab/structured"]
    assert list(only_part[1].cells.columns) == ["dtd"], "one task of two has no mean"
    assert "no mean: 1 of 2 tasks, without vtab/natural/svhn" in only_part[1].notes
    (board,) = leaderboards(frame_of(tmp_path / "c", *seeds(0.5, task="vtab/natural/dtd")), suites=SUITES)
    assert list(board.cells.columns) == ["vtab/natural/dtd"], "a single task needs no suite"


def test_one_group_alone_has_its_table_and_no_table_of_means(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *suite_seeds([0.2, 0.3], [0.4, 0.5], [])), suites=SUITES)
    assert board.cells.loc[VIT, "mean of 2"] == pytest.approx(35.0)


def test_tasks_that_share_no_seed_have_no_mean_and_it_is_said(tmp_path: Path) -> None:
    records = [*seeds(0.2, task="vtab/natural/dtd"), {"seed": 7, "task": "vtab/natural/svhn"}]
    (board,) = leaderboards(frame_of(tmp_path, *records), suites=SUITES)
    assert pd.isna(board.cells.loc[VIT, "mean of 2"])
    assert "no mean: no seed that all tasks share" in board.notes


def test_splits_tell_sets_of_data_apart_where_they_can(tmp_path: Path) -> None:
    small = {"splits": {"train": "train[:100]", "test": "test"}, "train_fingerprint": "77"}
    (board,) = leaderboards(frame_of(tmp_path / "a", *seeds(0.5), *seeds(0.4, **small)))
    assert list(board.cells.columns) == ["paper/cifar10 [train → test]", "paper/cifar10 [train[:100] → test]", "mean"]
    same = {"splits": {"train": "train[:100]", "test": "test"}, "train_fingerprint": "78"}
    (board,) = leaderboards(frame_of(tmp_path / "b", *seeds(0.5), *seeds(0.4, **small), *seeds(0.3, **same)))
    assert sum("[train[:100] → test]#" in column for column in board.cells.columns) == 2
    assert "paper/cifar10 [train → test]" in board.cells.columns


def test_a_suite_on_two_pairs_of_splits_is_two_sets_of_tables(tmp_path: Path) -> None:
    small = {"splits": {"train": "train800", "test": "test"}}
    records = suite_seeds([0.2], [0.4], [0.9])
    records += [
        {**record, **small, "train_fingerprint": f"77 {record['task']}"} for record in suite_seeds([0.1], [0.3], [])
    ]
    boards = leaderboards(frame_of(tmp_path, *records), suites=SUITES)
    assert [board.title.split(" · ")[-1] for board in boards] == [
        "vtab [train → test]",
        "vtab/natural [train → test]",
        "vtab/structured [train → test]",
        "vtab/natural [train800 → test]",
    ]
    assert boards[0].cells.loc[VIT, "natural (2)"] == pytest.approx(30.0)
    assert boards[3].cells.loc[VIT, "mean of 2"] == pytest.approx(20.0)
    assert list(boards[3].cells.columns) == ["dtd", "svhn", "mean of 2"]


def test_a_task_that_stands_for_two_sets_of_data_is_in_no_mean(tmp_path: Path) -> None:
    records = [*suite_seeds([0.2], [0.4], [0.9]), *seeds(0.3, task="vtab/natural/dtd", test_fingerprint="99ff")]
    summary, natural, _ = leaderboards(frame_of(tmp_path, *records), suites=SUITES)
    assert summary.cells.loc[VIT].isna().tolist() == [True, False, True, True]
    assert "no mean: vtab/natural/dtd stands for 2 sets of data" in summary.notes
    assert len(natural.cells.columns) == 3
    assert not [column for column in natural.cells.columns if "mean" in column]


def test_the_whole_train_split_is_not_called_0_shot(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5, shot=0, protocol="ridge"), *seeds(0.6, protocol="fewshot"))
    titles = [board.title for board in leaderboards(frame)]
    assert titles == ["fewshot · l2 = 1024 · 5-shot", "ridge · l2 = 1024 · all train images"]
    (board,) = leaderboards(frame_of(tmp_path / "b", *seeds(0.5, shot=0), *seeds(0.4, shot=1), *seeds(0.45, shot=25)))
    assert list(board.cells.columns) == ["1-shot", "25-shot", "all train images"]
    assert len(leaderboards(frame, shots=[0])) == 1
    with pytest.raises(UsageError, match=r"no record has shots 7; there are shots 0 \(all train images\), 5;"):
        leaderboards(frame, shots=[7])


def test_the_score_is_the_tasks_own_metric_and_another_can_be_asked_for(tmp_path: Path) -> None:
    scores = {"accuracy": 0.5, "top5_accuracy": 0.8, "mean_per_class_accuracy": 0.4}
    frame = frame_of(tmp_path, {"scores": scores, "metric": "mean_per_class_accuracy"})
    (board,) = leaderboards(frame)
    assert board.title.endswith("5-shot · mean_per_class_accuracy")
    assert board.notes[0] == "mean_per_class_accuracy in % (1 seed)"
    assert board.cells.iloc[0, 0] == pytest.approx(40.0)
    (board,) = leaderboards(frame, metric="accuracy")
    assert board.title.endswith("5-shot")
    assert board.cells.iloc[0, 0] == pytest.approx(50.0)
    (board,) = leaderboards(frame, metric="top5_accuracy")
    assert board.title.endswith("5-shot · top5_accuracy")
    assert board.cells.iloc[:, 0].tolist() == pytest.approx([80.0, 50.0]), (
        "the score, and the chance of 5 of 10 classes"
    )
    with pytest.raises(
        UsageError, match=r"unknown metric 'top5'; did you mean 'top5_accuracy'\? \(the records have accuracy, "
    ):
        leaderboards(frame, metric="top5")
    with pytest.raises(UsageError, match="multilabel_hit"):
        leaderboards(frame, metric="multilabel_hit")


def test_metrics_are_never_mixed_silently(tmp_path: Path) -> None:
    other = {"task": "paper/pets", "metric": "mean_per_class_accuracy"}
    frame = frame_of(
        tmp_path,
        {"scores": {"accuracy": 0.5, "top5_accuracy": 0.9}},
        {"scores": {"accuracy": 0.9, "mean_per_class_accuracy": 0.7}, **other},
    )
    (board,) = leaderboards(frame)
    assert list(board.cells.columns) == ["paper/cifar10", "paper/pets", "mean of the tasks' own metrics"]
    assert board.cells.iloc[0].tolist() == pytest.approx([50.0, 70.0, 60.0])
    assert "(accuracy: paper/cifar10; mean_per_class_accuracy: paper/pets; a mean is the mean of" in board.notes[0]
    (board,) = leaderboards(frame, metric="top5_accuracy")
    assert list(board.cells.columns) == ["paper/cifar10"]
    assert "1 records have no top5_accuracy and are left out: paper/pets" in board.notes


def test_one_task_scored_by_two_metrics_is_two_columns(tmp_path: Path) -> None:
    scores = {"accuracy": 0.5, "mean_per_class_accuracy": 0.4}
    records = [{"scores": scores}, {"scores": scores, "metric": "mean_per_class_accuracy", "representation": "gap"}]
    (board,) = leaderboards(frame_of(tmp_path, *records))
    assert list(board.cells.columns)[:2] == ["paper/cifar10 [accuracy]", "paper/cifar10 [mean_per_class_accuracy]"]


def test_deviations_and_rendered_images_are_marked_and_explained(tmp_path: Path) -> None:
    line = "split 'train' has 4,000 images where the task file expects 50,000"
    frame = frame_of(
        tmp_path,
        *suite_seeds([0.2], [0.4], []),
        *seeds(0.9, task="vtab/structured/dmlab", synthetic=True, deviations=[line]),
    )
    summary, natural, structured = leaderboards(frame, suites=SUITES)
    text = render([summary, natural, structured], "markdown")
    for header in ("structured (1) †‡", "mean of 3 †‡", "mean of 2 groups †‡", "dmlab †‡"):
        assert f" {header} |" in text
    assert " natural (2) |" in text
    assert " dtd |" in text
    assert f"- † dmlab is not as its task file says, taken by --accept-sizes: {line}" in text
    assert "- ‡ synthetic: rendered by a program (dmlab)" in text
    assert r"dmlab $\dagger$$\ddagger$" in render([structured], "latex")
    assert list(structured.cells.columns) == ["dmlab"], "the name itself stays as it is"
    table = pd.read_csv(io.StringIO(render([structured], "csv")))
    assert table["deviations"].tolist() == [line]
    assert table["synthetic"].tolist() == [True]


def test_splits_that_are_not_simply_train_and_test_are_told(tmp_path: Path) -> None:
    (board,) = leaderboards(frame_of(tmp_path, *seeds(0.5, splits={"train": "train800val200", "test": "test"})))
    assert "splits: train800val200 → test (learned from → scored on)" in board.notes


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_suites_means_are_rows_of_their_own_level(tmp_path: Path, form: str) -> None:
    boards = leaderboards(frame_of(tmp_path, *suite_seeds([0.2, 0.4], [0.4, 0.4], [0.9, 0.9])), suites=SUITES)
    text = render(boards, form)
    table = pd.read_csv(io.StringIO(text)) if form == "csv" else pd.DataFrame(json.loads(text))
    found = table.set_index(["level", "task"])["score"].to_dict()
    assert found == pytest.approx(
        {
            ("group mean", "vtab/natural"): 0.35,
            ("group mean", "vtab/structured"): 0.9,
            ("mean", "vtab"): (0.3 + 0.4 + 0.9) / 3,
            ("mean of groups", "vtab"): 0.625,
            ("task", "vtab/natural/dtd"): 0.3,
            ("task", "vtab/natural/svhn"): 0.4,
            ("task", "vtab/structured/dmlab"): 0.9,
        }
    )
    spread = table.set_index(["level", "task"])["score_std"][("group mean", "vtab/natural")]
    assert spread == pytest.approx(0.0707, abs=1e-4)


def test_published_numbers_stand_below_and_are_marked_not_ranked(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *suite_seeds([0.2], [0.4], [0.01]))
    boards = leaderboards(frame, suites=SUITES, published=read_published())
    summary, natural = boards[0], boards[1]
    assert list(summary.cells.index) == [VIT, ("chance", "", "")], "no published row among one's own"
    best = ("published [1]: ResNet50 Sup-Rotation-100%", "fine-tuned", "")
    assert natural.published.loc[best].tolist() == pytest.approx([69.5213, 88.4642, 78.9927], abs=1e-3)
    assert summary.published.loc[best, "mean of 3"] == pytest.approx((69.5213 + 88.4642 + 36.5848) / 3, abs=1e-3)
    (source,) = [note for note in summary.notes if note.startswith("[1]")]
    assert "published, not measured here" in source
    assert "fine-tuned on 1,000 images" in source
    assert "results.csv at c566d64" in source
    lines = render([natural], "markdown").splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert rows[:2] == ["timm:vit_tiny_patch16_224", "chance"]
    assert len(rows) == 2 + 16
    assert all(row.startswith("published [1]: ") for row in rows[2:])
    assert "| 69.52 (−49.5) |" in render([natural], "markdown").replace("  ", ""), "20.0 is 49.5 points below it"
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    console.print(rich_tables([natural]))
    bold = re.findall(r"\x1b\[1m *([^\x1b]*)\x1b", console.file.getvalue())  # type: ignore[attr-defined]
    assert [text.strip() for text in bold if re.match(r"\s*[\d.]+\s*$", text)] == ["20.0", "40.0", "30.0"]


def test_published_numbers_stay_away_from_limited_runs_and_other_metrics(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *suite_seeds([0.2], [0.4], [0.9], limit=10))
    boards = leaderboards(frame, suites=SUITES, limited=True, published=read_published())
    assert not any(len(board.published) for board in boards)
    assert any("not shown beside limited runs" in note for note in boards[0].notes)
    frame = frame_of(tmp_path / "b", {"scores": {"accuracy": 0.5, "top5_accuracy": 0.9}})
    (board,) = leaderboards(frame, metric="top5_accuracy", published=read_published())
    assert "there are no published numbers for this table" in board.notes
    (board,) = leaderboards(frame, published=read_published())
    assert board.published.iloc[:, 0].max() == pytest.approx(99.5)


@pytest.mark.parametrize("width", [70, 100, 160])
def test_a_wide_table_goes_on_below_itself_and_no_line_is_cut(tmp_path: Path, width: int) -> None:
    names = ["dsprites_location", "dsprites_orientation", "kitti_distance", "smallnorb_azimuth", "smallnorb_elevation"]
    tasks = [f"vtab/structured/{name}" for name in names]
    records = [record for number, task in enumerate(tasks) for record in seeds(0.1 * number, 0.5, task=task)]
    boards = leaderboards(frame_of(tmp_path, *records), suites={"vtab": tasks})
    text = text_of(boards, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.replace("--tasks …", "")
    for value in boards[0].cells.iloc[0]:
        assert re.search(rf"{value:.1f} ± \d", text)
    flat = re.sub(r"\s+", "", text)
    assert "orientation" in flat
    assert flat.count("vit_tiny_patch16_224") == {70: 6, 100: 2, 160: 1}[width]

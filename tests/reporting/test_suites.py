"""The means of a suite, against VTAB's own leaderboard; its numbers are those of `results/published/vtab_*.csv`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbench.reporting.published import COLUMNS, published_folder, published_scores, read_published
from vitbench.reporting.suites import MEAN, MEAN_OF_GROUPS, aggregate, grouped_suites
from vitbench.tasks.catalog import suites

VTAB = {
    "natural": "caltech101 cifar100 dtd oxford_flowers102 oxford_iiit_pet sun397 svhn",
    "specialized": "diabetic_retinopathy eurosat patch_camelyon resisc45",
    "structured": "clevr_count clevr_distance dmlab dsprites_location dsprites_orientation kitti_distance "
    "smallnorb_azimuth smallnorb_elevation",
}

# protocols.md 3.3: mean of 19, natural, specialized, structured.
GOLDEN = {
    "vtab": {
        "Sup-100%": (66.37, 73.46, 82.49, 52.10),
        "Sup-Rotation-100%": (67.97, 73.57, 83.12, 55.48),
        "Rotation": (60.45, 53.67, 78.56, 57.32),
        "From-Scratch": (43.14, 27.91, 68.94, 43.57),
        "Jigsaw": (52.47, 43.97, 76.53, 47.89),
        "WAE-GAN": (33.30, 15.60, 53.98, 38.46),
    },
    "vtab_full": {
        "Sup-100%": (89.74, 86.41, 89.32, 92.87),
        "Sup-Rotation-100%": (90.19, 86.94, 89.76, 93.24),
        "Rotation": (86.37, 76.80, 89.16, 93.35),
        "From-Scratch": (75.43, 53.58, 85.26, 89.62),
        "Jigsaw": (82.96, 72.11, 88.25, 89.82),
        "WAE-GAN": (48.46, 27.87, 67.65, 56.88),
    },
}


def groups_of(suite: str) -> dict[str, list[str]]:
    return {group: [f"{suite}/{group}/{name}" for name in names.split()] for group, names in VTAB.items()}


def rows_of(suite: str) -> pd.DataFrame:
    """Methods × tasks."""
    published = read_published()
    ours = published[published["task"].str.startswith(f"{suite}/")]
    return ours.pivot(index="pretraining", columns="task", values="accuracy")


@pytest.mark.parametrize("suite", ["vtab", "vtab_full"])
def test_the_means_of_vtabs_own_leaderboard_come_out_of_its_per_task_rows(suite: str) -> None:
    means = aggregate(rows_of(suite), groups_of(suite)).round(2)
    for method, expected in GOLDEN[suite].items():
        row = means.loc[method]
        assert (row[MEAN], row["natural"], row["specialized"], row["structured"]) == pytest.approx(expected, abs=1e-9)


def test_the_mean_of_all_is_not_the_mean_of_the_group_means() -> None:
    row = aggregate(rows_of("vtab"), groups_of("vtab")).loc["Sup-100%"]
    assert row[MEAN] == pytest.approx(66.37, abs=0.005)
    assert row[MEAN_OF_GROUPS] == pytest.approx((73.46 + 82.49 + 52.10) / 3, abs=0.01)
    assert row[MEAN_OF_GROUPS] - row[MEAN] > 2.9


def test_every_published_vtab_number_is_there_once() -> None:
    for suite in ("vtab", "vtab_full"):
        rows = rows_of(suite)  # a pivot refuses a number that is given twice
        assert rows.shape == (16, 19)
        assert rows.notna().all(axis=None)
        assert rows.to_numpy().min() > 0
        assert rows.to_numpy().max() <= 100
    # Spot checks against the source that no mean above would feel.
    assert rows_of("vtab").loc["Cond-BigGAN", "vtab/structured/clevr_count"] == 12.3467
    assert rows_of("vtab_full").loc["VAE", "vtab_full/natural/sun397"] == 29.254
    assert rows_of("vtab_full").loc["Cond-BigGAN", "vtab_full/natural/caltech101"] == 0.148


@pytest.mark.parametrize("suite", ["vtab", "vtab_full"])
def test_published_tasks_are_our_tasks_in_our_groups(suite: str) -> None:
    assert grouped_suites(suites())[suite] == groups_of(suite)
    assert [len(tasks) for tasks in groups_of(suite).values()] == [7, 4, 8]


@pytest.mark.parametrize("path", sorted(published_folder().glob("*.csv")), ids=lambda path: path.name)
def test_published_files_have_the_same_columns_and_no_number_twice(path: Path) -> None:
    table = pd.read_csv(path, dtype=str)
    assert [*table.columns][: len(COLUMNS)] == COLUMNS
    assert set(table.columns[len(COLUMNS) :]) <= {"train_images", "metric"}
    assert table["verified"].isin(["true", "false"]).all()
    assert table["source"].notna().all()
    rows, sources = published_scores(read_published(), table["task"].unique().tolist())
    assert rows.notna().any(axis=1).all()
    assert len(sources) == len(set(sources))


def test_numbers_that_nobody_checked_say_so() -> None:
    _, sources = published_scores(read_published(), ["paper/oxford_pets"])
    assert [line for line in sources if "NOT checked against the source" in line]
    assert [line for line in sources if "big_vision" in line and "NOT checked" not in line]


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@st.composite
def scored_groups(draw: st.DrawFn) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    groups = {f"g{number}": [f"s/g{number}/{task}" for task in range(size)] for number, size in enumerate(draw(sizes))}
    tasks = [task for members in groups.values() for task in members]
    values = st.lists(st.floats(0, 1), min_size=len(tasks), max_size=len(tasks))
    rows = draw(st.lists(values, min_size=1, max_size=3))
    return pd.DataFrame(rows, columns=tasks), groups


@given(scored_groups())
def test_a_mean_is_the_groups_weighted_by_their_sizes(made: tuple[pd.DataFrame, dict[str, list[str]]]) -> None:
    scores, groups = made
    means = aggregate(scores.assign(other=1e9), groups)
    assert list(means.columns) == [*groups, MEAN, MEAN_OF_GROUPS]
    weighted = sum(means[group] * len(tasks) for group, tasks in groups.items()) / scores.shape[1]
    np.testing.assert_allclose(means[MEAN], weighted, atol=1e-12)
    np.testing.assert_allclose(means[MEAN_OF_GROUPS], sum(means[group] for group in groups) / len(groups), atol=1e-12)
    shuffled = aggregate(scores[list(reversed(scores.columns))], groups)
    pd.testing.assert_frame_equal(shuffled, means)


@given(scored_groups(), st.data())
def test_a_missing_score_takes_away_its_groups_mean_and_the_overall_ones_only(
    made: tuple[pd.DataFrame, dict[str, list[str]]], data: st.DataObject
) -> None:
    scores, groups = made
    task = data.draw(st.sampled_from(list(scores.columns)))
    before = aggregate(scores, groups)
    for after in (aggregate(scores.drop(columns=task), groups), aggregate(scores.assign(**{task: math.nan}), groups)):
        lost = {task.split("/")[1], MEAN, MEAN_OF_GROUPS}
        assert after[sorted(lost)].isna().all(axis=None)
        kept = [group for group in groups if group not in lost]
        pd.testing.assert_frame_equal(after[kept], before[kept])


def test_a_series_is_one_row() -> None:
    means = aggregate(pd.Series({"s/a/x": 0.2, "s/b/y": 0.4, "s/b/z": 0.9}), {"a": ["s/a/x"], "b": ["s/b/y", "s/b/z"]})
    assert means.iloc[0].tolist() == pytest.approx([0.2, 0.65, 0.5, 0.425])


@pytest.mark.parametrize("groups", [{"a": ["x"], "b": ["x"]}, {"a": []}, {MEAN: ["x"]}])
def test_groups_that_cannot_be_averaged(groups: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="cannot be averaged"):
        aggregate(pd.DataFrame({"x": [1.0]}), groups)


def test_suites_with_subfolders_have_groups() -> None:
    folders = {
        "paper": ["paper/cifar10"],
        "vtab": ["vtab/odd", "vtab/natural/dtd", "vtab/natural/svhn", "vtab/structured/dmlab"],
        "vtab/natural": ["vtab/natural/dtd", "vtab/natural/svhn"],
        "vtab/structured": ["vtab/structured/dmlab"],
    }
    assert grouped_suites(folders) == {
        "vtab": {
            "vtab": ["vtab/odd"],
            "natural": ["vtab/natural/dtd", "vtab/natural/svhn"],
            "structured": ["vtab/structured/dmlab"],
        }
    }

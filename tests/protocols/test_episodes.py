from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.cli.why import parse_run
from vitbench.errors import DataError, UsageError
from vitbench.execution.replay import find_record, replay
from vitbench.execution.why import why_record
from vitbench.features.featureset import FeatureSet, IntArray, LazyRepresentations
from vitbench.protocols import PROTOCOLS, closed_form, episodes
from vitbench.protocols.base import Outcome
from vitbench.protocols.episodes import SCOPE, EpisodeProtocol, spread
from vitbench.records.predictions import read_predictions
from vitbench.reporting.boards import Show
from vitbench.reporting.comparison import compare_backbones
from vitbench.reporting.diagnostics import diagnose
from vitbench.reporting.hits import hits
from vitbench.reporting.leaderboard import leaderboards
from vitbench.reporting.recorded import read_with_paths
from vitbench.reporting.selection import read_measured
from vitbench.reporting.statistics import paired_difference

CLASSES = 7
TRAIN = FeatureSet(np.zeros(3, np.int64), np.empty(0, np.int64), {})


def images(seed: int = 0, size: int = 150, spread: float = 1.0) -> FeatureSet:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.resize(np.arange(CLASSES), size))
    x = np.random.default_rng(9).normal(size=(CLASSES, 16))[labels] + spread * rng.normal(size=(size, 16))
    return FeatureSet(labels, np.arange(size), {"cls": torch.from_numpy(x.astype(np.float32))})


def outcomes(protocol: EpisodeProtocol, test: FeatureSet) -> list[Outcome]:
    return list(protocol.evaluate(TRAIN, test, "cls", CLASSES, protocol.cells()))


def small(**options: Any) -> EpisodeProtocol:
    return EpisodeProtocol(**{"way": 3, "queries": 4, "episodes": 50, **options})


@pytest.mark.parametrize("classifier", ["ridge", "prototype", "knn"])
def test_what_an_outcome_holds(classifier: str) -> None:
    test = images()
    for outcome, shot in zip(outcomes(small(classifier=classifier), test), (1, 5), strict=True):
        assert (outcome.cell.shot, outcome.cell.seed) == (shot, 0)
        assert (outcome.n_support, outcome.n_test) == (3 * shot, 50 * 3 * 4)
        assert outcome.rows is not None
        assert outcome.episode is not None
        assert outcome.ranking.shape == (600, 2)
        assert outcome.episode.tolist() == np.repeat(np.arange(50), 12).tolist()
        for episode in range(50):
            mine = outcome.episode == episode
            classes, counts = np.unique(test.labels[outcome.rows[mine]], return_counts=True)
            assert counts.tolist() == [4, 4, 4]
            assert set(outcome.ranking[mine].reshape(-1)) <= set(classes)
        accuracies = (outcome.predictions == test.labels[outcome.rows]).reshape(50, 12).mean(axis=1)
        assert outcome.details["ci95"] == pytest.approx(1.96 * np.std(accuracies, ddof=1) / math.sqrt(50))
        assert outcome.details["n_classes"] == CLASSES
        assert json.dumps(outcome.details)
        assert outcome.warnings == (SCOPE,)
        assert 0.4 < accuracies.mean() < 1


@pytest.mark.parametrize("classifier", ["ridge", "prototype", "knn"])
def test_images_that_are_read_some_at_a_time_are_classified_as_those_in_memory(
    classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, protocol = images(), small(classifier=classifier)
    asked: list[int] = []

    def read(name: str, rows: IntArray) -> torch.Tensor:
        asked.append(len(rows))
        return held.representations[name][torch.from_numpy(rows)]

    order = np.random.default_rng(1).permutation(len(held.rows))
    test = FeatureSet(held.labels, held.rows, LazyRepresentations(["cls"], held.rows, read, order))
    expected = outcomes(protocol, test)
    assert asked == [1, 150], "few are held"
    monkeypatch.setattr(closed_form, "HELD", 0)
    monkeypatch.setattr(episodes, "HELD", 3 * (5 + 4) * 16 * 2)
    asked.clear()
    found = outcomes(protocol, FeatureSet(held.labels, held.rows, LazyRepresentations(["cls"], held.rows, read, order)))
    # One row tells the dimension, and all 150 are checked; 50 episodes of 15 images go by 3, those of 27 by 2.
    drawn = [size for size in asked if size not in (1, 150)]
    assert len(drawn) == 17 + 25
    assert max(drawn) <= 2 * 3 * (5 + 4)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.ranking, other.ranking)
        assert (one.details, one.warnings) == (other.details, other.warnings)


def test_more_shots_are_better_on_the_same_queries() -> None:
    one, five = outcomes(small(episodes=200), images(spread=2.0))
    assert np.array_equal(one.rows, five.rows)
    test = images(spread=2.0)
    right = [float(np.mean(outcome.predictions == test.labels[outcome.rows])) for outcome in (one, five)]
    assert right[0] + 0.05 < right[1]


def test_without_anything_to_tell_the_score_is_chance() -> None:
    test = images(spread=1.0)
    noise = FeatureSet(
        test.labels, test.rows, {"cls": torch.randn(150, 16, generator=torch.Generator().manual_seed(0))}
    )
    for classifier in ("ridge", "prototype", "knn"):
        (outcome,) = outcomes(small(classifier=classifier, episodes=400, shots=5), noise)
        share = float(np.mean(outcome.predictions == test.labels[outcome.rows]))
        # The noise is of 150 fixed images, so that episodes share what is accidental in it.
        assert abs(share - 1 / 3) < 0.05


def test_the_spread_over_episodes() -> None:
    assert spread(np.array([0.5, 0.7, 0.9])) == pytest.approx({"episode_std": 0.2, "ci95": 1.96 * 0.2 / math.sqrt(3)})
    assert spread(np.array([0.5])) == {"episode_std": None, "ci95": None}


def test_options_and_parameters() -> None:
    found = EpisodeProtocol.from_options({"way": "5", "shots": "1,5", "queries": 15, "episodes": "600", "seeds": 2})
    assert [(cell.shot, cell.seed) for cell in found.cells()] == [(1, 0), (1, 1), (5, 0), (5, 1)]
    assert found.label() == "5-way, 600 episodes, 15 queries a class, ridge, l2 = 1024"
    drawn = {"way": 5, "queries": 15, "episodes": 600, "sampler": 1}
    assert found.parameters() == drawn | {"classifier": "ridge", "l2": 1024.0, "epsilon": 1e-5, "solver": 1}
    prototype = EpisodeProtocol.from_options({"classifier": "prototype", "distance": "euclidean"})
    assert prototype.parameters() == drawn | {"classifier": "prototype", "distance": "euclidean"}
    assert prototype.label().endswith("nearest prototype, euclidean")
    near = EpisodeProtocol.from_options({"classifier": "knn", "k": "3"})
    assert near.parameters() == drawn | {
        "classifier": "knn",
        "k": 3,
        "distance": "cosine",
        "weights": "temperature",
        "temperature": 0.07,
    }
    assert near.label().endswith("knn, k = 3, votes weighted by exp(cosine / 0.07)")
    assert EpisodeProtocol(l2="paper").parameters() == EpisodeProtocol(l2=1024).parameters()
    assert PROTOCOLS.load("episodes") is EpisodeProtocol
    assert found.choices(100) == 5
    assert not len(found.train_rows(np.zeros(9, np.int64), 1, found.cells()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 1}, r"way must be whole numbers from 2, got 1"),
        ({"shots": "0"}, r"shots must be whole numbers from 1"),
        ({"queries": "none"}, r"queries must be whole numbers from 1, got 'none'"),
        ({"episodes": 10**7}, r"episodes must be whole numbers from 1 to 1000000"),
        ({"classifier": "prototypes"}, r"unknown classifier of protocol 'episodes': 'prototypes'.*prototype"),
        ({"classifier": "prototype", "distance": "cos"}, r"unknown distance of protocol 'episodes'"),
        ({"l2": "loo"}, r"l2 must be 'paper' or a number above 0"),
        ({"classifier": "knn", "k": 6}, r"k is 6, but a 5-way 1-shot episode has 5 support images"),
        ({"classifier": "prototype", "l2": 3}, r"l2 is an option of the classifier ridge.*--set classifier=ridge"),
        ({"k": 3}, r"k is an option of the classifier knn, and the classifier is ridge: add --set classifier=knn"),
        ({"ways": 5}, r"unknown option of protocol 'episodes': 'ways'.*way"),
        ({"tune": True}, r"unknown option of protocol 'episodes': 'tune'"),
    ],
)
def test_mistakes_in_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EpisodeProtocol.from_options(options)


def test_too_few_images_or_classes() -> None:
    test = images()
    with pytest.raises(
        DataError, match=r"take 25 test images of each of 3 classes, and 0 classes have as many; 3 classes have 2"
    ):
        outcomes(small(shots=5, queries=20), test)
    with pytest.raises(DataError, match=r"the test images have 7 classes in all: give a smaller --way"):
        outcomes(small(way=8), test)
    uneven = FeatureSet(np.repeat(np.arange(4), [60, 60, 20, 10]), test.rows, test.representations)
    (outcome,) = outcomes(small(shots=20, way=2, episodes=9), uneven)
    assert outcome.warnings == (SCOPE, "2 of 4 classes with images have fewer than 24 and are in no episode")
    assert outcome.details["n_classes"] == 2


def test_features_that_are_not_finite() -> None:
    test = images()
    test.representations["cls"][5] = torch.inf
    with pytest.raises(DataError, match="1 of 150 test rows have NaN or infinite"):
        outcomes(small(), test)


def test_some_rows_of_a_split() -> None:
    """With --limit, episodes are drawn from the rows that are scored, and named by their row in the whole split."""
    whole = images()
    rows = np.arange(1, 150, 2)
    (outcome,) = outcomes(
        small(shots=1), FeatureSet(whole.labels, rows, {"cls": whole.representations["cls"][torch.from_numpy(rows)]})
    )
    assert outcome.rows is not None
    assert set(outcome.rows.tolist()) <= set(rows.tolist())
    assert np.mean(outcome.predictions == whole.labels[outcome.rows]) > 0.6


OPTIONS = {"way": 4, "queries": 10, "episodes": 40}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with pixels: shots 1 and 5, two seeds; and a tiny random ViT beside it."""
    folder = tmp_path_factory.mktemp("episodes")
    vitbench.run("pixels", "builtin/digits", protocol="episodes", seeds=2, options=OPTIONS, out=folder)
    return folder


def test_records_and_predictions(out: Path) -> None:
    frame, _ = read_with_paths(out)
    assert len(frame) == 4
    assert set(frame["chance"]) == {0.25}
    assert set(frame["n_test"]) == {1600}
    assert frame["top5_accuracy"].isna().all() if "top5_accuracy" in frame else True
    assert "macro_f1" not in frame or frame["macro_f1"].isna().all()
    assert frame["mean_per_class_accuracy"].tolist() == frame["accuracy"].tolist()
    for _, record in frame.iterrows():
        table = read_predictions(record["path"])
        assert table.episode is not None
        assert len(table.row) == 1600
        assert table.hits.mean() == pytest.approx(record["accuracy"], abs=1e-12)
        by_episode = pd.Series(table.hits).groupby(table.episode).mean()
        assert record["ci95"] == pytest.approx(1.96 * by_episode.std() / math.sqrt(40))
    means = frame.groupby("shot")["accuracy"].mean()
    assert 0.5 < means[1] + 0.05 < means[5]
    assert not list((out / "features").glob("**/train/**/shard-*.safetensors"))


def test_the_leaderboard(out: Path) -> None:
    frame, _ = read_with_paths(out)
    label = "4-way, 40 episodes, 10 queries a class, ridge, l2 = 1024"
    (board,) = leaderboards(frame, show=Show(interval="combined"))
    assert board.title == f"episodes · {label} · builtin/digits"
    assert board.cells.loc["chance"].to_numpy().ravel().tolist() == [25.0, 25.0]
    notes = "\n".join(board.notes)
    assert "mean over seeds and its 95 % interval over episodes (2 seeds)" in notes
    assert f"1-shot, 5-shot: {SCOPE}" in notes
    assert "80 episodes, Wilson: other draws from the same images, not other classes or images" in notes
    half = (board.high - board.low).iloc[0]["5-shot"] / 2
    mine = frame[frame["shot"] == 5]
    assert half == pytest.approx(100 * math.sqrt(np.square(mine["ci95"]).mean() / 2), rel=0.15)
    (board,) = leaderboards(frame, shots=[5])
    assert (
        board.title == "episodes · 4-way 5-shot, 40 episodes, 10 queries a class, ridge, l2 = 1024 · builtin/digits"
        or (board.title == "episodes · 4-way 5-shot, 40 episodes, 10 queries a class, ridge, l2 = 1024")
    )
    (board,) = leaderboards(frame, shots=[5], metric="mean_per_class_accuracy")
    assert board.cells.loc["chance"].to_numpy().ravel().tolist() == [25.0]


def test_the_unit_is_the_episode(out: Path) -> None:
    frame, _ = read_with_paths(out)
    mine = frame[frame["shot"] == 1]
    found = hits(mine, mine["path"].tolist())
    assert found.unit == "episodes"
    assert found.values.shape == (2, 40)
    assert found.values.mean(axis=1).tolist() == pytest.approx(mine.sort_values("seed")["accuracy"].tolist())


def test_what_asks_for_one_prediction_an_image_says_so(out: Path) -> None:
    frame, _ = read_with_paths(out)
    mine = frame[(frame["shot"] == 1) & (frame["seed"] == 0)]
    with pytest.raises(UsageError, match="episodes classify an image several times"):
        diagnose(mine, mine["path"].tolist())
    with pytest.raises(UsageError, match="episodes score an image several times"):
        compare_backbones(read_measured(out), "pixels", "pixels")


def test_records_are_replayed_and_explained(out: Path) -> None:
    for key in vitbench.load_results(out)["key"]:
        found = find_record(key, out)
        assert replay(found).agrees
        assert not why_record(found).differences


def test_nothing_is_made_again(out: Path, encoded: list[int]) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if "records" in path.parts}
    vitbench.run("pixels", "builtin/digits", protocol="episodes", seeds=2, shots=5, options=OPTIONS, out=out)
    assert not encoded
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())


def test_a_test_split_without_the_images_is_refused(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder(test=4)
    with pytest.raises(
        DataError, match=r"take 16 test images of each of 3 classes, and 0 classes have as many; 3 classes have 4"
    ):
        vitbench.run(
            "pixels", f"imagefolder:{folder}", protocol="episodes", shots=1, options={"way": 3}, out=tmp_path / "out"
        )
    frame = vitbench.run(
        "pixels",
        f"imagefolder:{folder}",
        protocol="episodes",
        shots=1,
        options={"way": 3, "queries": 2, "episodes": 30},
        out=tmp_path / "out",
    )
    assert frame["accuracy"].item() > 0.9


def test_the_options_of_the_command_line() -> None:
    words = "--protocol episodes --way 5 --shot 1,5 --queries 15 --episodes 600 --set classifier=knn --k 1"
    config = parse_run(words.split())
    expected = {"way": 5, "shots": "1,5", "queries": 15, "episodes": 600, "classifier": "knn", "k": "1"}
    assert config.options == expected
    found = EpisodeProtocol.from_options(config.options)
    assert (found.way, found.shots, found.queries, found.episodes, found.k) == (5, (1, 5), 15, 600, 1)


def test_ablations_pair_episodes() -> None:
    """The representations of one backbone see the same episodes, so that their difference is taken episode by episode."""
    one, two = np.array([[0.5, 0.75, 1.0, 0.5]]), np.array([[0.25, 0.5, 0.75, 0.5]])
    paired = paired_difference(np.vstack([one, one]), np.vstack([two, two]), unit="episodes")
    assert paired.n_images == 8
    differences = np.tile(one - two, 2).reshape(-1)
    half = stats.t.ppf(0.975, 7) * differences.std(ddof=1) / math.sqrt(8)
    assert paired.interval.high - paired.interval.low == pytest.approx(2 * half)
    assert "8 episodes" in paired.method

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from vitbench.solvers import episodes as solver
from vitbench.solvers import ridge
from vitbench.solvers.episodes import (
    Episodes,
    draw,
    eligible,
    neighbour_scores,
    prototype_scores,
    rankings,
    ridge_scores,
)

CLASSIFIERS = {
    "ridge": partial(ridge_scores, l2=64.0),
    "cosine": partial(prototype_scores, distance="cosine"),
    "euclidean": partial(prototype_scores, distance="euclidean"),
    "knn": partial(neighbour_scores, k=3, temperature=0.07),
}


def data(seed: int = 0, classes: int = 8, width: int = 24, offset: float = 1.0) -> tuple[torch.Tensor, np.ndarray]:
    """Classes of 6 to 20 rows, in mixed order, hard enough for errors."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), rng.integers(6, 21, size=classes)))
    x = rng.normal(size=(classes, width))[labels] + 1.5 * rng.normal(size=(len(labels), width)) + offset
    return torch.from_numpy(x.astype(np.float32)), labels


def some(
    labels: np.ndarray, shot: int = 3, way: int = 3, episodes: int = 20, seed: int = 0, queries: int = 3
) -> Episodes:
    classes = int(labels.max()) + 1
    return draw(labels, classes, way=way, shot=shot, queries=queries, episodes=episodes, seed=seed)


def one_by_one(x: torch.Tensor, drawn: Episodes, episode: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support rows, their places in the episode's classes, and queries of one episode."""
    way, shot = drawn.support.shape[1:]
    support = x[torch.from_numpy(drawn.support[episode].reshape(-1))].double().numpy()
    queries = x[torch.from_numpy(drawn.queries[episode].reshape(-1))].double().numpy()
    return support, np.repeat(np.arange(way), shot), queries


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9))
def test_what_an_episode_is(seed: int, way: int, shot: int, queries: int, episodes: int) -> None:
    _, labels = data(seed)
    able = eligible(labels, 8, shot + queries)
    assert able.tolist() == [c for c in range(8) if np.count_nonzero(labels == c) >= shot + queries]
    if len(able) < way:
        return
    drawn = draw(labels, 8, way=way, shot=shot, queries=queries, episodes=episodes, seed=seed)
    assert drawn.classes.shape == (episodes, way)
    assert (drawn.support.shape, drawn.queries.shape) == ((episodes, way, shot), (episodes, way, queries))
    for classes, support, asked in zip(drawn.classes, drawn.support, drawn.queries, strict=True):
        assert (np.diff(classes) > 0).all()
        assert set(classes) <= set(able)
        assert (labels[support] == classes[:, None]).all()
        assert (labels[asked] == classes[:, None]).all()
        rows = np.concatenate([support.reshape(-1), asked.reshape(-1)])
        assert len(set(rows.tolist())) == way * (shot + queries)


def test_draws_of_one_seed_begin_alike_and_are_nested_over_shots() -> None:
    labels = np.tile(np.arange(6), 12)
    few, many = some(labels, episodes=5), some(labels, episodes=30)
    assert np.array_equal(few.support, many.support[:5])
    assert np.array_equal(few.queries, many.queries[:5])
    assert not np.array_equal(many.support[:5], many.support[5:10])
    assert not np.array_equal(some(labels, seed=1).classes, some(labels).classes)
    one = some(labels, shot=1, episodes=30)
    assert np.array_equal(one.classes, many.classes)
    assert np.array_equal(one.queries, many.queries)
    assert np.array_equal(one.support, many.support[:, :, :1])


def test_the_sampler_is_pinned() -> None:
    """Golden: another draw would need another `SAMPLER_VERSION`."""
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 0, 3])
    drawn = draw(labels, 4, way=2, shot=2, queries=1, episodes=2, seed=0)
    rng = np.random.default_rng(0)
    for episode in range(2):
        classes = sorted(rng.permutation([0, 1, 2])[:2].tolist())
        rows = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
        assert drawn.classes[episode].tolist() == classes
        assert drawn.queries[episode].tolist() == [row[:1].tolist() for row in rows]
        assert drawn.support[episode].tolist() == [row[1:3].tolist() for row in rows]
    assert drawn.classes.tolist() == [[0, 2], [0, 2]]
    assert drawn.support.tolist() == [[[11, 9], [8, 2]], [[6, 9], [5, 2]]]
    assert drawn.queries.tolist() == [[[6], [5]], [[0], [8]]]
    assert solver.SAMPLER_VERSION == 1


def test_classes_and_images_are_drawn_evenly() -> None:
    labels = np.repeat(np.arange(10), 8)
    drawn = draw(labels, 10, way=4, shot=1, queries=2, episodes=4000, seed=3)
    share = np.bincount(drawn.classes.reshape(-1), minlength=10) / 4000
    assert np.abs(share - 0.4).max() < 5 * math.sqrt(0.4 * 0.6 / 4000)
    support = np.bincount(drawn.support.reshape(-1), minlength=80) / 16000
    assert np.abs(support - 1 / 80).max() < 5 * math.sqrt(1 / 80 / 16000)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("shot", [1, 5])
def test_batches_change_nothing(name: str, shot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = data(1)
    drawn = some(labels, shot=shot, queries=1)
    expected = rankings(x, drawn, CLASSIFIERS[name], 2)
    assert expected.shape == (60, 2)
    for size in (1, 400, 10**9):
        monkeypatch.setattr(solver, "BATCH", size)
        assert np.array_equal(rankings(x, drawn, CLASSIFIERS[name], 2), expected)


@pytest.mark.parametrize("l2", [1e-9, 0.5, 1024.0])
@pytest.mark.parametrize(("shot", "width"), [(1, 24), (3, 24), (3, 4)])
def test_ridge_is_that_of_few_shot_episode_by_episode(l2: float, shot: int, width: int) -> None:
    x, labels = data(2, width=width)
    drawn = some(labels, shot=shot)
    support, queries = x[torch.from_numpy(drawn.support)], x[torch.from_numpy(drawn.queries)].flatten(1, 2)
    scores = ridge_scores(support, queries, l2)
    for episode in range(20):
        rows, places, _ = one_by_one(x, drawn, episode)
        expected = ridge.fit(torch.from_numpy(rows), torch.from_numpy(places), 3, l2).scores(queries[episode])
        # The bias adds the same to every class, and is left out.
        apart = (expected - expected.mean(dim=1, keepdim=True)) - (
            scores[episode] - scores[episode].mean(dim=1, keepdim=True)
        )
        assert float(apart.abs().max()) < 1e-8 * max(1.0, float(expected.abs().max()))


def test_constant_features_of_an_episode_count_for_nothing() -> None:
    """As in few-shot: a feature that is constant over the support has no spread to divide by."""
    x, labels = data(3)
    drawn = some(labels)
    x[:, 5] = 7.0
    rest = torch.cat([x[:, :5], x[:, 6:]], dim=1)
    moved = x.clone()
    moved[torch.from_numpy(drawn.queries[0].reshape(-1)), 5] = 1e6
    first = Episodes(drawn.classes[:1], drawn.support[:1], drawn.queries[:1])
    expected = rankings(rest, first, CLASSIFIERS["ridge"], 2)
    assert np.array_equal(rankings(moved, first, CLASSIFIERS["ridge"], 2), expected)
    nothing = rankings(torch.ones_like(x), drawn, CLASSIFIERS["ridge"], 1)
    assert np.array_equal(nothing[:, 0], np.repeat(drawn.classes[:, 0], 9))


@pytest.mark.parametrize("l2", [1e-20, 1e-30])
def test_a_penalty_below_rounding_is_solved_as_few_shot_solves_it(l2: float) -> None:
    x, labels = data(4)
    drawn = some(labels, episodes=4)
    found = rankings(x, drawn, partial(ridge_scores, l2=l2), 1)[:, 0]
    expected = []
    for episode in range(4):
        rows, places, queries = one_by_one(x, drawn, episode)
        model = ridge.fit(torch.from_numpy(rows), torch.from_numpy(places), 3, l2)
        expected += drawn.classes[episode][model.predict(torch.from_numpy(queries)).numpy()].tolist()
    assert found.tolist() == expected


@pytest.mark.parametrize("shot", [1, 4])
def test_prototypes_are_scikit_learns_nearest_centroid(shot: int) -> None:
    x, labels = data(5, offset=1000.0)
    drawn = some(labels, shot=shot, queries=2)
    found = rankings(x, drawn, CLASSIFIERS["euclidean"], 1)[:, 0]
    expected = []
    for episode in range(20):
        support, places, queries = one_by_one(x, drawn, episode)
        peer = NearestCentroid().fit(support, places)
        expected += drawn.classes[episode][peer.predict(queries)].tolist()
    assert found.tolist() == expected


def test_cosine_prototypes_by_hand() -> None:
    x, labels = data(6)
    drawn = some(labels)
    found = rankings(x, drawn, CLASSIFIERS["cosine"], 2)
    expected = []
    for episode in range(20):
        support, places, queries = one_by_one(x, drawn, episode)
        unit = support / np.linalg.norm(support, axis=1, keepdims=True)
        means = np.stack([unit[places == place].mean(axis=0) for place in range(3)])
        cosines = queries @ means.T / np.linalg.norm(means, axis=1)
        expected += drawn.classes[episode][np.argsort(-cosines, axis=1)[:, :2]].tolist()
    assert found.tolist() == expected


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("temperature", [None, 0.07])
def test_neighbours_are_those_of_scikit_learn(k: int, temperature: float | None) -> None:
    x, labels = data(7)
    drawn = some(labels)
    found = rankings(x, drawn, partial(neighbour_scores, k=k, temperature=temperature), 1)[:, 0]
    weights = "uniform" if temperature is None else lambda far: np.exp((1 - far) / temperature)
    expected = []
    for episode in range(20):
        support, places, queries = one_by_one(x, drawn, episode)
        peer = KNeighborsClassifier(k, metric="cosine", weights=weights, algorithm="brute").fit(support, places)
        expected += drawn.classes[episode][peer.predict(queries)].tolist()
    assert found.tolist() == expected


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_equal_scores_go_to_the_lowest_class(name: str) -> None:
    _, labels = data(8)
    drawn = some(labels)
    found = rankings(torch.ones(len(labels), 6), drawn, CLASSIFIERS[name], 2)
    assert np.array_equal(found, np.repeat(drawn.classes[:, :2], 9, axis=0))

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.errors import DataError, UsageError
from vitbench.execution.replay import find_record, replay
from vitbench.execution.why import why_record
from vitbench.features.featureset import FeatureSet
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Cell, Outcome
from vitbench.protocols.knn import NearestNeighbours
from vitbench.reporting.leaderboard import leaderboards

CLASSES = 6


def part(seed: int, size: int, zeros: int = 0) -> FeatureSet:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(CLASSES), rng.integers(CLASSES, size=size - CLASSES)])
    x = np.random.default_rng(9).normal(size=(CLASSES, 8))[labels] + rng.normal(size=(size, 8))
    x[:zeros] = 0
    return FeatureSet(labels, np.arange(size), {"cls": torch.from_numpy(x.astype(np.float32))})


def outcomes(protocol: NearestNeighbours, train: FeatureSet, test: FeatureSet) -> list[Outcome]:
    return list(protocol.evaluate(train, test, "cls", CLASSES, protocol.cells()))


@pytest.mark.parametrize("weights", ["uniform", "temperature"])
def test_it_is_scikit_learns_classifier(weights: str) -> None:
    train, test = part(0, 90), part(1, 40)
    found = outcomes(NearestNeighbours(weights=weights), train, test)  # type: ignore[arg-type]
    assert [outcome.cell for outcome in found] == [Cell(0, 0, (("k", k),)) for k in (1, 5, 20)]
    for outcome, k in zip(found, (1, 5, 20), strict=True):
        by = "uniform" if weights == "uniform" else lambda far: np.exp((1 - far) / 0.07)
        peer = KNeighborsClassifier(k, metric="cosine", weights=by, algorithm="brute")
        peer.fit(train.representations["cls"].double().numpy(), train.labels)
        queries = test.representations["cls"].double().numpy()
        assert outcome.predictions.tolist() == peer.predict(queries).tolist()
        if k > 1:
            np.testing.assert_allclose(outcome.confidence, peer.predict_proba(queries).max(axis=1), rtol=1e-9)
        assert (outcome.confidence is None) == (k == 1)
        assert (outcome.n_support, outcome.n_test, outcome.details["k"]) == (90, 40, k)
        assert outcome.ranking.shape == (40, min(5, k))
        assert not outcome.warnings


def test_options() -> None:
    assert NearestNeighbours.from_options({}).k == (1, 5, 20)
    found = NearestNeighbours.from_options({"k": "3,7", "weights": "uniform"})
    assert found.k == (3, 7)
    assert found.parameters() == {"distance": "cosine", "weights": "uniform"}
    assert found.label() == "uniform votes"
    assert NearestNeighbours(temperature="0.1").parameters()["temperature"] == 0.1  # type: ignore[arg-type]
    assert NearestNeighbours().label() == "votes weighted by exp(cosine / 0.07)"
    assert json.dumps(NearestNeighbours().parameters())
    assert PROTOCOLS.load("knn") is NearestNeighbours


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": "0"}, r"k must be whole numbers from 1, got '0'"),
        ({"k": "1,1"}, r"k has a value twice"),
        ({"weights": "unifrom"}, r"unknown weights of protocol 'knn': 'unifrom'.*uniform"),
        ({"temperature": "0"}, r"temperature must be a number from 0.0001 to 10000, got '0'; --set weights=uniform"),
        ({"temperature": "warm"}, r"temperature must be a number"),
        ({"shots": "5"}, r"unknown option of protocol 'knn': 'shots'"),
    ],
)
def test_mistakes_in_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NearestNeighbours.from_options(options)


def test_data_that_cannot_be_meant() -> None:
    train, test = part(0, 10), part(1, 8)
    with pytest.raises(DataError, match=r"k = 20, but the train split has 10 images: give --k up to 10"):
        outcomes(NearestNeighbours(), train, test)
    test.representations["cls"][3, 2] = torch.nan
    with pytest.raises(DataError, match="1 of 8 test rows have NaN"):
        outcomes(NearestNeighbours(k=(1,)), train, test)


def test_what_a_reader_is_told() -> None:
    train, test = part(0, 60, zeros=2), part(1, 8)
    train.labels[train.labels == 5] = 4
    (outcome,) = outcomes(NearestNeighbours(k=(3,)), train, test)
    assert outcome.warnings[0].startswith("1 of 6 classes have no train image")
    assert outcome.warnings[1] == "2 of 60 train images have features that are all 0: their cosine is taken as 0"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("knn")
    vitbench.run("pixels", "builtin/digits", protocol="knn", out=folder, limit=60)
    return folder


def test_one_record_for_each_k(out: Path) -> None:
    frame = vitbench.load_results(out)
    assert sorted(frame["k"]) == [1, 5, 20]
    assert frame["key"].nunique() == 3
    assert (frame["accuracy"] > 0.8).all()
    assert set(frame.loc[frame["k"] == 1, "top5_accuracy"].isna()) == {True}
    assert (frame.loc[frame["k"] == 20, "top5_accuracy"] > frame.loc[frame["k"] == 20, "accuracy"]).all()
    assert set(frame["protocol_label"]) == {f"k = {k}, votes weighted by exp(cosine / 0.07)" for k in (1, 5, 20)}
    titles = [board.title for board in leaderboards(frame, limited=True)]
    assert titles == [
        f"knn · k = {k}, votes weighted by exp(cosine / 0.07) · all train images · LIMITED to 60 test images"
        for k in (1, 5, 20)
    ]


def test_a_k_that_is_there_is_not_made_again(out: Path, encoded: list[int]) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if "records" in path.parts}
    frame = vitbench.run("pixels", "builtin/digits", protocol="knn", options={"k": [5, 9]}, out=out, limit=60)
    assert sorted(frame["k"]) == [5, 9]
    assert not encoded
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    alone = vitbench.run("pixels", "builtin/digits", protocol="knn", options={"k": "5"}, out=out, limit=60)
    assert alone["key"].item() in frame["key"].tolist()


def test_a_record_is_replayed_and_explained(out: Path) -> None:
    for key in vitbench.load_results(out)["key"]:
        found = find_record(key, out)
        assert replay(found).agrees
        assert not why_record(found).differences


def test_an_image_folder(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder()
    frame = vitbench.run(
        "pixels", f"imagefolder:{folder}", protocol="knn", options={"k": [1, 18]}, out=tmp_path / "out"
    )
    assert frame.set_index("k")["accuracy"][1] == 1
    with pytest.raises(DataError, match="k = 19, but the train split has 18 images"):
        vitbench.run("pixels", f"imagefolder:{folder}", protocol="knn", options={"k": 19}, out=tmp_path / "out")

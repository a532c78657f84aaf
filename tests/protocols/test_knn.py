from __future__ import annotations

import json
import subprocess
import sys
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
from vitbench.features.featureset import FeatureSet, LazyRepresentations
from vitbench.protocols import PROTOCOLS
from vitbench.protocols.base import Cell, Outcome
from vitbench.protocols.knn import NearestNeighbours
from vitbench.reporting.leaderboard import leaderboards
from vitbench.solvers import neighbours

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


class Reads:
    """A split whose features are read when they are asked for, in an order of its own, and the rows of every read."""

    def __init__(self, features: FeatureSet, seed: int) -> None:
        self.x = features.representations["cls"]
        self.asked: list[np.ndarray] = []
        order = np.random.default_rng(seed).permutation(features.rows)
        self.features = FeatureSet(
            features.labels, features.rows, LazyRepresentations(["cls"], features.rows, self, order)
        )

    def __call__(self, _: str, rows: np.ndarray) -> torch.Tensor:
        self.asked.append(rows)
        return self.x[torch.from_numpy(rows)]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_read_in_parts_is_what_is_in_memory(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several passes of several parts, with copies of rows, rows of zeros, and queries that float32 does not settle."""
    train, test = part(seed, 200, zeros=3), part(seed + 10, 60, zeros=1)
    train.representations["cls"][100:] = train.representations["cls"][:100]
    expected = outcomes(NearestNeighbours(), train, test)
    monkeypatch.setattr(neighbours, "BLOCK", 8 * 17)
    monkeypatch.setattr(neighbours, "PASS", 25 * neighbours.PASS // neighbours.queries_at_once(8, 20))
    bank, asked = Reads(train, seed), Reads(test, seed)
    found = outcomes(NearestNeighbours(), bank.features, asked.features)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.ranking, other.ranking)
        assert (one.details, one.warnings) == (other.details, other.warnings)
        if other.confidence is not None:
            np.testing.assert_allclose(one.confidence, other.confidence, rtol=1e-9)
    assert max(map(len, bank.asked)) == 17
    assert max(map(len, asked.asked)) == 25
    passes = np.bincount(np.concatenate(bank.asked)[1:], minlength=200)
    assert passes.max() <= 1 + 3 * 3 + 2, (
        "a check, three passes for 25, 25 and 10 test rows, and a row that tells the size"
    )
    assert np.bincount(np.concatenate(asked.asked)).max() <= 3


def test_what_is_wrong_is_counted_over_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 8 * 17)
    train, test = part(0, 90, zeros=4), part(1, 40, zeros=40)
    (found,) = outcomes(NearestNeighbours(k=(3,)), Reads(train, 0).features, Reads(test, 1).features)
    assert found.warnings == (
        "4 of 90 train images have features that are all 0: their cosine is taken as 0",
        "40 of 40 test images have features that are all 0: their cosine is taken as 0",
    )
    train.representations["cls"][[5, 33, 89], 2] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    with pytest.raises(DataError, match="3 of 90 train rows have NaN or infinite features"):
        outcomes(NearestNeighbours(k=(3,)), Reads(train, 0).features, Reads(test, 1).features)
    large = part(0, 90).representations["cls"].double()
    large[70, 1] = 1e151
    train = FeatureSet(train.labels, train.rows, {"cls": large})
    with pytest.raises(DataError, match=r"the train features go up to 1e\+151, whose squares float64 cannot hold"):
        outcomes(NearestNeighbours(k=(3,)), Reads(train, 0).features, Reads(test, 1).features)


def test_a_train_row_without_features_is_refused() -> None:
    train, test = part(0, 30), part(1, 8)
    few = FeatureSet(train.labels, train.rows[:20], {"cls": train.representations["cls"][:20]})
    with pytest.raises(UsageError, match="10 of the 30 train rows have no features"):
        outcomes(NearestNeighbours(k=(3,)), few, test)


SCRIPT = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from vitbench.features.featureset import FeatureSet, LazyRepresentations
from vitbench.protocols.knn import NearestNeighbours
from vitbench.solvers import neighbours
neighbours.BLOCK, neighbours.PASS = 1 << 19, 1 << 20
part = torch.randn(4096, 256, generator=torch.Generator().manual_seed(0))

def split(size):
    rows = np.arange(size)
    read = lambda _, some: part[torch.from_numpy(some % 4096)]
    return FeatureSet(rows % 10, rows, LazyRepresentations(["cls"], rows, read))

protocol = NearestNeighbours(k=(5,))
list(protocol.evaluate(split(int(sys.argv[1])), split(int(sys.argv[2])), "cls", 10, protocol.cells()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_memory_grows_with_neither_train_nor_test_rows() -> None:
    """60,000 rows of 256 features are 59 MiB."""

    def peak(train: int, test: int) -> float:
        command = [sys.executable, "-c", SCRIPT, str(train), str(test)]
        unit = 1 if sys.platform == "darwin" else 1024
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * unit

    few = peak(15_000, 1_500)
    tolerance = 16 * 2**20  # what an allocator keeps
    assert peak(60_000, 1_500) <= few + tolerance
    assert peak(1_000, 60_000) <= few + tolerance


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

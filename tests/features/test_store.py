from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitbench.errors import StoreError, UsageError
from vitbench.features.store import FeatureStore

IDENTITY = {"weights": "abcd"}


def rows(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def features(wanted: np.ndarray, dim: int = 3, offset: float = 0.0) -> torch.Tensor:
    """Row r's features are r + offset, so that a mix-up shows."""
    return torch.from_numpy(wanted).float()[:, None].expand(-1, dim) + offset


def store(path: Path, identity: dict[str, str] = IDENTITY) -> FeatureStore:
    return FeatureStore(path, "vit", "paper/cifar10", "train", identity)


def test_rows_come_back_in_the_order_asked_for_across_shards(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.append(rows(4, 6, 9), {"cls": features(rows(4, 6, 9))})
    first.append(rows(0, 5), {"cls": features(rows(0, 5))})
    again = store(tmp_path)
    loaded = again.load(["cls"], rows(0, 4, 5, 9))["cls"]
    assert loaded[:, 0].tolist() == [0, 4, 5, 9]
    assert loaded.dtype == torch.float32


def test_missing_tells_which_rows_lack_which_atoms(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.append(rows(0, 1, 2), {"cls": features(rows(0, 1, 2)), "gap": features(rows(0, 1, 2))})
    one.append(rows(3), {"cls": features(rows(3))})
    missing = one.missing(["cls", "gap"], rows(1, 2, 3, 4))
    assert {tuple(sorted(atoms)): found.tolist() for atoms, found in missing.items()} == {
        ("gap",): [3],
        ("cls", "gap"): [4],
    }
    assert one.missing(["cls"], rows(0, 3)) == {}
    assert one.missing(["cls"], rows()) == {}
    with pytest.raises(StoreError, match="1 rows of 'gap' are not in the feature store"):
        one.load(["gap"], rows(0, 3))


def test_another_identity_sees_nothing(tmp_path: Path) -> None:
    store(tmp_path).append(rows(0), {"cls": features(rows(0))})
    other = store(tmp_path, {"weights": "ef01"})
    assert len(other.missing(["cls"], rows(0))) == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "sidecar"])
def test_a_damaged_shard_is_found_and_its_rows_are_missing_again(tmp_path: Path, damage: str) -> None:
    one = store(tmp_path)
    one.append(rows(0, 1), {"cls": features(rows(0, 1))})
    one.append(rows(2), {"cls": features(rows(2))})
    shard = next(
        path for path in one.folder.glob("*.json") if path.name != "identity.json" and "[[0, 2]]" in path.read_text()
    )
    target = shard.with_suffix(".safetensors")
    content = target.read_bytes()
    if damage == "flip":
        target.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncate":
        target.write_bytes(content[: len(content) // 2])
    elif damage == "delete":
        target.unlink()
    else:
        shard.write_text("{")
    again = store(tmp_path)
    assert again.missing(["cls"], rows(0, 1, 2)) == {frozenset({"cls"}): pytest.approx(rows(0, 1))}
    assert again.damaged == [target]
    assert shard.exists(), "looking at a store changes nothing"
    with again.lock():
        assert not shard.exists()
        assert not target.exists()


def test_a_store_that_cannot_be_read_for_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = store(tmp_path)
    one.append(rows(0), {"cls": features(rows(0))})

    def busy(path: Path) -> str:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("vitbench.features.store.sha256_of", busy)
    with pytest.raises(StoreError, match=r"cannot be read for now: .*Too many open files"):
        store(tmp_path).missing(["cls"], rows(0))
    monkeypatch.undo()
    assert store(tmp_path).missing(["cls"], rows(0)) == {}


def test_a_shard_of_other_rows_or_of_another_identity_does_not_count(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.append(rows(0, 1), {"cls": features(rows(0, 1))})
    other = store(tmp_path, {"weights": "ef01"})
    shutil.copytree(one.folder, other.folder)
    assert len(other.missing(["cls"], rows(0, 1))) == 1
    sidecar = next(one.folder.glob("shard-*.json"))
    sidecar.write_text(sidecar.read_text().replace("[[0, 2]]", "[[5, 7]]"))
    assert len(store(tmp_path).missing(["cls"], rows(5, 6))) == 1


def test_the_identity_lies_beside_the_shards(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.append(rows(0), {"cls": features(rows(0))})
    assert json.loads((one.folder / "identity.json").read_text()) == IDENTITY


def test_what_a_killed_process_left_is_swept_and_never_read(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.append(rows(0), {"cls": features(rows(0))})
    (one.folder / ".tmp-123").write_bytes(b"half")
    orphan = one.folder / "shard-ffff.safetensors"
    orphan.write_bytes(b"whole, but its sidecar was not written")
    again = store(tmp_path)
    with again.lock():
        pass
    assert not orphan.exists()
    assert not (one.folder / ".tmp-123").exists()
    assert again.missing(["cls"], rows(0)) == {}


def test_two_writers_take_turns_and_the_second_sees_what_the_first_did(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path)
    waited: list[bool] = []

    def late() -> None:
        with second.lock(waiting=lambda: waited.append(True)):
            assert second.missing(["cls"], rows(0)) == {}

    thread = threading.Thread(target=late)
    with first.lock():
        thread.start()
        time.sleep(0.2)
        first.append(rows(0), {"cls": features(rows(0))})
    thread.join(timeout=20)
    assert waited == [True]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=8), min_size=1, max_size=5))
def test_any_history_of_appends_gives_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, history: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("store")
    for batch in history:
        wanted = rows(*sorted(batch))
        one = store(path)
        for lacking in one.missing(["cls"], wanted).values():
            one.append(lacking, {"cls": features(lacking)})
    everything = rows(*sorted({row for batch in history for row in batch}))
    final = store(path)
    assert final.missing(["cls"], everything) == {}
    assert final.load(["cls"], everything)["cls"][:, 0].tolist() == everything.tolist()


HALF = IDENTITY | {"features_dtype": "float16"}


def test_a_float16_store_is_half_as_large_gives_rounded_float32_and_mixes_with_no_other(tmp_path: Path) -> None:
    wanted = np.arange(1000, dtype=np.int64)
    values = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    sizes = {}
    for identity in (IDENTITY, HALF):
        one = store(tmp_path, identity)
        assert one.missing(["cls"], wanted), "the other store's features are not seen"
        one.append(wanted, {"cls": values})
        sizes[one.dtype] = next(one.folder.glob("shard-*.safetensors")).stat().st_size - wanted.nbytes
    assert sizes["float16"] / sizes["float32"] == pytest.approx(0.5, abs=0.02)
    kept = store(tmp_path, HALF).load(["cls"], wanted)["cls"]
    assert kept.dtype == torch.float32
    assert torch.equal(kept, values.half().float())
    assert torch.equal(store(tmp_path).load(["cls"], wanted)["cls"], values)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 65504.0, 1e-9])
def test_float16_keeps_what_it_can_and_what_was_not_finite_before(tmp_path: Path, value: float) -> None:
    one = store(tmp_path, HALF)
    one.append(rows(0), {"cls": torch.tensor([[value]])})
    found = store(tmp_path, HALF).load(["cls"], rows(0))["cls"]
    assert torch.equal(found, torch.tensor([[value]]).half().float()) or np.isnan(value)


def test_float16_refuses_what_it_would_make_infinite_and_writes_nothing(tmp_path: Path) -> None:
    one = store(tmp_path, HALF)
    with pytest.raises(
        UsageError, match=r"'cls' has features up to 7e\+04, and float16 ends at 65504: use --features-dtype"
    ):
        one.append(rows(0), {"cls": torch.tensor([[-7e4, float("inf")]])})
    assert not one.folder.exists()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sets(st.integers(0, 40), min_size=1), min_size=1, max_size=5), st.integers(1, 9), st.data())
def test_chunks_are_what_load_gives_part_by_part(
    tmp_path_factory: pytest.TempPathFactory, history: list[set[int]], size: int, data: st.DataObject
) -> None:
    one = store(tmp_path_factory.mktemp("store"))
    for number, batch in enumerate(history):
        wanted = rows(*sorted(batch))
        one.append(wanted, {"cls": features(wanted, 3), "gap": features(wanted, 2, offset=number * 0.001)})
    there = sorted(set().union(*history))
    asked = rows(*sorted(data.draw(st.sets(st.sampled_from(there), min_size=1))))
    parts = list(one.chunks(["cls", "gap"], asked, size))
    whole = one.load(["cls", "gap"], asked)
    assert [len(part) for part, _ in parts[:-1]] == [size] * (len(parts) - 1)
    assert np.concatenate([part for part, _ in parts]).tolist() == asked.tolist()
    for atom in ("cls", "gap"):
        assert torch.equal(torch.cat([values[atom] for _, values in parts]), whole[atom])


def test_chunks_of_rows_that_are_not_there(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.append(rows(0, 1), {"cls": features(rows(0, 1))})
    with pytest.raises(StoreError, match="1 rows of 'cls' are not in the feature store"):
        list(one.chunks(["cls"], rows(0, 1, 2), 2))
    assert list(one.chunks(["cls"], rows())) == []

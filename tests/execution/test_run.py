from __future__ import annotations

import gc
import json
import warnings
import weakref
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.backbones.base import Backbone
from vitbench.errors import DataError, RepresentationError, StoreError, UsageError
from vitbench.execution import job
from vitbench.execution.config import make_config
from vitbench.execution.execute import execute
from vitbench.execution.reporter import Reporter
from vitbench.features.store import FeatureStore

SHORT: dict[str, Any] = {"shots": [1, 2], "seeds": 2}
SCORES = ["backbone", "representation", "task", "shot", "seed", "l2", "accuracy", "n_support", "n_test", "key"]


@pytest.fixture
def shoes(image_folder: ImageFolderMaker) -> str:
    return f"imagefolder:{image_folder()}"


def test_a_run_gives_a_record_per_representation_task_shot_and_seed(tiny_vit: str, shoes: str, tmp_path: Path) -> None:
    frame = vitbench.run(tiny_vit, [shoes, "digits"], representations="cls,gap,pooler", out=tmp_path, **SHORT)
    assert len(frame) == 3 * 2 * 2 * 2
    assert frame.groupby(["task", "representation", "shot", "seed"]).size().eq(1).all()
    assert frame[frame["task"] == "imagefolder/shoes"]["n_test"].eq(12).all()
    assert frame[frame["task"] == "builtin/digits"]["n_support"].isin([10, 20]).all()
    assert frame[frame["representation"] == "pooler"]["alias_of"].eq("cls").all()
    pd.testing.assert_frame_equal(vitbench.load_results(tmp_path)[SCORES], frame[SCORES])


def test_a_record_tells_where_it_comes_from_and_its_predictions_lie_beside_it(shoes: str, tmp_path: Path) -> None:
    frame = vitbench.run("pixels", shoes, out=tmp_path, shots=1, seeds=1)
    path = next(tmp_path.glob("records/**/*.json"))
    record = json.loads(path.read_text())
    assert record["provenance"]["versions"]["torch"]
    assert record["preprocessing"] == "resize(32x32,bilinear)|normalize(0.5,0.5)"
    assert record["identity"]["weights"]
    predictions = pq.read_table(path.with_suffix(".parquet")).to_pandas()
    assert (predictions["label"] == predictions["prediction"]).mean() == frame["accuracy"].item()
    assert predictions["row"].tolist() == list(range(12))


def test_colours_are_told_apart_by_pixels(shoes: str, tmp_path: Path) -> None:
    frame = vitbench.run("pixels", shoes, out=tmp_path, shots=2, seeds=3)
    assert frame["accuracy"].min() > 0.9


def test_a_cached_run_does_no_forward_pass(tiny_vit: str, shoes: str, tmp_path: Path, encoded: list[int]) -> None:
    arguments: dict[str, Any] = {"representations": "cls,gap,pooler", "shots": "1,5,10,25", "seeds": 3, "out": tmp_path}
    first = vitbench.run(tiny_vit, [shoes, "digits"], **arguments)
    assert len(first) == 1 * 2 * 3 * 4 * 3
    assert encoded
    encoded.clear()
    again = vitbench.run(tiny_vit, [shoes, "digits"], **arguments)
    assert encoded == []
    pd.testing.assert_frame_equal(again, first)
    more = vitbench.run(tiny_vit, shoes, **(arguments | {"on_existing": "rerun"}))
    assert encoded == []
    pd.testing.assert_frame_equal(
        more[SCORES], first[first["task"] == "imagefolder/shoes"][SCORES].reset_index(drop=True)
    )


def test_only_the_union_of_the_support_sets_and_the_test_split_is_embedded(
    shoes: str, tmp_path: Path, encoded: list[int]
) -> None:
    vitbench.run("pixels", shoes, out=tmp_path, shots=1, seeds=1)
    assert sum(encoded) == 3 + 12
    vitbench.run("pixels", shoes, out=tmp_path, shots=[1, 2], seeds=1)
    assert sum(encoded) == 6 + 12


def test_a_run_that_dies_goes_on_and_ends_equal(
    tiny_vit: str, shoes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"representations": "cls,gap", "batch_size": 4, **SHORT}
    whole = vitbench.run(tiny_vit, shoes, out=tmp_path / "whole", **arguments)
    original = FeatureStore.append
    calls = 0

    def dying(self: FeatureStore, *given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        original(self, *given)

    monkeypatch.setattr(FeatureStore, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        vitbench.run(tiny_vit, shoes, out=tmp_path / "cut", **arguments)
    monkeypatch.undo()
    again = vitbench.run(tiny_vit, shoes, out=tmp_path / "cut", **arguments)
    pd.testing.assert_frame_equal(again[SCORES], whole[SCORES])


def test_on_existing(shoes: str, tmp_path: Path) -> None:
    first = vitbench.run("pixels", shoes, out=tmp_path, **SHORT)
    with pytest.raises(UsageError, match=r"4 of the 4 records of pixels on imagefolder/shoes exist .*--on-existing"):
        vitbench.run("pixels", shoes, out=tmp_path, on_existing="error", **SHORT)
    path = next(tmp_path.glob("records/**/*.json"))
    before = path.stat().st_mtime_ns
    vitbench.run("pixels", shoes, out=tmp_path, on_existing="skip", **SHORT)
    assert path.stat().st_mtime_ns == before
    again = vitbench.run("pixels", shoes, out=tmp_path, on_existing="rerun", **SHORT)
    assert path.stat().st_mtime_ns > before
    pd.testing.assert_frame_equal(again[SCORES], first[SCORES])


def test_what_changes_a_number_changes_the_identity_and_what_does_not_does_not(
    tiny_vit: str, shoes: str, tmp_path: Path
) -> None:
    def keys(**changes: Any) -> set[str]:
        given = {"backbones": tiny_vit, "tasks": shoes, "representations": "cls", "shots": 1, "seeds": 1, **changes}
        return set(vitbench.run(out=tmp_path, **given)["key"])

    base = keys()
    assert keys(batch_size=2) == keys(workers=1) == keys(l2=1024) == base
    assert keys(limit=1000) == base, "a limit above the size is no limit"
    different = [
        keys(preprocess="vtab"),
        keys(dtype="bfloat16"),
        keys(l2="loo"),
        keys(l2=10),
        keys(limit=5),
        keys(representations="gap"),
        keys(backbones="pixels", representations="auto"),
        keys(tasks="digits"),
        keys(seeds=[1]),
        keys(shots=2),
    ]
    assert len(set.union(base, *different)) == 1 + len(different)


def test_one_failing_job_does_not_stop_the_others(
    tiny_vit: str, image_folder: ImageFolderMaker, shoes: str, tmp_path: Path
) -> None:
    broken = image_folder("broken")
    (broken / "test" / "clog" / "001.png").write_bytes(b"no image")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = vitbench.run([tiny_vit, "pixels"], [f"imagefolder:{broken}", shoes], out=tmp_path, shots=1, seeds=1)
    assert set(frame["task"]) == {"imagefolder/shoes"}
    assert set(frame["representation"]) == {"cls", "gap", "pooler", "pixels"}
    assert len(frame.attrs["failures"]) == 2
    assert all("row 5 (test/clog/001.png)" in failure for failure in frame.attrs["failures"])
    assert len([item for item in caught if "001.png" in str(item.message)]) == 2


def test_an_unexpected_error_fails_its_job_alone_and_keeps_the_traceback(
    tiny_vit: str, shoes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.backbones.pixels import PixelsBackbone

    def buggy(*_: Any) -> Any:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(PixelsBackbone, "_forward", buggy)
    with pytest.warns(UserWarning, match="RuntimeError: device-side assert triggered .unexpected; traceback in"):
        frame = vitbench.run(["pixels", tiny_vit], shoes, out=tmp_path, shots=1, seeds=1)
    assert len(frame) == 3
    assert "Traceback" in next(tmp_path.glob("failures/*.txt")).read_text()


def test_an_unexpected_error_of_loading_says_of_what(
    shoes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(*_: Any) -> Any:
        raise RuntimeError("no such symbol")

    monkeypatch.setattr("vitbench.execution.local.load_for", buggy)
    config = make_config(
        {"backbones": "pixels,timm:vit_tiny_patch16_224", "tasks": shoes, "out": tmp_path, "executor": "local"}
    )
    result = execute(config, Reporter(), "test")
    assert [line.split(" (")[0] for line in result.failures] == [
        "loading pixels: RuntimeError: no such symbol",
        "loading timm:vit_tiny_patch16_224: RuntimeError: no such symbol",
    ]


def test_a_representation_that_the_backbone_lacks(tiny_vit: str, shoes: str, tmp_path: Path) -> None:
    with pytest.raises(RepresentationError, match=r"has no layer 9 in 'cls@9': layers go from 0 to 2"):
        vitbench.run(tiny_vit, shoes, representations="cls@9", out=tmp_path)
    with pytest.raises(RepresentationError, match=r"unknown representation 'clz' .*did you mean 'cls'\?"):
        vitbench.run(tiny_vit, shoes, representations="clz", out=tmp_path)
    with pytest.warns(UserWarning, match="no layer 9"):
        frame = vitbench.run(tiny_vit, shoes, representations="cls@9,gap", out=tmp_path, shots=1, seeds=1)
    assert set(frame["representation"]) == {"gap"}


def test_names_of_layers_are_canonical(tiny_vit: str, shoes: str, tmp_path: Path) -> None:
    frame = vitbench.run(tiny_vit, shoes, representations="gap@-2,gap@1,cls@-1,cls", out=tmp_path, shots=1, seeds=1)
    assert sorted(frame["representation"]) == ["cls", "cls@2", "gap@1"]
    assert (
        frame.set_index("representation")["accuracy"]["cls"] == frame.set_index("representation")["accuracy"]["cls@2"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "cifar"}, r"unknown task 'cifar'; did you mean"),
        ({"protocol": "fewshoot"}, r"unknown protocol 'fewshoot'; did you mean 'fewshot'\?"),
        ({"backbones": "tim:vit"}, r"unknown backbone 'tim'; did you mean 'timm'\?"),
        ({"shots": 0}, r"shots"),
        ({"l2": "papr"}, r"l2"),
        ({"options": {"shot": 1}}, r"unknown option .*'shot'; did you mean 'shots'"),
        ({"preprocess": "vtap"}, r"vtap.*vtab"),
        ({"device": "cuda:99"}, r"device 'cuda:99' cannot be used here"),
        ({"backbones": "pixels,resolution=abc"}, r"resolution 'abc' is not a whole number"),
        ({"backbones": "pixels,dtype=int8"}, r"dtype .*'int8'"),
    ],
)
def test_a_mistake_stops_the_run_before_it_starts(
    shoes: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        vitbench.run(**({"backbones": "pixels", "tasks": shoes, "out": tmp_path} | changes))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("records/**/*.json"))


def test_an_output_folder_that_cannot_be_written_stops_the_run_before_any_work(
    shoes: str, tmp_path: Path, encoded: list[int]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"the output folder .* cannot be written to"):
        vitbench.run("pixels", shoes, out=tmp_path / "file" / "out")
    assert encoded == []


def test_limited_test_rows_keep_all_classes_of_a_sorted_split(shoes: str, tmp_path: Path) -> None:
    frame = vitbench.run("pixels", shoes, out=tmp_path, limit=6, shots=1, seeds=1)
    assert frame["limit"].item() == 6
    predictions = pq.read_table(next(tmp_path.glob("records/**/*.parquet"))).to_pandas()
    assert set(predictions["label"]) == {0, 1, 2}


def test_a_representation_that_cannot_be_scored_does_not_take_the_others_with_it(
    tiny_vit: str, shoes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Backbone.encode_atoms

    def overflowing(self: Backbone, *arguments: Any) -> Any:
        return {
            atom: value * torch.nan if atom.pooling == "cls" else value
            for atom, value in original(self, *arguments).items()
        }

    monkeypatch.setattr(Backbone, "encode_atoms", overflowing)
    with pytest.warns(UserWarning, match=r"imagefolder/shoes, cls: .*NaN"):
        frame = vitbench.run(tiny_vit, shoes, representations="cls,gap", out=tmp_path, shots=1, seeds=1)
    assert frame["representation"].tolist() == ["gap"]


def test_a_damaged_record_is_made_again_and_another_ones_does_not_matter(shoes: str, tmp_path: Path) -> None:
    first = vitbench.run("pixels", [shoes, "digits"], out=tmp_path, **SHORT)
    for path in list(tmp_path.glob("records/**/*.json")):
        path.write_text(path.read_text()[:200])
    again = vitbench.run("pixels", shoes, out=tmp_path, **SHORT)
    pd.testing.assert_frame_equal(
        again[SCORES], first[first["task"] == "imagefolder/shoes"][SCORES].reset_index(drop=True)
    )


def test_a_failed_job_lets_go_of_its_backbone(
    tiny_vit: str, image_folder: ImageFolderMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = image_folder("broken")
    (broken / "test" / "clog" / "001.png").write_bytes(b"no image")
    loaded: list[weakref.ref[Backbone]] = []
    original = job.load_backbone

    def watched(*arguments: Any, **options: Any) -> Backbone:
        gc.collect()
        assert all(reference() is None for reference in loaded), "the backbone before is still in memory"
        backbone = original(*arguments, **options)
        loaded.append(weakref.ref(backbone))
        return backbone

    monkeypatch.setattr(job, "load_backbone", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError):
            vitbench.run([tiny_vit, "pixels", tiny_vit], f"imagefolder:{broken}", out=tmp_path, shots=1, seeds=1)
    assert len(loaded) == 3


def test_the_same_thing_asked_for_twice_is_done_once(shoes: str, tmp_path: Path, encoded: list[int]) -> None:
    for how in ("error", "rerun"):
        frame = vitbench.run(["pixels", "pixels,resolution=32"], shoes, out=tmp_path / how, on_existing=how, **SHORT)
        assert len(frame) == 4
    assert encoded == [12, 12] * 2


def test_a_second_name_for_the_same_data_is_told(shoes: str, tmp_path: Path) -> None:
    folder = Path(shoes.removeprefix("imagefolder:"))
    (folder.parent / "mine.yaml").write_text(
        "title: Mine\nsource: {kind: imagefolder, path: shoes}\nsplits: {train: {folder: train}, test: {folder: test}}\n"
    )
    vitbench.run("pixels", shoes, out=tmp_path / "out", **SHORT)
    heard: list[str] = []
    reporter = Reporter()
    reporter.line = heard.append  # type: ignore[method-assign]
    frame = vitbench.run("pixels", str(folder.parent / "mine.yaml"), out=tmp_path / "out", reporter=reporter, **SHORT)
    assert set(frame["task"]) == {"imagefolder/shoes"}
    assert heard == ["mine is the same data as imagefolder/shoes: the records of that name are used"]


def test_a_dry_run_writes_nothing_and_mends_nothing(shoes: str, tmp_path: Path) -> None:
    vitbench.run("pixels", shoes, out=tmp_path, **SHORT)
    shard = next(tmp_path.glob("features/**/shard-*.safetensors"))
    shard.write_bytes(b"damaged")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    config = make_config(
        {"backbones": "pixels", "tasks": shoes, "out": tmp_path, "options": SHORT, "on_existing": "rerun"}
    )
    result = execute(config, Reporter(), "a test", dry_run=True)
    assert result.planned[0].images in (6, 12)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

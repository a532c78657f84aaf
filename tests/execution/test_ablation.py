"""What an ablation runs, and which record it takes for which level."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.errors import RepresentationError, UsageError
from vitbench.execution.ablation import Ablation, ablate
from vitbench.execution.ablation_levels import parse_axes
from vitbench.execution.config import make_config
from vitbench.execution.reporter import Reporter
from vitbench.protocols.closed_form import GRID
from vitbench.records.predictions import read_predictions
from vitbench.records.store import ResultStore, find_records
from vitbench.solvers import ridge

SHORT: dict[str, Any] = {"shots": [1, 2], "seeds": 2}
MEASURED = ["representation", "task", "shot", "seed", "l2", "accuracy", "mean_per_class_accuracy", "n_support", "key"]


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run collects garbage after each backbone, 0.2 s every time: the tiny ones of these tests may stay."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


@pytest.fixture
def shoes(image_folder: ImageFolderMaker) -> str:
    return f"imagefolder:{image_folder()}"


def run(backbones: str, tasks: str, *over: str, options: Any = None, **given: Any) -> Ablation:
    keep = {name: given.pop(name) for name in ("reference", "dry_run") if name in given}
    config = make_config({"backbones": backbones, "tasks": tasks, "options": options or SHORT, **given})
    return ablate(config, parse_axes(over), Reporter(), "a test", **keep)


def levels(found: Ablation, axis: str) -> set[str]:
    return {measured.levels[axis] for measured in found.measurements}


def files(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "records").rglob("*.*")}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["represntation"], "unknown --over 'represntation'; did you mean 'representation'"),
        (["12"], "choose from dtype, l2, layer, preprocess, representation, resolution, shots"),
        (["dtype=bfloat"], "did you mean 'bfloat16'"),
        (["dtype="], "names no value"),
        (["l2=papr"], "l2 must be 'paper', 'loo' or a number above 0"),
        (["l2=1024,paper"], "--over l2 has 1024 twice"),
        (["resolution=big"], "resolution must be whole numbers from 1, got 'big'"),
        (["shots=0"], "shots must be whole numbers"),
        (["preprocess=vtap"], "did you mean 'vtab'"),
        (["representation=g@p"], "cannot be read"),
        (["layer=x@y"], "cannot be read"),
        (["layer", "layer=gap"], "--over layer is given twice"),
        (["layer", "representation"], "choose the same thing"),
        ([], "unknown --over ''"),
    ],
)
def test_what_cannot_be_varied_is_told_in_one_line(over: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_axes(over)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_comma_inside_a_preprocessing_string_separates_nothing() -> None:
    text = "resize(32x32,bicubic)|normalize(0.5,0.5)"
    (axis,) = parse_axes([f"preprocess=auto,{text}"])
    assert axis.values == ("auto", text)


def test_a_second_ablation_does_nothing(tiny_vit: str, shoes: str, tmp_path: Path, encoded: list[int]) -> None:
    over = ("representation=cls,gap", "l2=1,1024")
    first = run(tiny_vit, shoes, *over, out=tmp_path)
    assert encoded == [12, 12], "the support images of both seeds, and the test images"
    assert first.result.written == len(first.measurements) == 2 * 3 * 2 * 2
    assert levels(first, "l2") == {"1", "1024", "loo"}
    encoded.clear()
    before = files(tmp_path)
    again = run(tiny_vit, shoes, *over, out=tmp_path)
    assert encoded == []
    assert files(tmp_path) == before
    assert again.result.written == 0
    assert {(one.key, *one.levels.values()) for one in again.measurements} == {
        (one.key, *one.levels.values()) for one in first.measurements
    }


def test_what_an_ordinary_run_left_is_used_again(tiny_vit: str, shoes: str, tmp_path: Path, encoded: list[int]) -> None:
    vitbench.run(tiny_vit, shoes, representations="cls,gap", out=tmp_path, **SHORT)
    encoded.clear()
    found = run(tiny_vit, shoes, "representation=cls,gap", out=tmp_path)
    assert encoded == []
    assert found.result.written == 0
    assert len(found.measurements) == 8


def test_all_layers_come_from_one_forward_pass(tiny_vit: str, shoes: str, tmp_path: Path, encoded: list[int]) -> None:
    found = run(tiny_vit, shoes, "layer", out=tmp_path, batch_size=100)
    assert levels(found, "layer") == {"cls@0", "cls@1", "cls@2"}
    assert encoded == [12, 12], "one batch of support images, one of test images"
    assert found.subjects[0].reference == "cls@2", "the last layer is what a layer is compared with"


@pytest.mark.parametrize(
    ("over", "expected", "reference"),
    [
        ("layer=gap", ["gap@0", "gap@1", "gap@2"], "gap@2"),
        ("layer=0,-1", ["cls@0", "cls@2"], "cls@0"),
        ("layer=gap@-2,2", ["gap@1", "cls@2"], "gap@1"),
        ("layer=cls,gap", ["cls@0", "cls@1", "cls@2", "gap@0", "gap@1", "gap@2"], "cls@2"),
    ],
)
def test_layers_can_be_chosen(
    tiny_vit: str, shoes: str, tmp_path: Path, over: str, expected: list[str], reference: str
) -> None:
    found = run(tiny_vit, shoes, over, out=tmp_path, options={"shots": 1, "seeds": 1})
    assert list(found.subjects[0].levels["layer"]) == expected
    assert levels(found, "layer") == set(expected)
    assert found.subjects[0].reference == reference


@pytest.mark.parametrize("protocol", ["fewshot", "ridge"])
def test_the_path_writes_the_records_that_single_runs_write(
    tiny_vit: str, shoes: str, tmp_path: Path, protocol: str
) -> None:
    values = ["0.001953125", "0.3", "1024", "1048576"]
    options = SHORT if protocol == "fewshot" else {"criterion": "squared_error"}
    given = {"options": options, "protocol": protocol, "representations": "cls,gap"}
    found = run(tiny_vit, shoes, f"l2={','.join(values)}", out=tmp_path / "path", **given)
    alone = {
        value: vitbench.run(tiny_vit, shoes, l2=value, out=tmp_path / "alone", **given) for value in [*values, "loo"]
    }
    path, single = vitbench.load_results(tmp_path / "path"), vitbench.load_results(tmp_path / "alone")
    pd.testing.assert_frame_equal(path[MEASURED], single[MEASURED])
    assert path["parameters"].equals(single["parameters"])
    assert path["protocol_label"].equals(single["protocol_label"])
    assert path["warnings"].equals(single["warnings"])
    for value, frame in alone.items():
        assert {one.key for one in found.measurements if one.levels["l2"] == value} == set(frame["key"])
    stores = (ResultStore(tmp_path / "path"), ResultStore(tmp_path / "alone"))
    for key in path["key"]:
        one, other = (store.read(key) for store in stores)
        assert one.identity == other.identity
        assert one.scores == other.scores
        assert one.details == other.details
    others = {file.stem: file for file in find_records(tmp_path / "alone")}
    for file in find_records(tmp_path / "path"):
        mine, theirs = read_predictions(file), read_predictions(others[file.stem])
        np.testing.assert_array_equal(mine.row, theirs.row)
        np.testing.assert_array_equal(mine.prediction, theirs.prediction)
        assert mine.confidence is not None
        assert theirs.confidence is not None
        np.testing.assert_allclose(mine.confidence, theirs.confidence, atol=1e-6)


def test_the_path_decomposes_each_support_set_of_each_representation_once(
    tiny_vit: str, shoes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decomposed: list[int] = []
    original = ridge.decompose

    def counting(problem: ridge.Problem) -> ridge.Spectrum:
        decomposed.append(len(problem.z))
        return original(problem)

    monkeypatch.setattr(ridge, "decompose", counting)
    found = run(tiny_vit, shoes, "l2", out=tmp_path, representations="cls,gap")
    by_path, by_leave_one_out = 2 * 2 * 2, 2 * 2 * 2
    assert len(decomposed) == by_path + by_leave_one_out
    assert len(levels(found, "l2")) == len(GRID) + 1
    assert len(found.measurements) == (30 + 1) * 8
    assert found.subjects[0].reference == "1024"


def test_a_path_that_was_cut_short_goes_on(
    tiny_vit: str, shoes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    original, calls = ResultStore.write, 0

    def dying(self: ResultStore, *given: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls == 13:  # 8 of leave-one-out, then the path
            raise KeyboardInterrupt
        return original(self, *given)

    monkeypatch.setattr(ResultStore, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_vit, shoes, "l2=1,2,4", out=tmp_path, representations="cls,gap")
    monkeypatch.undo()
    assert len(find_records(tmp_path)) == 12
    found = run(tiny_vit, shoes, "l2=1,2,4", out=tmp_path, representations="cls,gap")
    assert found.result.written == 32 - 12
    assert len(found.measurements) == 32


def test_the_path_is_for_protocols_with_a_penalty(
    shoes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    from vitbench.execution import ablation

    class Other:
        @staticmethod
        def from_options(options: object) -> object:
            return type("Other", (), {"name": "other"})()

    monkeypatch.setattr(ablation.PROTOCOLS, "load", lambda name: Other)
    with pytest.raises(UsageError, match=r"--over l2 is for the protocols fewshot and ridge, not for 'other'"):
        run("pixels", shoes, "l2", out=tmp_path)
    assert encoded == []


def test_absent_and_untrained_poolers_are_listed_with_their_reason(
    tiny_vit: str, shoes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_if(monkeypatch, "untrained", "the checkpoint has no pooler.dense")
    found = run(tiny_vit, shoes, "representation", out=tmp_path)
    (subject,) = found.subjects
    assert subject.levels["representation"] == ("cls", "gap", "pooler")
    assert levels(found, "representation") == {"cls", "gap"}
    why = subject.lacking["representation", "pooler"]
    assert why.provenance == "untrained"
    assert why.reason.startswith("the checkpoint has no pooler.dense; --allow-untrained")
    assert not found.result.failures
    allowed = run(tiny_vit, shoes, "representation", out=tmp_path, allow_untrained=True)
    assert levels(allowed, "representation") == {"cls", "gap", "pooler"}
    store = ResultStore(tmp_path)
    scored = [store.read(one.key) for one in allowed.measurements if one.levels["representation"] == "pooler"]
    assert {record.representation_provenance for record in scored} == {"untrained"}
    _as_if(monkeypatch, "absent", "it was built without one")
    without = run(tiny_vit, shoes, "representation=gap,cls,pooler", out=tmp_path)
    assert without.subjects[0].lacking["representation", "pooler"].provenance == "absent"
    assert without.subjects[0].reference == "gap"
    with pytest.raises(
        UsageError, match=r"--reference pooler has no records to compare with: it was built without one"
    ):
        run(tiny_vit, shoes, "representation", out=tmp_path, reference="pooler")


def _as_if(monkeypatch: pytest.MonkeyPatch, provenance: Any, reason: str) -> None:
    """Have every timm backbone say that of its pooler."""
    from dataclasses import replace

    from vitbench.backbones import load

    original = _as_if.__dict__.setdefault("original", load.load_backbone)

    def changed(*arguments: Any, **options: Any) -> Any:
        backbone = original(*arguments, **options)
        item = replace(backbone.representations["pooler"], provenance=provenance, alias_of=None, reason=reason)
        backbone.representations = {**backbone.representations, "pooler": item}
        return backbone

    monkeypatch.setattr(load, "load_backbone", changed)


def test_a_level_that_no_backbone_knows_stops_everything(tiny_vit: str, shoes: str, tmp_path: Path) -> None:
    with pytest.raises(RepresentationError, match=r"unknown representation 'clz' .*did you mean 'cls'\?"):
        run(tiny_vit, shoes, "representation=cls,clz", out=tmp_path)
    with pytest.raises(RepresentationError, match=r"no layer 9 in 'cls@9'"):
        run(tiny_vit, shoes, "layer=9", out=tmp_path)
    with pytest.raises(UsageError, match=r"unknown --reference 'gasp'; did you mean 'gap'\?"):
        run(tiny_vit, shoes, "representation", out=tmp_path, reference="gasp")
    assert not (tmp_path / "records").exists()


def test_resolution_preprocessing_and_dtype_are_crossed(shoes: str, tmp_path: Path) -> None:
    over = ("resolution=16,32", "preprocess=auto,vtab", "dtype")
    found = run("pixels", shoes, *over, out=tmp_path, options={"shots": 1, "seeds": 1})
    assert len(found.measurements) == len({one.key for one in found.measurements}) == 2 * 2 * 2
    store = ResultStore(tmp_path)
    for one in found.measurements:
        record, at = store.read(one.key), one.levels
        resize = "tf1_resize" if at["preprocess"] == "vtab" else "resize"
        assert record.preprocessing.startswith(f"{resize}({at['resolution']}x{at['resolution']},")
        assert record.dtype == at["dtype"]


def test_the_usual_resolutions_are_around_the_own_one(tiny_vit: str, shoes: str, tmp_path: Path) -> None:
    for spec, expected in (("pixels", ("16", "24", "32", "40", "48")), (tiny_vit, ("16", "32", "48", "64"))):
        found = run(spec, shoes, "resolution", out=tmp_path, dry_run=True)
        assert found.subjects[0].levels["resolution"] == expected
        assert found.subjects[0].reference == "32"


def test_what_a_spec_says_gives_way_to_the_levels(shoes: str, tmp_path: Path) -> None:
    spec = "pixels,preprocess=resize(32x32,bicubic)|normalize(0.5,0.5),dtype=bfloat16"
    found = run(
        spec, shoes, "preprocess=auto,vtab", "dtype=float32,auto", out=tmp_path, options={"shots": 1, "seeds": 1}
    )
    store = ResultStore(tmp_path)
    seen = {tuple(one.levels.values()): store.read(one.key) for one in found.measurements}
    assert {at: (record.preprocessing[:6], record.dtype) for at, record in seen.items()} == {
        ("auto", "float32"): ("resize", "float32"),
        ("auto", "auto"): ("resize", "bfloat16"),
        ("vtab", "float32"): ("tf1_re", "float32"),
        ("vtab", "auto"): ("tf1_re", "bfloat16"),
    }


def test_a_level_that_fails_does_not_stop_the_others(tiny_vit: str, shoes: str, tmp_path: Path) -> None:
    found = run(tiny_vit, shoes, "resolution=32,33", out=tmp_path, representations="cls")
    assert levels(found, "resolution") == {"32"}
    assert found.result.failures
    assert found.subjects[0].lacking["resolution", "33"].provenance == "failed"
    assert found.subjects[0].lacking["resolution", "33"].reason == found.result.failures[0]


def test_shots_are_compared_last_and_a_reference_chooses_the_axis(tiny_vit: str, shoes: str, tmp_path: Path) -> None:
    over = ("shots=1,2", "representation=cls,gap", "dtype=float32,bfloat16")
    given: Any = {"out": tmp_path, "options": {"seeds": 1}}
    found = run(tiny_vit, shoes, *over, **given)
    assert (found.compared, found.subjects[0].reference) == ("representation", "cls")
    assert len(found.measurements) == 8
    assert {(one.levels["shots"], one.levels["representation"], one.levels["dtype"]) for one in found.measurements} == {
        (shot, name, dtype) for shot in "12" for name in ("cls", "gap") for dtype in ("float32", "bfloat16")
    }
    other = run(tiny_vit, shoes, *over, reference="bfloat16", **given)
    assert (other.compared, other.subjects[0].reference) == ("dtype", "bfloat16")
    only = run(tiny_vit, shoes, "shots=1,2", **given)
    assert (only.compared, only.subjects[0].reference) == ("shots", "1")


def test_a_dry_run_plans_and_writes_nothing(tiny_vit: str, shoes: str, tmp_path: Path, encoded: list[int]) -> None:
    out = tmp_path / "out"
    found = run(tiny_vit, shoes, "l2=1,2", out=out, representations="cls", dry_run=True)
    assert sum(job.records for job in found.result.planned) == 3 * 4
    assert not out.exists()
    assert encoded == []


def test_a_backbone_that_cannot_be_loaded_does_not_stop_the_others(shoes: str, tmp_path: Path) -> None:
    config = make_config(
        {"backbones": ("timm:no_such_model", "pixels"), "tasks": shoes, "options": SHORT, "out": tmp_path}
    )
    found = ablate(config, parse_axes(["l2=1,2"]), Reporter(), "a test")
    assert [subject.backbone for subject in found.subjects] == ["pixels"]
    assert len(found.result.failures) == 1
    assert "no_such_model" in found.result.failures[0]

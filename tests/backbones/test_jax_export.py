from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import vitbench
from tests.backbones.test_jax_npz import Arrays, one_line_error, pixels_for, vit
from tests.backbones.test_jax_npz import save as save_npz
from tests.conftest import ImageFolderMaker
from vitbench.backbones import jax_export, jax_stablehlo
from vitbench.backbones.base import Backbone
from vitbench.backbones.jax_program import MANIFEST, PROGRAM, read_program
from vitbench.backbones.load import load_backbone
from vitbench.cli.main import app
from vitbench.errors import RepresentationError, UsageError, WeightsError

DOCS = Path(__file__).parents[2] / "docs"
ARRAYS = vit(pre_logits=16)
PREPROCESSING = "tf_resize(12x12,bilinear)|value_range(-1,1)"
ABOUT: dict[str, Any] = {"resolution": 12, "preprocessing": PREPROCESSING, "architecture": "tiny"}
TINY = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)


# The paper's ViT in plain jax.numpy, on the arrays of a checkpoint in Linen numbering


def norm(x: jax.Array, a: Arrays, key: str) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6) * a[f"{key}/scale"] + a[f"{key}/bias"]


def attention(x: jax.Array, a: Arrays, key: str) -> jax.Array:
    query, keys, values = (
        jnp.einsum("ntd,dhe->nthe", x, a[f"{key}/{part}/kernel"]) + a[f"{key}/{part}/bias"]
        for part in ("query", "key", "value")
    )
    scores = jnp.einsum("nqhe,nkhe->nhqk", query, keys) / np.sqrt(query.shape[-1])
    mixed = jnp.einsum("nhqk,nkhe->nqhe", jax.nn.softmax(scores), values)
    return jnp.einsum("nqhe,hed->nqd", mixed, a[f"{key}/out/kernel"]) + a[f"{key}/out/bias"]


def mlp(x: jax.Array, a: Arrays, key: str) -> jax.Array:
    x = jax.nn.gelu(x @ a[f"{key}/Dense_0/kernel"] + a[f"{key}/Dense_0/bias"])
    return x @ a[f"{key}/Dense_1/kernel"] + a[f"{key}/Dense_1/bias"]


def jnp_vit(a: Arrays, pixels: jax.Array) -> dict[str, jax.Array]:
    b, width = pixels.shape[0], a["cls"].shape[-1]
    patches = pixels.reshape(b, 3, 4, 3, 4, 3).swapaxes(2, 3).reshape(b, 9, 48)
    x = patches @ a["embedding/kernel"].reshape(48, width) + a["embedding/bias"]
    x = jnp.concatenate([jnp.broadcast_to(a["cls"], (b, 1, width)), x], 1)
    x = x + a["Transformer/posembed_input/pos_embedding"]
    outputs = {}
    for i in range(3):
        key = f"Transformer/encoderblock_{i}/"
        x = x + attention(norm(x, a, f"{key}LayerNorm_0"), a, f"{key}MultiHeadDotProductAttention_0")
        x = x + mlp(norm(x, a, f"{key}LayerNorm_1"), a, f"{key}MlpBlock_0")
        tokens = norm(x, a, "Transformer/encoder_norm")
        outputs |= {f"cls@{i + 1}": tokens[:, 0]} if i != 1 else {}
    pooled = jnp.tanh(tokens[:, 0] @ a["pre_logits/kernel"] + a["pre_logits/bias"])
    return outputs | {"cls": tokens[:, 0], "gap": tokens[:, 1:].mean(1), "pooler": pooled}


def colour(pixels: jax.Array) -> jax.Array:
    """The least function that is a backbone."""
    return jnp.tanh(pixels.mean((1, 2)) @ TINY)


def load(path: Path, options: str = "") -> Backbone:
    return load_backbone(f"jax:{path}{options}", device="cpu")


def small(path: Path, fn: Callable[..., Any] = colour, **changes: Any) -> Path:
    return jax_export.save(fn, path / "small.jaxexport", **ABOUT | {"platforms": ["cpu"]} | changes)


def rewrite(path: Path, program: bytes | None = None, **fields: Any) -> Path:
    """Write the file anew with another program or manifest; the program's size and digest follow unless given."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read(MANIFEST))
        program = archive.read(PROGRAM) if program is None else program
    manifest |= {"program_bytes": len(program), "program_sha256": hashlib.sha256(program).hexdigest()}
    manifest |= fields
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, json.dumps({key: value for key, value in manifest.items() if value is not None}))
        archive.writestr(PROGRAM, program)
    return path


def foreign(path: Path, fn: Callable[..., Any], *arguments: Any, change: dict[str, Any] | None = None) -> Path:
    """A file whose manifest is that of `colour`, and whose program is another."""
    exported = jax.export.export(jax.jit(fn))(*arguments)
    return rewrite(small(path), bytes(dataclasses.replace(exported, **change or {}).serialize()))


def images(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit") / "vit.jaxexport"
    arrays = {key: array for key, array in ARRAYS.items() if not key.startswith("head/")}
    about = ABOUT | {"architecture": "vit(width=24,depth=3)", "depth": 3, "notes": ["step 7"]}
    return jax_export.save(jnp_vit, path, params=arrays, **about)


@pytest.fixture(scope="module")
def npz_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("npz") / "vit.npz"
    save_npz(path, ARRAYS)
    return path


# The same model, exported and as a checkpoint


def test_a_program_and_its_checkpoint_give_equal_features(vit_file: Path, npz_file: Path) -> None:
    exported, checkpoint = load(vit_file), load(npz_file)
    names = ["cls", "gap", "pooler", "cls@1", "cls@3", "cls@-1", "cls+gap"]
    pixels = pixels_for(checkpoint, 5)
    got, expected = exported.encode(pixels, names), checkpoint.encode(pixels, names)
    for name in names:
        assert got[name].dtype == torch.float32
        assert got[name].is_contiguous()
        torch.testing.assert_close(got[name], expected[name], atol=1e-4, rtol=1e-4)
        assert exported.dim(name) == checkpoint.dim(name)
    assert exported.num_parameters == checkpoint.num_parameters


def test_equal_few_shot_scores_and_no_forward_pass_the_second_time(
    vit_file: Path, npz_file: Path, image_folder: ImageFolderMaker, tmp_path: Path, encoded: list[int]
) -> None:
    task = f"imagefolder:{image_folder(classes=tuple('abcdef'))}"  # two classes of each colour: hard to tell apart
    settings: dict[str, Any] = {"shots": [1, 3], "seeds": 2, "device": "cpu", "batch_size": 8, "out": tmp_path / "out"}
    specs = [f"jax:{vit_file}", f"jax:{npz_file}"]
    frame = vitbench.run(specs, task, representations="cls,gap,pooler,cls@1", **settings)
    exported, checkpoint = (
        frame[frame["backbone"] == spec].set_index(["representation", "shot", "seed"])["accuracy"] for spec in specs
    )
    assert len(exported) == 4 * 2 * 2
    pd.testing.assert_series_equal(exported, checkpoint, check_like=True)
    assert exported.nunique() > 1
    assert encoded
    encoded.clear()
    again = vitbench.run(specs[0], task, representations="cls,gap,pooler,cls@1", **settings)
    assert len(again) == len(exported)
    vitbench.run(specs[0], task, representations="cls,gap,pooler,cls@1", l2="loo", **settings)
    assert encoded == []


def test_a_backbone_describes_itself(vit_file: Path) -> None:
    backbone = load(vit_file)
    assert backbone.architecture == "jaxexport(vit(width=24,depth=3),input=12x12)"
    with zipfile.ZipFile(vit_file) as archive:
        assert backbone.weights_digest == hashlib.sha256(archive.read(PROGRAM)).hexdigest()
    assert backbone.preprocessing == PREPROCESSING
    assert backbone.input_size == (12, 12)
    assert (backbone.depth, backbone.first_layer, backbone.layer_poolings) == (3, 1, ("cls",))
    assert not backbone.modules
    assert backbone.dtype == "float32"
    made, layers, note = backbone.provenance_notes
    assert made == f"exported by JAX {jax.__version__} for cpu, cuda, tpu; batch of any size"
    assert (layers, note) == ("layers given: cls@1, cls@3", "step 7")


def test_show_and_doctor_work(vit_file: Path) -> None:
    shown = CliRunner().invoke(app, ["show", "backbone", f"jax:{vit_file}", "--json"])
    assert json.loads(shown.stdout)["representations"]["pooler"] == "16 dimensions, trained"
    checked = CliRunner().invoke(
        app, ["doctor", "-b", f"jax:{vit_file}", "--device", "cpu", "--batch-size", "2", "--json"]
    )
    fields = json.loads(checked.stdout)
    assert fields["output"]["gap"] == "[2, 24], all finite"
    assert fields["layers"] == "cls@1 … cls@3"


def test_the_page_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "jax-export.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "jax-export.md", "exec"), {})
    (command,) = re.findall(r"^`vitbench (run .+)`$", page, re.MULTILINE)
    done = CliRunner().invoke(app, [*command.split(), "--seeds", "1", "-o", "out"])
    assert done.exit_code == 0, done.output
    frame = vitbench.load_results(tmp_path / "out")
    frame = frame[frame["backbone"] == "jax:patches.jaxexport"]
    assert set(frame["representation"]) == {"gap", "pooler", "corner"}
    assert frame[frame["representation"] == "gap"]["accuracy"].min() > 0.3


# Batches


@pytest.mark.parametrize("batch", ["symbolic", 4, 1])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_batches_of_any_size_give_each_image_its_own_features(batch: Any, count: int, tmp_path: Path) -> None:
    backbone = load(small(tmp_path, batch=batch))
    pixels = pixels_for(backbone, count)
    got = backbone.encode(pixels, ["pooler"])["pooler"].numpy()
    expected = np.tanh(pixels.numpy().mean((2, 3)) @ TINY)
    assert got.shape == (count, 5)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_program_sees_padded_batches_only(tmp_path: Path) -> None:
    def batch_size(pixels: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.float32(pixels.shape[0]), (pixels.shape[0], 1)) + 0 * pixels[:, 0, 0, :1]

    def seen(backbone: Backbone, count: int) -> list[float]:
        rows: list[float] = backbone.encode(pixels_for(backbone, count), ["pooler"])["pooler"][:, 0].tolist()
        return rows

    symbolic = load(small(tmp_path, batch_size))
    assert [seen(symbolic, count) for count in (1, 3, 5)] == [[1], [4] * 3, [8] * 5]
    fixed = load(small(tmp_path, batch_size, batch=4))
    assert [seen(fixed, count) for count in (1, 5)] == [[4], [4] * 5]
    assert "batch of 4, padded" in fixed.provenance_notes[0]


def test_channels_and_sides_keep_their_order(tmp_path: Path) -> None:
    def corner(pixels: jax.Array) -> jax.Array:
        return pixels[:, 1, 3]  # row 1, column 3

    backbone = load(small(tmp_path, corner, resolution=(4, 6)))
    assert backbone.input_size == (4, 6)
    pixels = pixels_for(backbone, 2)
    assert torch.equal(backbone.encode(pixels, ["pooler"])["pooler"], pixels[:, :, 1, 3])


def test_half_precision_outputs_come_as_float32(tmp_path: Path) -> None:
    def half(pixels: jax.Array) -> dict[str, jax.Array]:
        return {"map": colour(pixels).astype(jnp.bfloat16)}

    backbone = load(small(tmp_path, half))
    assert backbone.available() == ["map"]
    assert backbone.encode(pixels_for(backbone), ["map"])["map"].dtype == torch.float32


def test_memory_that_runs_out_is_known_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(small(tmp_path))

    def fail(message: str) -> Callable[[Any], Any]:
        def call(pixels: Any) -> Any:
            raise jax.errors.JaxRuntimeError(message)

        return call

    monkeypatch.setattr(backbone, "_call", fail("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."))
    with pytest.raises(MemoryError, match="Out of memory"):
        backbone.encode(pixels_for(backbone), ["pooler"])
    monkeypatch.setattr(backbone, "_call", fail("INTERNAL: no custom call\nof that name"))
    message = one_line_error(WeightsError, lambda: backbone.encode(pixels_for(backbone), ["pooler"]))
    assert "fails on a batch of 2" in message


# What a file holds


def test_the_same_program_makes_the_same_bytes_and_no_path_of_its_author(tmp_path: Path) -> None:
    source = "import jax.numpy as jnp\ndef fn(pixels):\n    return jnp.tanh(pixels.mean((1, 2)))\n"
    written = []
    for folder, text in (("here", source), ("there", "# moved\n\n" + source)):
        (tmp_path / folder).mkdir()
        scope: dict[str, Any] = {}
        exec(compile(text, str(tmp_path / folder / "model.py"), "exec"), scope)
        written.append(small(tmp_path / folder, scope["fn"]).read_bytes())
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]
    assert jax.config.jax_traceback_in_locations_limit != 0


def test_float32_is_float32_on_every_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path)
    assert "HIGHEST" in jax.export.deserialize(read_program(path)[1]).mlir_module()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    assert load(path).to("cuda").dtype == "float32"


def test_aliases_absences_and_names_of_ones_own(tmp_path: Path) -> None:
    def two(pixels: jax.Array) -> dict[str, jax.Array]:
        return {"cls": colour(pixels), "pooler": colour(pixels), "map": pixels[:, 0, 0], "extra": pixels}

    path = small(tmp_path, two, representations=["cls", "pooler", "map"], aliases={"pooler": "cls"})
    backbone = load(path)
    assert backbone.available() == ["cls", "pooler", "map"]
    assert backbone.alias_of("pooler") == "cls"
    message = one_line_error(RepresentationError, lambda: backbone.encode(pixels_for(backbone), ["gap"]))
    assert "has no 'gap': the exported program does not give it" in message
    assert "no 'cls' by layer" in one_line_error(RepresentationError, lambda: backbone.resolve("cls@1"))


def test_layers_that_are_not_given_are_refused(vit_file: Path) -> None:
    backbone = load(vit_file)
    message = one_line_error(RepresentationError, lambda: backbone.resolve("cls@2"))
    assert message.endswith("has no 'cls@2': of layers it gives cls@1, cls@3")
    assert "layers go from 1 to 3" in one_line_error(RepresentationError, lambda: backbone.resolve("cls@0"))
    assert "'gap' by layer" in one_line_error(RepresentationError, lambda: backbone.resolve("gap@1"))


# What cannot be saved


SHAPES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "tokens": (lambda x: {"gap": x.reshape(-1, 144, 3)}, "'gap' is float32[3,144,3] for a batch of 3"),
    "one row": (lambda x: x.mean((0, 1, 2))[None], "'pooler' is float32[1,3]"),
    "integers": (lambda x: {"cls": jnp.zeros((x.shape[0], 2), int)}, "'cls' is int32[3,2]"),
    "no array": (lambda x: {"cls": [x]}, "'cls' is a list"),
    "numbered": (lambda x: {1: x[:, 0, 0]}, "named by strings, got 1"),
    "capitals": (lambda x: {"CLS": x[:, 0, 0]}, "'CLS' is no name of an output"),
    "a sum": (lambda x: {"cls+gap": x[:, 0, 0]}, "'cls+gap' is no name of an output"),
    "nothing": (lambda x: {}, "representations"),
    "layer alone": (lambda x: {"gap": x[:, 0, 0], "cls@1": x[:, 0, 0]}, "'cls@1' is given without 'cls'"),
    "layers without depth": (
        lambda x: {"cls": x[:, 0, 0], "cls@1": x[:, 0, 0]},
        "'cls@1' is beyond depth 0: give depth",
    ),
    "lengths": (
        lambda x: {"cls": x[:, 0, 0], "gap": x[:, 0, 0], "cls@1": x[:, 0, 0], "gap@1": x[:, 0, 0, :2]},
        "the outputs of layer 1 differ in length",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_no_representation_is_not_saved(name: str, tmp_path: Path) -> None:
    fn, expected = SHAPES[name]
    depth = 0 if name == "layers without depth" else 1
    assert expected in one_line_error(UsageError, lambda: small(tmp_path, fn, depth=depth))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch": 0}, "batch must be"),
        ({"platforms": ["gpu"]}, "unknown platform 'gpu'"),
        ({"representations": ["poolr"]}, "did you mean 'pooler'?"),
        ({"aliases": {"pooler": "cls"}}, "alias 'pooler' of 'cls': both must be outputs"),
        ({"std": (1, 0, 1)}, "std must be above 0"),
        ({"mean": (0, 0)}, "mean"),
        ({"preprocessing": ""}, "preprocessing"),
        ({"architecture": ""}, "architecture"),
    ],
)
def test_what_cannot_be_meant_is_not_saved(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert expected in one_line_error(UsageError, lambda: small(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_a_function_that_needs_its_batch_is_told_to_fix_it(tmp_path: Path) -> None:
    def needs(pixels: jax.Array) -> jax.Array:
        return colour(pixels) if pixels.shape[0] < 100 else colour(pixels) * 2

    message = one_line_error(UsageError, lambda: small(tmp_path, needs))
    assert "with a symbolic batch (InconclusiveDimensionOperation" in message
    assert "give batch=8" in message
    assert load(small(tmp_path, needs, batch=2)).available() == ["pooler"]


def test_the_functions_own_errors_go_through(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        small(tmp_path, lambda pixels: 1 / 0)


def test_other_endings_and_programs_over_2_gb_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = one_line_error(UsageError, lambda: jax_export.save(colour, tmp_path / "model.bin", **ABOUT))
    assert "does not end in .jaxexport" in message
    monkeypatch.setattr(jax_stablehlo, "LARGEST_PROGRAM", 100)
    assert "over 2 GB" in one_line_error(UsageError, lambda: small(tmp_path))


# What cannot be loaded


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = small(tmp_path)
    whole = path.read_bytes()
    with zipfile.ZipFile(tmp_path / "other.jaxexport", "w") as archive:
        archive.writestr(PROGRAM, b"a program")
    damaged = bytearray(whole)
    damaged[whole.index(b"StableHLO")] ^= 1
    for content, expected in (
        (b"", "it begins with b''"),
        (b"\x80\x05K\x01.", "a pickle, which is never read"),
        (read_program(path)[1], "is no .jaxexport file (it begins with"),
        (whole[: len(whole) // 2], "is truncated or damaged (BadZipFile"),
        (whole[:-5], "is truncated or damaged (BadZipFile"),
        (bytes(damaged), "is truncated or damaged (BadZipFile: Bad CRC-32"),
        ((tmp_path / "other.jaxexport").read_bytes(), "has no manifest.json, so it is no .jaxexport file"),
    ):
        path.write_bytes(content)
        message = one_line_error(WeightsError, lambda: load(path))
        assert expected in message
        assert "small.jaxexport" in message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"format": "zip"}, "format is not 'vitbench-jaxexport'"),
        ({"version": 2}, "is of version 2 of the format"),
        ({"preprocessing": None}, "preprocessing: field required"),
        ({"surprise": 1}, "surprise: extra inputs are not permitted"),
        ({"representations": {"pooler": 0}}, "'pooler' has 0 dimensions"),
        ({"representations": {}}, "representations"),
        ({"resolution": [12, 0]}, "resolution must be above 0"),
        ({"depth": 2, "representations": {"pooler": 5, "pooler@3": 5}}, "'pooler@3' is beyond depth 2: give depth"),
        ({"program_bytes": 7}, "and its manifest says 7"),
        ({"program_sha256": "0" * 64}, "its program is not the one that its manifest names"),
        ({"representations": {"cls": 5}}, "names 'cls', which the program does not give (it gives: pooler)"),
        ({"representations": {"pooler": 6}}, "the program's 'pooler' is float32[b,5], not [b,6]"),
        ({"resolution": [24, 24]}, "takes (float32[b,12,12,3]), not float32[b,24,24,3]"),
    ],
)
def test_manifests_that_cannot_be_meant_are_refused(fields: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = rewrite(small(tmp_path), **fields)
    assert expected in one_line_error(WeightsError, lambda: load(path))


def test_manifests_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.jaxexport"
    for text, expected in (("[1]", "format is not"), ("{", "JSONDecodeError"), (" " * 2**21, "over 1048576 bytes")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(MANIFEST, text)
            archive.writestr(PROGRAM, b"")
        assert expected in one_line_error(WeightsError, lambda: load(path))


def test_programs_of_another_form_are_refused(tmp_path: Path) -> None:
    pooled = {"pooler": jnp.zeros((2, 5))}
    cases: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
        (lambda x: pooled, (images(2, 3, 12, 12),), "takes (float32[2,3,12,12])"),
        (lambda x: pooled, (images(2, 12, 12, 3, dtype=np.uint8),), "takes (uint8[2,12,12,3])"),
        (lambda x, y: pooled, (images(2, 12, 12, 3),) * 2, "takes (float32[2,12,12,3], float32[2,12,12,3])"),
        (lambda x: pooled, ({"image": images(2, 12, 12, 3)},), "takes (float32[2,12,12,3]), not"),
        (lambda x: pooled["pooler"], (images(2, 12, 12, 3),), "it gives: no dict of arrays"),
        (lambda x: {"pooler": jnp.zeros((1, 5))}, (images(2, 12, 12, 3),), "'pooler' is float32[1,5]"),
        (lambda x: {"pooler": jnp.zeros((2, 5), int)}, (images(2, 12, 12, 3),), "'pooler' is int32[2,5]"),
    ]
    for fn, arguments, expected in cases:
        path = foreign(tmp_path, fn, *arguments)
        assert expected in one_line_error(WeightsError, lambda path=path: load(path))


def test_programs_of_another_jax_are_told_as_such(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    newer = foreign(tmp_path, colour, images(2, 12, 12, 3), change={"calling_convention_version": 99})
    message = one_line_error(WeightsError, lambda: load(rewrite(newer, jax_version="99.1.0")))
    assert f"was made by JAX 99.1.0, newer than the {jax.__version__} here, which cannot read it" in message
    assert "calling convention 99" in message
    assert "update jax" in message
    older = rewrite(newer, jax_version="0.4.30")
    assert "no longer reads it" in one_line_error(WeightsError, lambda: load(older))
    garbage = rewrite(small(tmp_path), b"not a flatbuffer" * 9, jax_version="99.1.0")
    assert "newer than" in one_line_error(WeightsError, lambda: load(garbage))
    program = bytearray(read_program(small(tmp_path))[1])
    start = program.index(b"StableHLO_v") + 60
    program[start : start + 8] = b"\xff" * 8
    unknown = rewrite(tmp_path / "small.jaxexport", bytes(program), jax_version="99.1.0")
    assert "was made by JAX 99.1.0" in one_line_error(WeightsError, lambda: load(unknown))
    own = rewrite(unknown, jax_version=jax.__version__)
    assert "cannot be read by JAX" in one_line_error(WeightsError, lambda: load(own))
    capfd.readouterr()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="JAX has an accelerator here")
def test_programs_for_other_platforms_are_refused(tmp_path: Path) -> None:
    message = one_line_error(WeightsError, lambda: load(small(tmp_path, platforms=["tpu", "cuda"])))
    assert "was exported for tpu, cuda only, and JAX here has cpu" in message
    assert load(small(tmp_path, platforms=["tpu", "cpu"])).available() == ["pooler"]


def test_what_was_exported_decides(tmp_path: Path) -> None:
    path = small(tmp_path)
    assert "takes images of 12x12 pixels, got 16x16" in one_line_error(
        UsageError, lambda: load(path).encode(torch.zeros(1, 3, 16, 16), ["pooler"])
    )
    assert "resolution 24 does not apply" in one_line_error(UsageError, lambda: load(path, ",resolution=24"))
    assert load(path, ",resolution=12").input_size == (12, 12)
    oblong = small(tmp_path, resolution=(12, 8))
    assert "exported for 12x8" in one_line_error(UsageError, lambda: load(oblong, ",resolution=12"))
    assert "dtype bfloat16 does not apply" in one_line_error(UsageError, lambda: load(path, ",dtype=bfloat16"))
    assert load(path, ",dtype=float32").dtype == "float32"
    assert "'checkpoint' does not apply" in one_line_error(UsageError, lambda: load(path, ",checkpoint=x"))


def test_missing_files_offer_what_is_there(tmp_path: Path) -> None:
    small(tmp_path)
    message = one_line_error(WeightsError, lambda: load(tmp_path / "smal.jaxexport"))
    assert "did you mean 'small.jaxexport'?" in message


# Without jax


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_jax_the_extra_is_named(tmp_path: Path) -> None:
    path = small(tmp_path)
    code = BLOCKED.format(blocked={"jax", "jaxlib"}) + (
        "import vitbench.backbones.jax_export as module\n"
        "from vitbench.errors import UsageError\n"
        "from vitbench.backbones.load import load_backbone\n"
        f"about = {ABOUT!r}\n"
        f"for make in (lambda: load_backbone('jax:{path}'), lambda: module.save(abs, {str(path)!r}, **about)):\n"
        "    try:\n        make()\n"
        "    except UsageError as error:\n        print(error)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "No module named 'jax'" in line
        assert line.endswith("pip install 'vitbench[jax]'")


def test_without_flatbuffers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    message = one_line_error(UsageError, lambda: load(path))
    assert "flatbuffers" in message
    assert message.endswith("pip install 'vitbench[jax]'")


def test_nothing_else_imports_jax(npz_file: Path, tiny_vit: str) -> None:
    code = (
        "import sys\n"
        "import vitbench.backbones.jax_export\n"
        "from typer.testing import CliRunner\n"
        "from vitbench.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['ls', 'backbones']).exit_code == 0\n"
        "from vitbench.backbones.load import load_backbone\n"
        f"for spec in ('pixels', 'jax:{npz_file}', {tiny_vit!r}):\n"
        "    load_backbone(spec, device='cpu')\n"
        "    print(sorted(name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib')))\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n" * 3

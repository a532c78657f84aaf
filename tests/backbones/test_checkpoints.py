"""Weight files: what is read, and what is said of those that cannot be."""

from __future__ import annotations

import argparse
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from vitbench.backbones.checkpoints import fetch_from_hub, find_file, read_checkpoint, read_json
from vitbench.errors import WeightsError, one_line

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.steps": torch.tensor(7)}


class Evil:
    """A pickle of this runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.mkdir, ("pwned",)


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_safetensors_are_read_as_float32(tmp_path: Path) -> None:
    half = {"w": torch.tensor([0.1, -3.0], dtype=torch.float16), "b": torch.tensor([1e-8], dtype=torch.bfloat16)}
    save_file({**half, "n": torch.tensor([2**40])}, tmp_path / "x.safetensors")
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.tensors["w"].dtype == checkpoint.tensors["b"].dtype == torch.float32
    assert torch.equal(checkpoint.tensors["w"], half["w"].float())
    assert torch.equal(checkpoint.tensors["b"], half["b"].float())
    assert checkpoint.tensors["n"].item() == 2**40
    assert checkpoint.notes == ()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar"])
def test_torch_files_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save(STATE, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.tensors.keys() == STATE.keys()
    assert torch.equal(checkpoint.tensors["a.weight"], STATE["a.weight"])


def test_legacy_torch_files_are_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "x.pth").tensors["a.weight"], STATE["a.weight"])


def test_the_average_of_a_training_checkpoint_is_taken_and_named(tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    content = {"epoch": 3, "state_dict": STATE, "state_dict_ema": other, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert torch.equal(checkpoint.tensors["a.weight"], other["a.weight"])
    assert "state_dict_ema" in checkpoint.notes[0]


def test_prefixes_of_wrappers_are_removed_only_where_every_name_has_them(tmp_path: Path) -> None:
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()}, tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert checkpoint.tensors.keys() == STATE.keys()
    assert len(checkpoint.notes) == 2
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "y.pt")
    assert read_checkpoint(tmp_path / "y.pt").tensors.keys() == {"module.a", "b"}


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "extra": Evil()}, tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt")
    assert "mkdir" in message
    assert "safetensors" in message
    for protocol in (2, 4):
        (tmp_path / "y.pt").write_bytes(pickle.dumps(Evil(), protocol))
        refusal(tmp_path / "y.pt")
    assert not (tmp_path / "pwned").exists()


def test_a_pickled_model_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "x.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_truncated_files_are_refused(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep in (0, 5) else keep * len(content))])
    assert f"{path.stat().st_size} bytes" in refusal(path)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.bin"])
@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", bytes(range(256)) * 8]
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "damaged" in refusal(tmp_path / name)


def test_what_holds_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"teacher": STATE, "epoch": 1}, tmp_path / "x.pt")
    assert "teacher, epoch" in refusal(tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "y.pt")
    assert "list" in refusal(tmp_path / "y.pt")
    (tmp_path / "z.onnx").write_bytes(b"1")
    assert ".safetensors" in refusal(tmp_path / "z.onnx")


def test_a_missing_file_offers_the_nearest(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model_best.safetensors")
    with pytest.raises(WeightsError, match=r"backbone 'x'.*did you mean '.*model_best\.safetensors'"):
        find_file(tmp_path / "model_bets.safetensors", "backbone 'x'")
    with pytest.raises(WeightsError, match=r"is a folder.*model_best\.safetensors"):
        find_file(tmp_path, "backbone 'x'")
    with pytest.raises(WeightsError, match="nor does the folder"):
        find_file(tmp_path / "no" / "x.pt", "backbone 'x'")
    assert find_file(tmp_path / "model_best.safetensors", "") == tmp_path / "model_best.safetensors"


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(STATE, tmp_path / "x.safetensors")
    assert find_file("~/x.safetensors", "") == tmp_path / "x.safetensors"


def test_json_must_be_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    for name, content in {"b.json": "[1]", "c.json": "{"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(WeightsError, match=name):
            read_json(tmp_path / name)
    with pytest.raises(WeightsError, match="there is no file"):
        read_json(tmp_path / "d.json")


def test_one_line_is_one_line() -> None:
    assert one_line(RuntimeError("first\nsecond")) == "RuntimeError: first"
    assert one_line(EOFError()) == "EOFError"


def hub_cache(cache: Path, repository: str, files: dict[str, bytes]) -> None:
    """A cached repository, laid out as huggingface_hub lays it out."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


def test_a_cached_file_is_taken_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub_cache(tmp_path, "org/model", {"pytorch_model.bin": b"x"})
    assert fetch_from_hub("org/model", ["model.safetensors", "pytorch_model.bin"]).read_bytes() == b"x"


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_the_refusal_is_quick_and_names_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        fetch_from_hub("org/model", ["model.safetensors", "pytorch_model.bin"], "v1")
    assert time.monotonic() - start < 8
    message = str(caught.value)
    assert "hf download org/model --revision v1" in message
    assert "checkpoint=FILE" in message
    assert "\n" not in message


def test_a_name_that_is_no_repository_is_refused() -> None:
    with pytest.raises(WeightsError, match="organisation/name"):
        fetch_from_hub("a/b/c", ["config.json"])

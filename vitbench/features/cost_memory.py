"""The memory of a forward pass on a CPU, measured in a process of its own: `python -m vitbench.features.cost_memory JSON`.

A process that has done other things holds memory that a forward pass can use again without asking for more, so a number taken
there would be too low. The answer is one line of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from vitbench.backbones.base import Backbone
from vitbench.features import heap
from vitbench.features.extract import TOKENS
from vitbench.features.load import load_backbone
from vitbench.features.precision import image_layout, packed_linears

METHOD = (
    "weights + growth of the resident set at its peak over one batch, weights laid out included, in a fresh process"
)
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cpu_peak_memory(spec: str, dtype: str, batch_size: int) -> tuple[int | None, str]:
    """Peak memory of one batch on the CPU: the weights, the pixels, and all that is computed from them.

    It is the sum of the weights' bytes, which are counted, and of what the resident set grows by, at its peak, while a batch of
    noise is made and encoded, after one image to warm up; and before it the weights are laid out for the CPU, where a run does
    that, which takes their memory once more. It holds what `torch.cuda.max_memory_allocated` holds on a GPU, and
    what libraries set aside besides.

    Args:
        spec: The backbone's spec; it loads already.
        dtype: Of the computation.
        batch_size: Images in the batch.

    Returns:
        Bytes and `METHOD`; None and a reason where it cannot be measured: outside Linux, or when the process was ended.
    """
    question = {"spec": spec, "dtype": dtype, "batch_size": batch_size, "threads": torch.get_num_threads()}
    ran = subprocess.run(
        [sys.executable, "-m", "vitbench.features.cost_memory", json.dumps(question)],
        capture_output=True,
        text=True,
        check=False,
        # What the caller has loaded lies in the cache: nothing may be fetched again here.
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if ran.returncode:
        told = ran.stderr.strip().splitlines()
        return (
            None,
            f"not measured: the process that should do it ended with {told[-1][:160] if told else ran.returncode}",
        )
    answer = json.loads(ran.stdout.strip().splitlines()[-1])
    return (None, answer["reason"]) if answer["bytes"] is None else (int(answer["bytes"]), METHOD)


def weight_bytes(backbone: Backbone) -> int:
    """Bytes of a backbone's parameters and buffers, each shared one counted once."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for module in backbone.modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensors.values())


def _measure(spec: str, dtype: str, batch_size: int, threads: int) -> dict[str, int | str | None]:
    torch.set_num_threads(threads)
    backbone = load_backbone(spec, device="cpu").to("cpu", dtype)
    atoms = frozenset(atom for name in backbone.available() for atom in backbone.resolve(name))
    size = (3, *backbone.input_size)
    backbone.encode_atoms(torch.randn(1, *size), atoms)
    heap.give_back()  # the batch would use it again, unseen
    heap.keep(backbone.device)
    try:
        _CLEAR.write_text("5")  # the peak begins anew (proc(5))
        before = _resident("VmRSS")
        layout = image_layout(backbone.modules, backbone.device, dtype)
        pixels = torch.randn(batch_size, *size).contiguous(memory_format=layout)
        with packed_linears(backbone.modules, backbone.device, dtype, batch_size * TOKENS):
            backbone.encode_atoms(pixels, atoms)
        grown = _resident("VmHWM") - before
    except (OSError, KeyError) as error:
        return {"bytes": None, "reason": f"not measured: this system does not tell a process's peak memory ({error})"}
    return {"bytes": weight_bytes(backbone) + max(grown, 0), "reason": ""}


def _resident(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak), bytes."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(**json.loads(sys.argv[1]))) + "\n")

"""Put a pretrained demo backbone where the package has it: its weights in float16, without the head.

    python recipes/pretrain_demo_pack.py MODEL vitbench/assets/demo

MODEL is the folder below `models/` that the pretraining run names at its end.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file

FILES = ("config.json", "preprocessor_config.json")


def main(
    model: Annotated[Path, typer.Argument(help="The trained model's folder.", exists=True)],
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
) -> None:
    """Pack the demo backbone."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = load_file(model / "model.safetensors")
    kept = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items() if "classifier" not in name}
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    for name in FILES:
        shutil.copyfile(model / name, out / name)
    size = (out / "model.safetensors").stat().st_size
    typer.echo(f"{sum(map(torch.Tensor.numel, kept.values())):,} parameters, {size:,} bytes")


if __name__ == "__main__":
    typer.run(main)

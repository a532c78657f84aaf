"""Backbones: adapters from model libraries to one contract."""

from __future__ import annotations

from vitbench.registry import Registry

BACKBONES = Registry(
    "backbone",
    "vitbench.backbones",
    {
        "timm": "vitbench.backbones.timm:TimmBackbone",
        "hf": "vitbench.backbones.huggingface:HuggingFaceBackbone",
        "jax": "vitbench.backbones.jax_files:load_jax",
        "demo": "vitbench.backbones.demo:DemoBackbone",
        "pixels": "vitbench.backbones.pixels:PixelsBackbone",
    },
)

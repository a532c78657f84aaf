"""Protocols: how frozen features are scored."""

from __future__ import annotations

from vitbench.registry import Registry

PROTOCOLS = Registry(
    "protocol",
    "vitbench.protocols",
    {"fewshot": "vitbench.protocols.fewshot:FewShot", "ridge": "vitbench.protocols.ridge:Ridge"},
)

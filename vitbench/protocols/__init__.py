"""Protocols: how frozen features are scored."""

from __future__ import annotations

from vitbench.registry import Registry

PROTOCOLS = Registry(
    "protocol",
    "vitbench.protocols",
    {
        "fewshot": "vitbench.protocols.fewshot:FewShot",
        "finetune": "vitbench.protocols.finetune:FineTune",
        "head": "vitbench.protocols.head:Head",
        "ridge": "vitbench.protocols.ridge:Ridge",
        "episodes": "vitbench.protocols.episodes:EpisodeProtocol",
        "knn": "vitbench.protocols.knn:NearestNeighbours",
    },
)

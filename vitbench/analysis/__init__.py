"""Analysis: what a backbone looks at, and whether two checkpoints are one model."""

from __future__ import annotations

from vitbench.registry import Registry

ANALYSES = Registry(
    "analysis",
    "vitbench.analyses",
    {
        "attention-distance": "vitbench.analysis.attention_distance:analyse",
        "rollout": "vitbench.analysis.rollout:analyse",
        "heatmap": "vitbench.analysis.heatmap:analyse",
        "faithfulness": "vitbench.analysis.faithfulness:analyse",
        "filters": "vitbench.analysis.filters:analyse",
        "posembed": "vitbench.analysis.posembed:analyse",
        "similarity": "vitbench.analysis.similarity:analyse",
    },
    listed=False,
)
"""Each is `analyse(backbones, images, output, options) -> list of summary lines` (see `vitbench.analysis.base`)."""

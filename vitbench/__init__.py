"""vitbench: few-shot evaluation of frozen vision backbones."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "VitbenchError": "vitbench.errors",
    "fewshot": "vitbench.protocols.fewshot",
    "load_backbone": "vitbench.features.load",
    "load_results": "vitbench.records.store",
    "load_task": "vitbench.tasks.catalog",
    "run": "vitbench.execution.run",
}

__all__ = ["VitbenchError", "__version__", "fewshot", "load_backbone", "load_results", "load_task", "run"]

if TYPE_CHECKING:
    from vitbench.errors import VitbenchError
    from vitbench.execution.run import run
    from vitbench.features.load import load_backbone
    from vitbench.protocols.fewshot import fewshot
    from vitbench.records.store import load_results
    from vitbench.tasks.catalog import load_task


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import vitbench` costs nothing."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'vitbench' has no attribute '{name}'")

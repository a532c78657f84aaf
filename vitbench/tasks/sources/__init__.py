"""Sources: where a task's images and labels are read from. One module each; all give `Rows`."""

from __future__ import annotations

from vitbench.registry import Registry

SOURCES = Registry(
    "source",
    "",
    {
        "arrow": "vitbench.tasks.sources.files:read_arrow",
        "hub": "vitbench.tasks.sources.hub:read_hub",
        "imagefolder": "vitbench.tasks.sources.imagefolder:read_folder",
        "parquet": "vitbench.tasks.sources.files:read_parquet",
        "sklearn": "vitbench.tasks.sources.sklearn:read_sklearn",
    },
    listed=False,
)
"""Each reads one split: `(TaskSpec, split name, folder of the task file) -> Rows`."""

"""Sources: where a task's images and labels are read from. One module each; all give `Rows`."""

from __future__ import annotations

from vitbench.registry import Registry

SOURCES = Registry(
    "source",
    "",
    {
        "arrow": "vitbench.tasks.sources.files:read_arrow",
        "cifar_binary": "vitbench.tasks.sources.cifar:read_cifar",
        "hub": "vitbench.tasks.sources.hub:read_hub",
        "imagefolder": "vitbench.tasks.sources.imagefolder:read_folder",
        "imagelist": "vitbench.tasks.sources.imagelist:read_list",
        "npz": "vitbench.tasks.sources.npz:read_npz",
        "parquet": "vitbench.tasks.sources.files:read_parquet",
        "sklearn": "vitbench.tasks.sources.sklearn:read_sklearn",
        "synthetic": "vitbench.tasks.sources.synthetic:read_synthetic",
        "webdataset": "vitbench.tasks.sources.webdataset:read_webdataset",
    },
    listed=False,
)
"""Each reads one split: `(TaskSpec, split name, folder of the task file) -> Rows`."""

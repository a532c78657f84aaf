"""Numbers from papers and their code (`results/published/*.csv`), to be seen beside one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

COLUMNS = ["source", "verified", "protocol", "backbone", "pretraining", "task", "resolution", "accuracy", "note"]
"""Columns of every file; `train_images` (a number, or `all`) is a further one."""

_SOURCE = ["source", "verified", "protocol", "resolution", "train_images"]
_HOW = {"finetune": "fine-tuned"}


def published_folder() -> Path:
    """The folder of the published numbers: in the package when installed, else the checkout's `results/published/`."""
    package = Path(__file__).resolve().parent.parent
    bundled = package / "_bundled" / "published"
    return bundled if bundled.is_dir() else package.parent / "results" / "published"


def read_published(folder: Path | None = None) -> pd.DataFrame:
    """Every published number, a row each; accuracies in percent.

    Args:
        folder: Where the csv files are; those that ship with vitbench if None.

    Returns:
        The columns of the files and `train_images` ("" where a file does not say it).
    """
    text = dict.fromkeys(["pretraining", "note", "train_images", "resolution"], str)
    frames = [pd.read_csv(path, dtype=text) for path in sorted((folder or published_folder()).glob("*.csv"))]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    return table.reindex(columns=[*COLUMNS, "train_images"]).fillna(dict.fromkeys(text, ""))


def published_scores(published: pd.DataFrame, tasks: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The published numbers of some tasks as rows of a table.

    Args:
        published: What `read_published` gives.
        tasks: Full names of the tasks.

    Returns:
        Rows (backbone, representation, variant) × those of `tasks` that have a number, accuracy in percent, NaN where there is
        none; and a line for each source, which the rows name by its number.
    """
    rows = published[published["task"].isin(tasks)]
    sources = rows[_SOURCE].drop_duplicates().reset_index(drop=True)
    sources["number"] = sources.index + 1
    rows = rows.merge(sources, on=_SOURCE)
    name = "published [" + rows["number"].astype(str) + "]: " + rows["backbone"] + " " + rows["pretraining"]
    how = rows["protocol"].map(lambda protocol: _HOW.get(protocol, protocol))
    rows = rows.assign(label=name.str.strip(), how=how, variant="")
    # `pivot` refuses two numbers in one place.
    table = rows.pivot(index=["label", "how", "variant"], columns="task", values="accuracy")
    table.index.names = ["backbone", "representation", "variant"]
    return table, [_source_line(source) for _, source in sources.iterrows()]


def _source_line(source: pd.Series) -> str:
    images = source["train_images"]
    on = f" on {int(images):,} images" if images.isdigit() else " on all train images" if images == "all" else ""
    how = _HOW.get(source["protocol"], source["protocol"]) + on + f" at {source['resolution']} pixels, their own splits"
    doubt = "" if source["verified"] else "; recalled, NOT checked against the source"
    return f"[{source['number']}] published, not measured here and not ranked with what was: {how}; {source['source']}{doubt}"

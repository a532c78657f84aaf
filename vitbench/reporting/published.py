"""Numbers from papers and their code (`results/published/*.csv`), to be seen beside one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

COLUMNS = ["source", "verified", "protocol", "backbone", "pretraining", "task", "resolution", "accuracy", "note"]
"""Columns of every file; further ones are `train_images` (a number, or `all`) and `metric` (accuracy where there is none)."""

_SOURCE = ["source", "verified", "protocol", "resolution", "train_images"]
_HOW = {"finetune": "fine-tuned", "head": "its own classifier"}

GAP_NOTE = (
    "behind a published number, in parentheses: the best score of that column minus the number, percentage points"
)


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
        The columns of the files, `train_images` ("" where a file does not say it) and `metric`.
    """
    text = dict.fromkeys(["pretraining", "note", "train_images", "resolution", "metric"], str)
    frames = [pd.read_csv(path, dtype=text) for path in sorted((folder or published_folder()).glob("*.csv"))]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    table = table.reindex(columns=[*COLUMNS, "train_images", "metric"]).astype(dict.fromkeys(text, object))
    return table.fillna({**dict.fromkeys(text, ""), "metric": "accuracy"})


def published_rows(
    records: pd.DataFrame,
    published: pd.DataFrame | None,
    arrange: Callable[[pd.DataFrame, bool], pd.DataFrame],
    by: str,
    cells: pd.DataFrame,
    means: Mapping[str, tuple[str, str]],
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Published numbers for a table's columns.

    Args:
        records: Labelled records of the table.
        published: What `read_published` gives; None for no published numbers.
        arrange: Makes the table's columns from one column per set of data.
        by: The column by which rows are in order.
        cells: One's own scores, percent, in the table's columns.
        means: Column to what is averaged and how, of a suite's table of means.

    Returns:
        Rows of numbers in the table's columns, percent; the best of one's own minus each, percentage points; and a line for each
        source.
    """
    if published is None:
        return pd.DataFrame(), pd.DataFrame(), []
    data = records.drop_duplicates("column").set_index("column")
    wanted = {str(column): (row["task"], row["shown_metric"]) for column, row in data.iterrows()}
    # A suite's mean has the number of its tasks in its name, so that it is never shown for another choice of tasks.
    suite = {
        column: (f"{subject}: {column}", "accuracy") for column, (subject, level) in means.items() if level == "mean"
    }
    plain = set(records["shown_metric"]) == {"accuracy"}
    scores, sources = published_scores(published, wanted | (suite if plain else {}))
    rows = arrange(scores.reindex(columns=list(wanted)), False)
    for column in set(suite) & set(scores.columns):
        # A suite's mean may be published without the tasks it is made of.
        rows[column] = rows[column].fillna(scores[column])
    rows = rows.dropna(how="all")
    if not len(rows):
        return pd.DataFrame(), pd.DataFrame(), ["there are no published numbers for this table"]
    rows = rows.sort_values(by, ascending=False, na_position="last", kind="stable")
    return rows, cells.max() - rows, [GAP_NOTE, *sources]


def published_scores(
    published: pd.DataFrame, tasks: Sequence[str] | Mapping[str, tuple[str, str]]
) -> tuple[pd.DataFrame, list[str]]:
    """The published numbers of some tasks as rows of a table.

    Args:
        published: What `read_published` gives.
        tasks: Full names of the tasks, whose accuracies are meant; or column to task and metric.

    Returns:
        Rows (backbone, representation, variant) × those of `tasks` that have a number, in percent, NaN where there is none; and a
        line for each source, which the rows name by its number.
    """
    columns = tasks if isinstance(tasks, Mapping) else {task: (task, "accuracy") for task in tasks}
    wanted = pd.DataFrame([(name, *place) for name, place in columns.items()], columns=["column", "task", "metric"])
    rows = published.merge(wanted, on=["task", "metric"])
    sources = rows[_SOURCE].drop_duplicates().reset_index(drop=True)
    sources["number"] = sources.index + 1
    rows = rows.merge(sources, on=_SOURCE)
    doubt = rows["verified"].map({True: "", False: " (unverified)"})
    name = (
        "published [" + rows["number"].astype(str) + "]" + doubt + ": " + rows["backbone"] + " " + rows["pretraining"]
    )
    how = rows["protocol"].map(lambda protocol: _HOW.get(protocol, protocol))
    rows = rows.assign(label=name.str.strip(), how=how, variant="")
    # `pivot` refuses two numbers in one place.
    table = rows.pivot(index=["label", "how", "variant"], columns="column", values="accuracy")
    table.index.names = ["backbone", "representation", "variant"]
    return table, [_source_line(source) for _, source in sources.iterrows()]


def _source_line(source: pd.Series) -> str:
    images = source["train_images"]
    on = f" on {int(images):,} images" if images.isdigit() else " on all train images" if images == "all" else ""
    at = f" at {source['resolution']} pixels" if source["resolution"] else ""
    how = _HOW.get(source["protocol"], source["protocol"]) + on + at + ", their own splits"
    doubt = "" if source["verified"] else "; unverified: recalled, NOT checked against the source"
    return f"[{source['number']}] published, not measured here and not ranked with what was: {how}; {source['source']}{doubt}"

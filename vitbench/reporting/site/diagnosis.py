"""What a classifier got right and wrong, as parts of a page: confusion, classes, calibration, and test images."""

from __future__ import annotations

import base64
import io
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from vitbench.errors import VitbenchError
from vitbench.reporting.diagnostics import Diagnostics, Examples, diagnose
from vitbench.reporting.gallery import Tile, tiles
from vitbench.reporting.site.content import Block, Cell, Column, Confusion, Facts, Gallery, Lines, Picture, Table
from vitbench.reporting.site.plots import confusion_plot, reliability_plot
from vitbench.reporting.site.tables import number, percent
from vitbench.tasks.task import Split, Task

MOST_CELLS = 20
"""Up to so many classes a confusion matrix is a table of numbers; above, a heat map."""

MOST_PAIRS = 12
SIDE = 96
SMALL_FILE = 6000


def diagnosis(records: pd.DataFrame, task: Task | None) -> Diagnostics | str:
    """The diagnosis of one measurement, or why there is none, in one line."""
    try:
        return diagnose(records, records["path"].tolist(), task)
    except VitbenchError as error:
        return str(error)


def overview(found: Diagnostics) -> list[Block]:
    """Its numbers in short, and what a reader must know of them."""
    facts = [
        ("accuracy", [Cell(f"{percent(found.accuracy)} %")]),
        ("macro F1", [Cell(f"{percent(found.macro_f1)} %")]),
        (
            "test images",
            [Cell(f"{found.n_test:,}", aside=f"× {len(found.seeds)} seeds" if len(found.seeds) > 1 else "")],
        ),
    ]
    if found.ece is not None:
        facts.append(("expected calibration error", [Cell(f"{percent(found.ece)} %")]))
    return [Facts(facts), *([Lines(found.notes)] if found.notes else [])]


def confusion(found: Diagnostics, caption: str) -> Block:
    """The confusion matrix: a table where that can be read, else a heat map."""
    shares = 100 * found.normalised
    if len(found.class_names) <= MOST_CELLS:
        whole = np.nan_to_num(shares).round().astype(int).tolist()
        return Confusion(f"{caption} (images)", found.class_names, found.confusion.tolist(), whole)
    summary = (
        f"Confusion matrix of {len(found.class_names)} classes; the most confused pairs are in the table below it."
    )
    return confusion_plot(found.class_names, shares.tolist(), f"{caption}, in percent of each label's images.", summary)


def pairs_table(found: Diagnostics) -> Table:
    """The pairs of classes that are taken for each other most often."""
    shown: list[dict[Hashable, Any]] = found.pairs.head(MOST_PAIRS).to_dict("records")
    rows = [
        [
            Cell(f"{pair['one_name']} ↔ {pair['other_name']}"),
            number(pair["one_as_other"]),
            number(pair["other_as_one"]),
            Cell(percent(pair["share"])),
        ]
        for pair in shown
    ]
    columns = [Column("pair"), Column("→ images", True), Column("← images", True), Column("% of both classes", True)]
    return Table("Most confused pairs of classes", columns, rows)


def classes_table(found: Diagnostics) -> Table:
    """Every class by itself."""
    classes: list[dict[Hashable, Any]] = found.per_class.to_dict("records")
    rows = [
        [
            Cell(str(row["name"])),
            number(row["support"]),
            *(Cell(percent(row[name])) for name in ("accuracy", "precision", "f1")),
        ]
        for row in classes
    ]
    names = ("test images", "accuracy %", "precision %", "F1 %")
    return Table("Class by class", [Column("class"), *(Column(name, numeric=True) for name in names)], rows)


def calibration(found: Diagnostics) -> Block | None:
    """The reliability diagram, where the records hold a confidence."""
    if found.reliability is None:
        return None
    bins = [
        (100 * sure, 100 * right, 100 * count / found.reliability.counts.sum())
        for sure, right, count in zip(
            found.reliability.confidence, found.reliability.accuracy, found.reliability.counts, strict=True
        )
        if count
    ]
    caption = (
        "Reliability: how many predictions of a confidence are right. Below the dotted line the classifier is too sure, above "
        f"it not sure enough. Expected calibration error {percent(found.reliability.ece)} %, 10 bins of equal width."
    )
    summary = "Accuracy against confidence: " + ", ".join(f"at {sure:.0f} % {right:.0f} %" for sure, right, _ in bins)
    sure, right, share = zip(*bins, strict=True)
    return reliability_plot(sure, right, share, caption, summary)


def galleries(found: Diagnostics, split: Split) -> Iterator[Gallery]:
    """Test images that were recognised, that were not, and that were not although the classifier was sure."""
    for title, examples in (
        ("Right (drawn at random)", found.right),
        ("Wrong (drawn at random)", found.wrong),
        ("Wrong and most confident", found.confident),
    ):
        pictures = list(_pictures(examples, found, split))
        if pictures:
            yield Gallery(title, pictures)


def _pictures(examples: Examples, found: Diagnostics, split: Split) -> Iterator[Picture]:
    for tile in tiles(examples, found.class_names, split, SIDE):
        if tile.picture is not None:
            said = f"test image {tile.row}: labelled {tile.label}, predicted {tile.prediction}"
            yield Picture(_address(tile), said, tile.caption, pixelated=True)


def _address(tile: Tile) -> str:
    """The picture as a data address: PNG where that is small, as for drawings and enlarged pixels, else JPEG."""
    data, kind = tile.png or b"", "png"
    if len(data) > SMALL_FILE and tile.picture is not None:
        buffer = io.BytesIO()
        tile.picture.save(buffer, format="JPEG", quality=85)
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

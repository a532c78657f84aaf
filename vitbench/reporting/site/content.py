"""What a page of the report is made of. Everything here is plain text: the templates escape it, and nothing else makes HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Cell:
    """One cell of a table, or one value.

    Attributes:
        text: What is read.
        href: Where it leads: a path from the site's root (`tasks/digits.html#scores`), a place on the same page (`#sources`), or
            an address that starts with http. Anything else is not made a link.
        aside: Smaller text behind it, such as a spread.
        strong: The best of its column.
        value: What the table is sorted by where the text does not begin with the number.
        anchor: The name by which a link finds it.
        code: Shown in a fixed-width face.
    """

    text: str
    href: str = ""
    aside: str = ""
    strong: bool = False
    value: float | None = None
    anchor: str = ""
    code: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table; `choices` adds a list of its values to choose rows by, `whole` keeps its cells on one line."""

    name: str
    numeric: bool = False
    choices: bool = False
    whole: bool = False
    href: str = ""


@dataclass(frozen=True)
class Table:
    """A table that can be searched, filtered and sorted; the first column heads its row.

    Attributes:
        caption: What it shows.
        columns: Its columns.
        rows: A cell per column.
        below: Rows that stay below whatever the order is: chance, published numbers.
        notes: What a reader must know, below the table.
        anchor: The name by which a link finds it.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    below: Sequence[Sequence[Cell]] = ()
    notes: Sequence[str] = ()
    anchor: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot; its numbers stand in a table of the same page.

    Attributes:
        caption: What it shows and how to read it.
        summary: The same for whoever cannot see it.
        figure: Traces and layout, as plotly writes them.
        height: In CSS pixels.
    """

    kind: ClassVar[str] = "plot"
    caption: str
    summary: str
    figure: Mapping[str, Any]
    height: int = 420


@dataclass(frozen=True)
class Facts:
    """Terms and what is to be said of each; a value may have several lines."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Lines:
    """A list of sentences; `level` is note, warning or problem."""

    kind: ClassVar[str] = "lines"
    lines: Sequence[str]
    level: str = "note"


@dataclass(frozen=True)
class Links:
    """Places to go to, one of them perhaps the page itself (`current`)."""

    kind: ClassVar[str] = "links"
    label: str
    links: Sequence[Cell]
    current: str = ""


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix as a table: rows are labels, columns predictions.

    Attributes:
        caption: Whose matrix it is.
        names: Of the K classes.
        counts: `[K][K]`, images.
        shares: `[K][K]`, share of the row's images in percent, whole numbers; cells are shaded by them.
    """

    kind: ClassVar[str] = "confusion"
    caption: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    shares: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Beside:
    """Blocks that stand beside each other where the page is wide enough."""

    kind: ClassVar[str] = "beside"
    blocks: Sequence[Table | Plot | Confusion]


@dataclass(frozen=True)
class Picture:
    """An image that is part of the page: a data address, its text, and a line below it."""

    source: str
    text: str
    caption: str
    pixelated: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures in a row that wraps."""

    kind: ClassVar[str] = "gallery"
    title: str
    pictures: Sequence[Picture]


Block = Table | Plot | Facts | Lines | Links | Confusion | Gallery | Beside


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading of its own; `folded` shows the heading alone until it is asked for."""

    heading: str
    blocks: Sequence[Block]
    anchor: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        path: Its file, from the site's root, with forward slashes.
        title: Its heading.
        sections: What it holds.
        lead: A sentence below the heading.
        area: Which entry of the navigation it belongs to.
        crumbs: The way to it.
    """

    path: str
    title: str
    sections: Sequence[Section]
    lead: str = ""
    area: str = ""
    crumbs: Sequence[Cell] = field(default=())

    @property
    def root(self) -> str:
        """The way from the page to the site's root: empty, or `../` as often as it lies deep."""
        return "../" * self.path.count("/")

    @property
    def has_plot(self) -> bool:
        """Whether it needs the plotting library."""
        blocks = [block for section in self.sections for block in section.blocks]
        inner = [block for outer in blocks if isinstance(outer, Beside) for block in outer.blocks]
        return any(isinstance(block, Plot) for block in [*blocks, *inner])

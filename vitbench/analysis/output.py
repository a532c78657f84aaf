"""Where an analysis puts what it made: figures as PNG and SVG, arrays as npz, tables as CSV, and a page that shows them all."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vitbench.records.atomic import slug, write_bytes, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Output:
    """The folder of one call of `vitbench analyze`; every file is written whole or not at all.

    Attributes:
        folder: Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shown: list[tuple[str, str, list[str]]] = []
        self._taken: set[str] = set()

    def figure(self, name: str, title: str, figure: Figure) -> None:
        """Save a figure as `name.png` (150 dpi) and `name.svg`, close it, and show it on the page under `title`.

        The same figure gives the same bytes: without a date, and with fixed identifiers in the SVG.
        """
        import matplotlib

        base = self._name(name, "png")
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            with matplotlib.rc_context({"svg.hashsalt": "vitbench"}):
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
            write_bytes(self.folder / f"{base}.{kind}", buffer.getvalue())
        if "matplotlib.pyplot" in sys.modules:
            from matplotlib import pyplot

            pyplot.close(figure)
        self._shown.append((title, f"{base}.png", [f"{base}.svg"]))

    def arrays(self, name: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Save arrays as `name.npz`, without pickle."""
        buffer = io.BytesIO()
        # As a keyword, allow_pickle is one more array before NumPy 2.1: an array of objects is refused here instead.
        if strange := [key for key, array in arrays.items() if array.dtype.hasobject]:
            raise TypeError(f"array '{strange[0]}' holds objects, which only pickle could save")
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        base = self._name(name, "npz")
        write_bytes(self.folder / f"{base}.npz", buffer.getvalue())
        self._shown.append((f"arrays: {', '.join(arrays)}", "", [f"{base}.npz"]))

    def table(self, name: str, title: str, frame: pd.DataFrame) -> None:
        """Save a table as `name.csv`."""
        base = self._name(name, "csv")
        write_text(self.folder / f"{base}.csv", frame.to_csv(index=False))
        self._shown.append((title, "", [f"{base}.csv"]))

    def link(self, title: str, target: str) -> None:
        """Show a link to a page below this folder."""
        self._shown.append((title, "", [target]))

    def _name(self, name: str, kind: str) -> str:
        """A file name for `name` that no earlier file of this kind has: names that differ may be one as a file name."""
        base = first = slug(name)
        count = 1
        while f"{base}.{kind}".lower() in self._taken:
            count += 1
            base = f"{first}-{count}"
        self._taken.add(f"{base}.{kind}".lower())
        return base

    def index(self, heading: str, lines: list[str]) -> Path:
        """Write `index.html`: the heading, the summary lines, every figure, and links to every file."""
        import jinja2

        template = jinja2.Environment(autoescape=True).from_string(_PAGE)
        path = self.folder / "index.html"
        write_text(path, template.render(heading=heading, lines=lines, shown=self._shown))
        return path


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ heading }}</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
  figure { margin: 2rem 0; }
  img { max-width: 100%; height: auto; background: white; }
</style>
<h1>{{ heading }}</h1>
{% for line in lines %}<p>{{ line }}</p>
{% endfor %}
{% for title, picture, files in shown %}
<figure>
  {% if picture %}<a href="{{ picture }}"><img src="{{ picture }}" alt="{{ title }}"></a>{% endif %}
  <figcaption>{{ title }}{% for file in files %} · <a href="{{ file }}">{{ file }}</a>{% endfor %}</figcaption>
</figure>
{% endfor %}
</html>
"""

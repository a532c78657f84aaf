"""Where an analysis puts what it made: figures as PNG and SVG, arrays as npz, tables as CSV, and a page that shows them all."""

from __future__ import annotations

import io
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

    def figure(self, name: str, title: str, figure: Figure) -> None:
        """Save a figure as `name.png` (150 dpi) and `name.svg`, close it, and show it on the page under `title`."""
        from matplotlib import pyplot

        base = slug(name)
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight")
            write_bytes(self.folder / f"{base}.{kind}", buffer.getvalue())
        pyplot.close(figure)
        self._shown.append((title, f"{base}.png", [f"{base}.svg"]))

    def arrays(self, name: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Save arrays as `name.npz`, without pickle."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_bytes(self.folder / f"{slug(name)}.npz", buffer.getvalue())
        self._shown.append((f"arrays: {', '.join(arrays)}", "", [f"{slug(name)}.npz"]))

    def table(self, name: str, title: str, frame: pd.DataFrame) -> None:
        """Save a table as `name.csv`."""
        write_text(self.folder / f"{slug(name)}.csv", frame.to_csv(index=False))
        self._shown.append((title, "", [f"{slug(name)}.csv"]))

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

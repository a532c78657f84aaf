"""Names that hold HTML, LaTeX, markdown, quotes and paths; links that lead to records; published numbers with their gap."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records.test_store import PREDICTIONS, make_record
from tests.reporting.test_leaderboard import VIT, frame_of, seeds
from vitbench.records.store import ResultStore, read_record
from vitbench.reporting.boards import Show
from vitbench.reporting.formats import cell_texts, latex_text, markdown_text, render, signed
from vitbench.reporting.html_table import relative_address
from vitbench.reporting.leaderboard import leaderboards
from vitbench.reporting.published import published_scores, read_published
from vitbench.reporting.recorded import read_with_paths
from vitbench.tasks.catalog import suites

NASTY = "<script>alert('1')</script>\"&|%_$#{x}~^\\[2]"


class Page(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def nasty_store(folder: Path) -> Path:
    store = ResultStore(folder)
    for seed in (0, 1):
        fields: dict[str, Any] = {
            "backbone": f"timm:{NASTY}",
            "task": f"a/{NASTY}",
            "warnings": [f"{NASTY}\nand a line"],
        }
        store.write(make_record(seed=seed, **fields), PREDICTIONS)
    return folder


def test_html_escapes_every_name_and_holds_no_script(tmp_path: Path) -> None:
    frame, _ = read_with_paths(nasty_store(tmp_path))
    page = Page(render(leaderboards(frame), "html", tmp_path))
    assert not {"script", "img", "iframe", "link"} & set(page.tags)
    assert f"timm:{NASTY}" in page.words
    assert any(NASTY in word for word in page.words if word != f"timm:{NASTY}")
    assert page.tags.count("table") == 1


@pytest.mark.parametrize("name", ["plain", "a # b?c=%20 'd' \"e\" <b>", "x:y"])
def test_html_links_lead_from_the_page_to_each_record(tmp_path: Path, name: str) -> None:
    out = nasty_store(tmp_path / name / "runs")
    frame, _ = read_with_paths(out)
    base = tmp_path / "elsewhere" / "pages"
    page = Page(render(leaderboards(frame), "html", base))
    assert len(page.links) == 2
    for link in page.links:
        parts = urlsplit(link)
        assert not parts.scheme
        assert not parts.netloc
        assert not parts.query
        assert not parts.fragment
        assert read_record((base / unquote(parts.path)).resolve()).task == f"a/{NASTY}"
    assert [word for word in page.words if word.startswith("seed")] == ["seed 0: 50.00", "seed 1: 50.00"]


def test_a_number_of_one_record_is_itself_the_link(tmp_path: Path) -> None:
    ResultStore(tmp_path).write(make_record(), PREDICTIONS)
    text = render(leaderboards(read_with_paths(tmp_path)[0]), "html", tmp_path)
    assert re.search(r'<a href="records/[^"]+\.json">50\.0</a>', text)
    assert "<details>" not in text
    assert "http" not in text.replace("http-equiv", ""), "nothing is fetched"


def test_without_paths_html_has_no_links(tmp_path: Path) -> None:
    text = render(leaderboards(frame_of(tmp_path, *seeds(0.5))), "html")
    assert not Page(text).links
    assert "50.0" in text


def test_an_address_that_looks_like_a_scheme_is_none(tmp_path: Path) -> None:
    assert not urlsplit(relative_address(tmp_path / "javascript:alert(1)", tmp_path)).scheme


def latex_source(text: str) -> str:
    """What a reader of the PDF sees, from LaTeX as this module writes it; anything that LaTeX would act on is left as it is."""
    back = {
        r"\textbackslash{}": "\\",
        r"\textasciitilde{}": "~",
        r"\textasciicircum{}": "^",
        r"\textless{}": "<",
        r"\textgreater{}": ">",
        r"\textbar{}": "|",
        r"{\char34}": '"',
        "{[}": "[",
        "{]}": "]",
        **{rf"\{sign}": sign for sign in "&%$#_{}"},
    }
    pattern = "|".join(map(re.escape, sorted(back, key=len, reverse=True)))
    rest = re.sub(pattern, "", text)
    assert not re.search(r"[\\{}$&#^_~%\[\]<>|\"]", rest), rest
    return re.sub(pattern, lambda found: back[found[0]], text)


@given(st.text(alphabet="ab1 \\&%$#_{}~^<>|\"[]'", max_size=30))
def test_latex_escapes_every_character_it_would_act_on(text: str) -> None:
    assert latex_source(latex_text(text)) == " ".join(text.split())


def test_a_latex_table_is_booktabs_with_one_cell_for_each_column(tmp_path: Path) -> None:
    frame, _ = read_with_paths(nasty_store(tmp_path))
    lines = render(leaderboards(frame), "latex").splitlines()
    rules = [line for line in lines if line.startswith(("\\toprule", "\\midrule", "\\bottomrule"))]
    assert rules == ["\\toprule", "\\midrule", "\\bottomrule"]
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 3
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == 2
        assert not row.startswith("["), "behind a rule or a row it would be an option"
    outside = [line for line in lines if not line.startswith(("%", "\\")) and line not in rows]
    assert outside == [], "a line break in a note would end its comment"


@given(st.text(alphabet="ab \\|<>&*\n", max_size=20))
def test_markdown_cells_stay_cells(text: str) -> None:
    found = markdown_text(text)
    assert "<" not in found
    assert "\n" not in found
    assert not re.search(r"(?<!\\)\|", found)
    assert "\\\\" not in found, "a backslash before the pipe would set it free"


def test_every_format_takes_nasty_names(tmp_path: Path) -> None:
    frame, _ = read_with_paths(nasty_store(tmp_path))
    boards = leaderboards(frame, show=Show(costs=[], normalised=True, mean_rank=True))
    markdown = render(boards, "markdown")
    assert "<script" not in markdown
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")}) == 1
    assert NASTY in render(boards, "csv").replace('""', '"')


def test_signs_of_gaps() -> None:
    assert [signed(value) for value in (1.26, -1.26, 0.04, -0.04)] == ["+1.3", "−1.3", "0.0", "0.0"]


def test_published_numbers_of_the_papers_tasks_show_the_gap_to_one_s_best(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, *seeds(0.5), *seeds(0.9, representation="gap"))
    (board,) = leaderboards(frame, published=read_published())
    texts = cell_texts(board)["paper/cifar10"]
    row = next(
        label for label in board.published.index if label[0].endswith(": ViT-H/14 JFT") and "unverified" in label[0]
    )
    assert texts[row] == "99.50 (−9.5)"
    assert any(note.startswith("behind a published number, in parentheses") for note in board.notes)
    html, latex = render([board], "html"), render([board], "latex")
    assert "99.50 (−9.5)" in html
    assert "99.50 ($-$9.5)" in latex


def test_unverified_numbers_say_so_in_their_row_and_in_their_source(tmp_path: Path) -> None:
    rows, sources = published_scores(read_published(), ["paper/cifar10"])
    for label, _, _ in rows.index:
        number = re.match(r"published \[(\d+)\]( \(unverified\))?: ", label)
        assert number is not None
        (line,) = [line for line in sources if line.startswith(f"[{number[1]}]")]
        assert ("NOT checked" in line) == (number[2] is not None)
    assert any("unverified" in label for label, _, _ in rows.index)


# protocols.md 1.6, 2.2 and 4; the tag says whether somebody read it in the source or heard it from a maintainer.
SPOTS = [
    ("Table 5", False, "ViT-B/32", "imagenet1k", "paper/oxford_pets", "accuracy", 92.04),
    ("Table 5", False, "ViT-L/16", "imagenet21k", "paper/imagenet", "multilabel_hit", 88.40),
    ("Table 5; confirmed", True, "ViT-L/32", "imagenet21k", "paper/imagenet", "accuracy", 80.99),
    ("Table 2", False, "ViT-H/14", "JFT", "vtab: mean of 19", "accuracy", 77.63),
    ("README at c6de1e5, dropout 0.1", True, "R50+ViT-B/16", "imagenet21k", "paper/imagenet", "accuracy", 85.08),
    ("README at c6de1e5, 500 steps", True, "ViT-B/16", "imagenet21k", "paper/cifar100", "accuracy", 89.17),
    ("transfer.py", True, "ViT-B/32 augreg", "imagenet21k", "paper/imagenet", "accuracy", 83.27),
    ("CLIPPO", True, "CLIPPO ViT-B/16", "YFCC", "paper/imagenet", "accuracy", 38.2),
    ("results-imagenet.csv", True, "timm tiny16-224 augreg", "", "paper/imagenet", "accuracy", 75.452),
]


@pytest.mark.parametrize(("source", "verified", "backbone", "pretraining", "task", "metric", "value"), SPOTS)
def test_published_numbers_are_those_of_the_notes(
    source: str, verified: bool, backbone: str, pretraining: str, task: str, metric: str, value: float
) -> None:
    table = read_published()
    found = table[
        table["source"].str.contains(source, regex=False)
        & (table["backbone"] == backbone)
        & (table["pretraining"] == pretraining)
        & (table["task"] == task)
        & (table["metric"] == metric)
    ]
    assert found["accuracy"].tolist() == [value]
    assert found["verified"].tolist() == [verified]


def test_recalled_numbers_are_never_called_verified() -> None:
    table = read_published()
    recalled = table["note"].str.startswith("recalled")
    assert not table["verified"][recalled].any()
    assert table["verified"][~recalled].all()
    assert table["source"][~table["verified"]].str.startswith("Dosovitskiy").all()


def test_real_labels_have_their_own_published_numbers(tmp_path: Path) -> None:
    scores = {"accuracy": 0.8, "multilabel_hit": 0.85}
    frame = frame_of(tmp_path, {"task": "paper/imagenet", "scores": scores})
    (plain,) = leaderboards(frame, published=read_published())
    (real,) = leaderboards(frame, published=read_published(), metric="multilabel_hit")
    assert plain.published["paper/imagenet"].max() == 88.55
    assert real.published["paper/imagenet"].max() == 88.70
    assert len(real.published) == 9


def test_a_suites_published_mean_is_shown_for_the_whole_suite_only(tmp_path: Path) -> None:
    records = [record for task in suites()["vtab"] for record in seeds(0.5, task=task)]
    summary = leaderboards(frame_of(tmp_path, *records), suites=suites(), published=read_published())[0]
    row = next(label for label in summary.published.index if label[0].endswith(": ViT-L/16 imagenet21k"))
    assert summary.published.loc[row].dropna().to_dict() == {"mean of 19": 72.72}
    assert summary.gaps.loc[row, "mean of 19"] == pytest.approx(50 - 72.72)
    assert summary.cells.loc[VIT, "mean of 19"] == pytest.approx(50.0)

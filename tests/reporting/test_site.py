"""The report as files: what is on which page, what is escaped, what is refused."""

from __future__ import annotations

import html
import html.parser
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitbench
from tests.conftest import ImageFolderMaker
from tests.records.test_store import PREDICTIONS, make_record
from vitbench.errors import StoreError, UsageError
from vitbench.records.costs import Cost, write_cost
from vitbench.records.provenance import provenance
from vitbench.records.store import ResultStore
from vitbench.reporting.site.build import MARK, address, breakable, build_report, check_target
from vitbench.reporting.site.collection import collect, page_names
from vitbench.reporting.site.plots import Difference, Line, cost_plot, forest_plot, literal, shots_plot
from vitbench.reporting.site.serve import make_server

HOSTILE = "\"><script>alert(1)</script>&amp;'../../../etc/passwd"


class Links(html.parser.HTMLParser):
    """What a page links to, what it loads, its elements, its anchors and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.anchors: set[str] = set()
        self.handlers: list[str] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.handlers += [name for name in values if name.startswith("on")]
        self.anchors |= {values["id"]} if "id" in values else set()
        if tag == "a":
            self.links.append(values["href"])
        elif tag in ("script", "img") and "src" in values:
            self.loads.append(values["src"])
        elif tag == "link":
            self.loads.append(values["href"])

    def handle_data(self, data: str) -> None:
        self.text += data


def write(folder: Path, *records: dict[str, Any], hits: float | None = None) -> list[Path]:
    """Records with predictions that have their accuracy."""
    store, paths = ResultStore(folder), []
    for fields in records:
        record = make_record(n_test=40, **fields)
        label = np.arange(40) % record.num_classes
        wrong = round(40 * (1 - record.scores["accuracy"]))
        prediction = np.where(np.arange(40) < wrong, (label + 1) % record.num_classes, label)
        columns = {
            "row": np.arange(40),
            "label": label,
            "prediction": prediction,
            "confidence": np.linspace(0.2, 0.9, 40, dtype=np.float32),
        }
        paths.append(store.write(record, columns))
    return paths


def seeds(*accuracies: float, **fields: Any) -> list[dict[str, Any]]:
    return [{"seed": seed, "scores": {"accuracy": value}, **fields} for seed, value in enumerate(accuracies)]


def everywhere(out: Path) -> Iterator[tuple[Path, Links]]:
    for path in sorted(out.rglob("*.html")):
        yield path, Links(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shots = [(1, 0.1), (5, 0.2), (10, 0.3)]
    for shot, up in shots:
        write(
            folder / "runs",
            *seeds(0.5 + up, 0.525 + up, shot=shot),
            *seeds(0.4 + up, 0.45 + up, shot=shot, representation="gap"),
            *seeds(0.3 + up, 0.3 + up, shot=shot, task="paper/cifar100"),
            *seeds(0.35 + up, 0.3 + up, shot=shot, task="paper/cifar100", representation="gap"),
            *seeds(
                0.1 + up,
                0.1 + up,
                shot=shot,
                backbone="pixels",
                backbone_name="pixels-0",
                weights="0000",
                num_parameters=0,
            ),
        )
    build_report(folder / "runs", folder / "report")
    return folder / "report"


def test_every_link_leads_to_a_page_and_a_place_that_is_there(site: Path) -> None:
    pages = dict(everywhere(site))
    assert len(pages) > 12
    for path, links in pages.items():
        for target in links.links:
            parts = urlsplit(target)
            if parts.scheme:
                assert parts.scheme in ("http", "https"), target
                continue
            found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert found in pages, f"{path}: {target}"
            if parts.fragment:
                assert parts.fragment in pages[found].anchors, f"{path}: {target}"


def test_pages_load_only_files_beside_them(site: Path) -> None:
    for path, links in everywhere(site):
        for target in links.loads:
            if target.startswith("data:"):
                continue
            assert not urlsplit(target).scheme
            assert (path.parent / target).resolve().is_relative_to(site)
            assert (path.parent / target).is_file()
        assert "default-src 'none'" in html.unescape(path.read_text())
    assert len(list(site.rglob("plotly*"))) == 1, "the library is there once"


def test_every_score_of_the_front_page_leads_to_its_records(site: Path) -> None:
    text = (site / "index.html").read_text()
    cells = re.findall(r'<td class="n">(?:<strong>)?<a href="(records/[^"]+)">([\d.]+)</a>', text)
    assert {score for _, score in cells} == {"81.2", "72.5", "60.0", "62.5", "40.0"}
    for target, score in cells:
        page, _, place = target.partition("#")
        row = re.search(rf'<tr>(?:(?!</tr>).)*id="{place}".*?</tr>', (site / page).read_text(), re.DOTALL)
        assert row, target
        assert f"{score}" in row[0], f"{target} should tell of {score}"


def test_the_front_page_has_the_usual_shot_and_links_to_the_others(site: Path) -> None:
    links = Links((site / "index.html").read_text())
    assert "fewshot · l2 = 1024 · 10-shot" in links.text
    assert sum(target.startswith("boards/") for target in links.links) == 2
    assert "mean of 2 tasks" in links.text, "the plot against shots is of the mean"


def test_the_ablation_page_compares_with_cls_and_corrects(site: Path) -> None:
    text = Links((site / "ablations.html").read_text()).text
    assert "p (Holm)" in text
    assert "gapcls" in re.sub(r"\s+", "", text)
    assert "−3.1" in text, "8.75 points worse on one task and 2.5 better on the other"


def test_a_task_page_has_confusions_classes_and_an_interval(site: Path) -> None:
    links = Links((site / "tasks" / "paper-cifar10.html").read_text())
    for text in ("Confusion matrix", "Class by class", "Most confused pairs", "two-way random effects", "macro F1"):
        assert text in links.text, text
    assert "no test images are shown" in links.text


def test_names_that_hold_html_quotes_and_paths_are_text_everywhere(tmp_path: Path) -> None:
    write(
        tmp_path / "runs",
        *seeds(0.5, 0.6, backbone=f"timm:{HOSTILE}", backbone_name=f"{HOSTILE}", shot=5),
        *seeds(0.5, 0.6, backbone=f"timm:{HOSTILE}", backbone_name=f"{HOSTILE}", shot=10),
        *seeds(
            0.5, 0.7, backbone=f"timm:{HOSTILE}", representation=f"gap{HOSTILE}", backbone_name=f"{HOSTILE}", shot=10
        ),
        *seeds(0.5, task=f"imagefolder/{HOSTILE}", source=f"imagefolder:{HOSTILE}", warnings=[HOSTILE], shot=10),
        *seeds(0.5, protocol=HOSTILE, protocol_label=HOSTILE, preprocessing=HOSTILE, deviations=[HOSTILE], shot=10),
        *seeds(0.5, backbone="no spec, at all", weights="9999", backbone_name="javascript:alert(1)", shot=10),
    )
    build_report(tmp_path / "runs", tmp_path / "report")
    pages = list(everywhere(tmp_path / "report"))
    allowed = {"assets/theme.js", "assets/tables.js", "assets/plots.js", "assets/plotly.min.js"}
    for path, links in pages:
        assert path.resolve().is_relative_to(tmp_path / "report")
        assert not links.handlers
        scripts = [target for target in links.loads if target.endswith(".js")]
        assert {target.replace("../", "") for target in scripts} <= allowed
        text = path.read_text()
        assert "<script>alert" not in text
        assert links.tags.count("script") == len(scripts) + text.count('<script type="application/json">')
        assert not any(target.lower().startswith(("javascript", "data", "file", "/")) for target in links.links)
    assert any("<script>alert(1)</script>" in links.text for _, links in pages), "it is shown as it is"
    assert [path.name for path in tmp_path.iterdir()] == ["runs", "report"] or len(list(tmp_path.iterdir())) == 2


def test_class_names_that_hold_html_are_text(tmp_path: Path, image_folder: ImageFolderMaker) -> None:
    names = ("<img src=x onerror=alert(1)>", 'a"b', "c'd&amp;")
    folder = image_folder("shoes", classes=names)
    vitbench.run("pixels", f"imagefolder:{folder}", shots=[2], seeds=2, out=tmp_path / "runs")
    build_report(tmp_path / "runs", tmp_path / "report", task_data={"imagefolder/shoes": str(folder)})
    links = Links((tmp_path / "report" / "tasks" / "imagefolder-shoes.html").read_text())
    assert set(names) <= set(re.findall("|".join(map(re.escape, names)), links.text))
    assert not links.handlers
    pictures = [target for target in links.loads if target.startswith("data:image/png;base64,")]
    assert len(pictures) >= 12, "the gallery is there"


def test_data_that_is_not_what_was_scored_gives_no_pictures(tmp_path: Path, image_folder: ImageFolderMaker) -> None:
    one, other = image_folder("shoes"), image_folder("boots", test=5)
    vitbench.run("pixels", f"imagefolder:{one}", shots=[2], seeds=1, out=tmp_path / "runs")
    build_report(tmp_path / "runs", tmp_path / "report", task_data={"imagefolder/shoes": str(other)})
    links = Links((tmp_path / "report" / "tasks" / "imagefolder-shoes.html").read_text())
    assert "the task's data is not what was scored" in links.text
    assert "img" not in links.tags


def test_damaged_records_and_missing_predictions_are_told(tmp_path: Path) -> None:
    paths = write(tmp_path / "runs", *seeds(0.5, 0.6), *seeds(0.4, task="paper/cifar100"))
    paths[1].with_suffix(".parquet").unlink()
    paths[2].write_text("{")
    (paths[0].parent / "older.json").write_text('{"schema_version": 0}')
    built = build_report(tmp_path / "runs", tmp_path / "report")
    assert len(built.problems) == 2
    text = Links((tmp_path / "report" / "index.html").read_text()).text
    assert paths[2].name in text.replace("​", "")
    assert "older.json" in text
    assert "1 measurement without an interval over test images" in text
    (page,) = (tmp_path / "report" / "records").rglob("*.html")
    assert "t interval over 2 seeds" in page.read_text()
    assert "are missing" in Links((tmp_path / "report" / "tasks" / "paper-cifar10.html").read_text()).text


def test_predictions_of_another_run_are_not_believed(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "runs")
    store.write(make_record(scores={"accuracy": 0.5}), PREDICTIONS)
    build_report(tmp_path / "runs", tmp_path / "report")
    text = Links((tmp_path / "report" / "index.html").read_text()).text
    assert "predictions are not those that the scores were computed from" in text


def test_two_records_of_one_identity_with_different_scores_are_a_conflict(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "runs", *seeds(0.5))
    write(tmp_path / "runs", *seeds(0.8, representation="gap"))
    twin = path.parent.parent / "copy" / path.name
    twin.parent.mkdir()
    twin.write_text(path.read_text().replace('"accuracy": 0.5', '"accuracy": 0.75'))
    build_report(tmp_path / "runs", tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "50 ≠ 75" in text
    assert "62.5" not in text, "not averaged"
    assert "different scores" in Links(text).text


def test_a_record_without_a_score_leaves_no_traceback(tmp_path: Path) -> None:
    write(tmp_path / "runs", *seeds(0.5, metric="top5_accuracy"))
    build_report(tmp_path / "runs", tmp_path / "report")
    assert "no record has a score" in Links((tmp_path / "report" / "index.html").read_text()).text


def test_measured_costs_have_a_plot_each_and_what_was_not_measured_is_told(tmp_path: Path) -> None:
    write(tmp_path / "runs", *seeds(0.5, 0.6), *seeds(0.4, backbone="timm:vit_b", backbone_name="b", weights="b"))
    cost = Cost(
        backbone="timm:vit_tiny_patch16_224",
        backbone_name="timm-vit_tiny_patch16_224-abcd",
        architecture="timm:vit",
        input_size=(224, 224),
        dtype="float32",
        device="cpu (8 threads)",
        num_parameters=5_500_000,
        representations={"cls": 192},
        flops=2_500_000_000,
        images_per_second=50.0,
        batch_size=8,
        batch_seconds=[0.16],
        memory_bytes=None,
        memory_method="not measured",
        provenance=provenance("a test", "cpu", []),
    )
    damaged = write_cost(tmp_path / "runs", cost).with_name("damaged.json")
    damaged.write_text("{")
    build_report(tmp_path / "runs", tmp_path / "report")
    text = (tmp_path / "report" / "cost.html").read_text()
    figures = [json.loads(found) for found in re.findall(r'application/json">(.*?)</script>', text)]
    axes = {figure["layout"]["xaxis"]["title"]["text"]: figure["data"][0]["x"] for figure in figures}
    assert axes == {"params (M)": [5.5], "GFLOPs": [2.5], "ms/image": [20.0]}
    assert "damaged.json" in Links((tmp_path / "report" / "index.html").read_text()).text


def test_limited_records_have_a_page_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "runs", *seeds(0.5, 0.6), *seeds(0.9, 0.8, limit=40))
    build_report(tmp_path / "runs", tmp_path / "report")
    (board,) = (tmp_path / "report" / "boards").iterdir()
    assert "LIMITED to 40 test images" in Links(board.read_text()).text
    assert "85.0" not in (tmp_path / "report" / "index.html").read_text()


def test_no_records(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no results at"):
        build_report(tmp_path / "nothing", tmp_path / "report")
    (tmp_path / "runs" / "records").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no records to report .*: make some with `vitbench run`"):
        build_report(tmp_path / "runs", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_an_unknown_task_of_task_data_is_named(tmp_path: Path) -> None:
    write(tmp_path / "runs", *seeds(0.5))
    with pytest.raises(UsageError, match="no records of 'shoes'; there are paper/cifar10"):
        build_report(tmp_path / "runs", tmp_path / "report", task_data={"shoes": "x"})


def test_a_report_is_replaced_and_nothing_else_ever_is(tmp_path: Path) -> None:
    write(tmp_path / "runs", *seeds(0.5))
    out = tmp_path / "report"
    build_report(tmp_path / "runs", out)
    write(tmp_path / "runs", *seeds(0.5, task="paper/cifar100"))
    build_report(tmp_path / "runs", out)
    assert (out / "tasks" / "paper-cifar100.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"], "no temporary folder is left"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"did not make \(notes\.txt\)"):
        build_report(tmp_path / "runs", out)
    assert (out / "notes.txt").read_text() == "mine"
    other = tmp_path / "holiday"
    other.mkdir()
    build_report(tmp_path / "runs", other)
    (other / MARK).write_text("[]")
    with pytest.raises(UsageError, match="is no vitbench report"):
        build_report(tmp_path / "runs", other)
    with pytest.raises(UsageError, match="is a file"):
        check_target(out / "notes.txt", tmp_path)
    with pytest.raises(UsageError, match="lies among the records"):
        build_report(tmp_path / "runs", tmp_path / "runs" / "records" / "report")


def test_when_the_disk_is_full_the_old_report_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "runs", *seeds(0.5))
    build_report(tmp_path / "runs", tmp_path / "report")
    before = (tmp_path / "report" / "index.html").read_text()

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitbench.reporting.site.build._write_assets", full)
    with pytest.raises(StoreError, match="the disk is full"):
        build_report(tmp_path / "runs", tmp_path / "report")
    assert (tmp_path / "report" / "index.html").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]


@given(st.lists(st.text(max_size=30), unique=True, max_size=12))
def test_page_names_are_safe_and_never_shared(things: list[str]) -> None:
    names = page_names(things)
    assert set(names) == set(things)
    assert len({name.casefold() for name in names.values()}) == len(things)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) for name in names.values())


@given(st.text())
def test_breaking_places_change_no_letter_and_let_nothing_through(text: str) -> None:
    shown = str(breakable(text))
    links = Links(shown)
    assert set(links.tags) <= {"wbr"}
    assert html.unescape(shown.replace("<wbr>", "")) == text


@pytest.mark.parametrize(
    ("href", "target"),
    [
        ("tasks/a b.html#m1", "../tasks/a%20b.html#m1"),
        ("#sources", "#sources"),
        ("https://example.org/x", "https://example.org/x"),
        ("javascript:alert(1)", ""),
        ("data:text/html,x", ""),
        ("//evil.example/x", ""),
        ("/etc/passwd", ""),
        ("../../x", ""),
        ("", ""),
    ],
)
def test_only_pages_places_and_addresses_are_linked(href: str, target: str) -> None:
    assert address(href, "../") == target


def test_labels_of_models_are_short_and_never_shared(tmp_path: Path) -> None:
    write(
        tmp_path / "runs",
        *seeds(0.5, backbone="timm:vit,checkpoint=/a/one.safetensors", weights="1" * 8, backbone_name="a"),
        *seeds(0.5, backbone="timm:vit,checkpoint=/a/two.safetensors", weights="2" * 8, backbone_name="b"),
        *seeds(0.5, backbone="timm:vit,checkpoint=/b/two.safetensors", weights="3" * 8, backbone_name="c"),
        *seeds(0.5, backbone="timm:other", weights="4" * 8, backbone_name="d"),
    )
    labels = collect(tmp_path / "runs").models
    assert labels["d"] == "timm:other"
    assert labels["a"] == "timm:vit · one"
    assert labels["b"].endswith("weights 22222222")
    assert len(set(labels.values())) == 4


def test_plots_hold_names_as_text_and_numbers_as_they_are() -> None:
    name = "<b>bold</b> & <a href='javascript:x'>x</a>"
    lines = [Line(name, [1, 5], [50.0, 60.0], [45.0, float("nan")], [55.0, float("nan")])]
    figure = shots_plot(lines, "", "").figure
    band, line = figure["data"]
    assert line["name"] == literal(name) == "&lt;b&gt;bold&lt;/b&gt; &amp; &lt;a href='javascript:x'&gt;x&lt;/a&gt;"
    assert line["y"] == [50.0, 60.0]
    assert band["y"] == [55.0, 45.0], "only where there is an interval"
    forest = forest_plot([Difference(name, 1.0, -1.0, 4.0, False, "said")], "", "").figure["data"][0]
    assert forest["error_x"]["array"] == [3.0]
    assert forest["error_x"]["arrayminus"] == [2.0]
    assert forest["marker"]["symbol"] == ["circle-open"]
    cost = cost_plot([("a", 1.0, 50.0), ("b", 2.0, 40.0)], [0], "params", "", "").figure["data"]
    assert [trace["x"] for trace in cost] == [[1.0], [1.0], [2.0]]
    json.dumps([figure, forest], allow_nan=False)


@contextmanager
def served(folder: Path) -> Iterator[int]:
    server = make_server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_server_gives_the_reports_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "report" / "tasks").mkdir(parents=True)
    (tmp_path / "report" / "index.html").write_text("hello")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "report" / "link").symlink_to(tmp_path / "secret.txt")

    with served(tmp_path / "report") as port:

        def ask(path: str, host: str = "127.0.0.1") -> tuple[int, str]:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.putrequest("GET", path, skip_host=True)
            connection.putheader("Host", f"{host}:{port}")
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        assert ask("/") == (200, "hello")
        assert ask("/index.html", "localhost") == (200, "hello")
        for path in (
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/..%2fsecret.txt",
            "//../secret.txt",
            "/link",
            "/tasks/",
            "/none",
        ):
            status, text = ask(path)
            assert status == 404, path
            assert "secret" not in text.replace("secret.txt", "")
        assert ask("/", "evil.example")[0] == 421
        with socket.socket() as other, pytest.raises(UsageError, match=f"port {port} cannot be used"):
            assert other
            make_server(tmp_path, port)
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)


def test_serve_prints_its_address_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    write(tmp_path / "runs", *seeds(0.5))
    # A test that runs in the background inherits ignored interrupts, and so would the server.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from vitbench.cli.main import main; main()"
    command = [sys.executable, "-c", code, "report", "--results", "runs", "--serve", "--port", "0", "--no-images"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("report/index.html: ")
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line
        with urllib.request.urlopen(found[0], timeout=10) as answer:
            assert b"Leaderboards" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()

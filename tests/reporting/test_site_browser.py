"""The report in a real browser: sorted, searched, followed, switched, narrowed, read by axe; and nothing leaves the page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vitbench
from tests.reporting.test_site import HOSTILE, seeds, write
from vitbench.records.store import read_record
from vitbench.reporting.site.build import build_report

BROWSER, DRIVER = shutil.which("chromium") or "", shutil.which("chromedriver") or ""
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver (Debian: chromium, chromium-driver) are not installed"
)

MANY = 60
ROWS = 2 * MANY + 6
"""Of the front page: `cls` and `gap` of many, three of a tiny ViT, raw pixels, and two with a hostile name."""
KINDS = (
    *("index.html", "tasks.html", "backbones.html", "ablations.html", "cost.html", "runs.html", "methods.html"),
    *("boards", "tasks", "backbones", "records"),
)
"""A page of every kind: a file, or a folder of which one page is taken."""

WIDE, NARROW = (1280, 900), (390, 844)


class Browser:
    """A headless Chromium, what it asked for and what it complained of."""

    def __init__(self, site: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.site = site
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.set_script_timeout(30)

    def open(self, page: str) -> None:
        """Go to a page and wait for it: the driver itself may come back too early."""
        address = (self.site / page).as_uri()
        self.driver.get("about:blank")
        self.driver.get(address)
        self.wait("return location.href === arguments[0] && document.readyState === 'complete'", address)

    def wait(self, script: str, *arguments: Any) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 15, poll_frequency=0.02).until(lambda _: self.js(script, *arguments))

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def command(self, name: str, **parameters: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.driver.execute_cdp_cmd(name, parameters)
        return found

    def scheme(self, name: str) -> None:
        """What the system prefers: light or dark, and nothing that moves, which a click could miss."""
        wanted = {"prefers-color-scheme": name, "prefers-reduced-motion": "reduce"}
        self.command(
            "Emulation.setEmulatedMedia", features=[{"name": one, "value": value} for one, value in wanted.items()]
        )

    def size(self, width: int, height: int) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def drawn(self) -> None:
        """Wait for the page's plots."""
        self.wait(
            "return [...document.querySelectorAll('.canvas')].every(area => area.dataset.drawn || !area.clientWidth)"
        )

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]

    def requests(self) -> list[str]:
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [
            event["params"]["request"]["url"] for event in messages if event["method"] == "Network.requestWillBeSent"
        ]

    def column(self, number: int) -> list[str]:
        """The texts of a column of the first table, as they are shown."""
        script = """return [...document.querySelector('table').tBodies[0].rows].filter(row => !row.hidden)
            .map(row => row.cells[arguments[0]].textContent.trim())"""
        found: list[str] = self.js(script, number)
        return found

    def sort(self, number: int) -> Any:
        return self.driver.find_element("css selector", f"table thead th:nth-child({number + 1}) button.sort")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_vit: str) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    for backbone in ("pixels", tiny_vit):
        vitbench.run(backbone, "digits", shots=[1, 5, 10], seeds=2, out=folder / "runs")
    parameters = read_record(next((folder / "runs").rglob("*.json"))).parameters
    for number in range(MANY):
        fields: dict[str, Any] = {
            "backbone": f"timm:vit_{number:02d}",
            "backbone_name": f"vit_{number}",
            "shot": 10,
            "parameters": parameters,
        }
        fields |= {"weights": f"{number:08x}", "num_parameters": 1000 * (number + 1)}
        write(folder / "runs", *seeds(0.3 + number / 100, **fields), *seeds(0.5, task="paper/cifar100", **fields))
        write(folder / "runs", *seeds(0.3, representation="gap", **fields))
    for name, score in (("cls", 0.5), ("gap", 0.9)):
        hostile = {"backbone": f"timm:{HOSTILE}", "backbone_name": HOSTILE, "weights": "666", "representation": name}
        write(folder / "runs", *seeds(score, score, shot=10, parameters=parameters, **hostile))
    build_report(folder / "runs", folder / "report")
    return folder / "report"


@pytest.fixture(scope="module")
def shared(site: Path) -> Iterator[Browser]:
    browser = Browser(site)
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(shared: Browser) -> Browser:
    """At its usual size and light; what came before is forgotten."""
    shared.command("Emulation.setScriptExecutionDisabled", value=False)
    shared.size(*WIDE)
    shared.scheme("light")
    shared.open("methods.html")
    shared.js("localStorage.clear()")
    shared.complaints()
    shared.requests()
    return shared


def page_of(site: Path, kind: str) -> str:
    if kind.endswith(".html"):
        return kind
    pages = sorted((site / kind).rglob("*.html"), key=lambda path: -path.stat().st_size)
    return pages[0].relative_to(site).as_posix()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_page_is_accessible_in_both_themes_and_asks_nobody_for_anything(
    browser: Browser, site: Path, kind: str
) -> None:
    from axe_selenium_python import Axe

    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        browser.open(page_of(site, kind))
        browser.drawn()
        browser.js("for (const fold of document.querySelectorAll('details.section')) fold.open = true")
        axe = Axe(browser.driver)
        axe.inject()
        violations = [found for found in axe.run()["violations"] if found["impact"] in ("serious", "critical")]
        told = [(found["id"], [node["html"] for node in found["nodes"][:3]]) for found in violations]
        assert not told, f"{kind}, {scheme}"
    requests = browser.requests()
    assert any(url.endswith("report.css") for url in requests)
    own = site.as_uri()
    assert [url for url in requests if not url.startswith((own, "data:", "about:", "blob:"))] == []
    assert browser.complaints() == []


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_phone_tables_scroll_and_the_page_does_not(browser: Browser, site: Path, kind: str) -> None:
    browser.size(*NARROW)
    browser.open(page_of(site, kind))
    browser.drawn()
    assert browser.js("return document.documentElement.scrollWidth") <= NARROW[0]
    wide = browser.js(
        """return [...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, .canvas, .columns')
            && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_sorting_by_a_score_and_back(browser: Browser) -> None:
    browser.open("index.html")
    scores = browser.js(
        "return [...document.querySelectorAll('thead th')].findIndex(h => /cifar10\\b/.test(h.textContent))"
    )
    button = browser.sort(scores)
    button.click()
    head = button.find_element("xpath", "./..")
    assert head.get_attribute("aria-sort") == "descending"
    down = [float(text.split()[0]) for text in browser.column(scores)]
    assert down == sorted(down, reverse=True)
    assert down[0] == 90.0
    # The keyboard does what the mouse does.
    button.send_keys("\n")
    assert head.get_attribute("aria-sort") == "ascending"
    up = [float(text.split()[0]) for text in browser.column(scores)]
    assert up == sorted(up)
    assert up[0] == 30.0
    below = browser.js("return document.querySelector('tbody.below').rows[0].textContent")
    assert "chance" in below
    browser.sort(0).click()
    names = browser.column(0)
    assert names == sorted(names)
    assert len(browser.js("return document.querySelectorAll('[aria-sort]')")) == 1
    assert browser.complaints() == []


def test_searching_filtering_and_turning_pages(browser: Browser) -> None:
    browser.open("index.html")
    total = ROWS
    assert len(browser.column(0)) == 25
    count = browser.driver.find_element("css selector", "output.count")
    assert count.text == f"1 to 25 of {total} rows"
    browser.driver.find_element("css selector", ".pager button:last-child").click()
    assert count.text == f"26 to 50 of {total} rows"
    search = browser.driver.find_element("css selector", "input[type=search]")
    search.send_keys("vit_1 cls")
    assert sorted(browser.column(0)) == [f"timm:vit_{number}" for number in range(10, 20)]
    assert count.text == f"10 of {total} rows"
    assert (
        browser.js("return document.querySelector(`label[for='${arguments[0].id}']`).textContent", search) == "Search"
    )
    search.clear()
    search.send_keys("<script>")
    assert browser.column(0) == [f"timm:{HOSTILE}"] * 2
    search.clear()
    search.send_keys("nothing is called so")
    assert browser.column(0) == []
    search.clear()
    search.send_keys(" ")
    browser.driver.find_element("css selector", ".tools select option[value=gap]").click()
    assert set(browser.column(1)) == {"gap"}
    assert count.text == f"1 to 25 of {MANY + 2} of {total} rows"


def test_a_number_leads_to_its_record(browser: Browser) -> None:
    browser.open("index.html")
    links = browser.driver.find_elements("css selector", "tbody td a[href*='records/']")
    link = next(link for link in links if link.is_displayed())
    score = float(link.text)
    link.click()
    browser.wait("return location.pathname.includes('/records/') && document.readyState === 'complete'")
    row = browser.driver.find_element("css selector", "tr:has(:target)")
    assert row.is_displayed()
    assert any(round(float(text), 1) == score for text in re.findall(r"\d+\.\d+", row.text))
    assert browser.js("return document.querySelectorAll('[id^=r-]').length") >= 1, "the records themselves are below"
    browser.driver.find_element("link text", "run 1" if "run 1" in browser.driver.page_source else "run 2").click()
    browser.wait("return location.href.includes('/runs.html#run-') && document.readyState === 'complete'")
    assert browser.driver.find_element("css selector", ":target").is_displayed()
    assert browser.js("return document.querySelector('details:target')?.open ?? true")


def test_the_theme_is_switched_remembered_and_reaches_the_plots(browser: Browser) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    ink = "return getComputedStyle(document.querySelector('.canvas .xtick text')).fill"
    browser.open("tasks/builtin-digits.html")
    browser.drawn()
    before, plot = browser.js(paper), browser.js(ink)
    button = browser.driver.find_element("css selector", "button.theme")
    assert button.text.endswith("Dark theme")
    button.click()
    after = browser.js(paper)
    assert after != before
    assert browser.js(ink) != plot
    assert button.text.endswith("Light theme")
    browser.open("index.html")
    assert browser.js(paper) == after, "another page remembers"
    browser.driver.find_element("css selector", "button.theme").click()
    assert browser.js(paper) == before
    browser.js("localStorage.clear()")
    browser.scheme("dark")
    browser.open("index.html")
    assert browser.js(paper) == after, "what the system prefers holds until something is chosen"


def test_names_that_hold_html_are_text_in_plots_too(browser: Browser) -> None:
    browser.open("ablations.html")
    browser.drawn()
    names = browser.js("return [...document.querySelectorAll('.canvas .ytick text')].map(text => text.textContent)")
    assert "alert(1)</script>&amp;'../../../etc/passwd · gap" in names[0]
    assert browser.js("return document.querySelectorAll('.canvas script, .canvas a[href]').length") == 0


def test_without_javascript_it_is_a_plain_page(browser: Browser) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    browser.open("index.html")
    rows = browser.driver.find_elements("css selector", "table:first-of-type tbody:not(.below) tr")
    assert len(rows) == ROWS
    assert rows[-1].is_displayed()
    assert not browser.driver.find_elements("css selector", ".tools, button.sort")
    assert not browser.driver.find_element("css selector", "button.theme").is_displayed()
    browser.open("ablations.html")
    assert "needs JavaScript" in browser.driver.find_element("tag name", "body").text


def test_on_paper_every_row_is_there(browser: Browser) -> None:
    browser.open("index.html")
    browser.js("dispatchEvent(new Event('beforeprint'))")
    assert len(browser.column(0)) == ROWS
    browser.js("dispatchEvent(new Event('afterprint'))")
    assert len(browser.column(0)) == 25

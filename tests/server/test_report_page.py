"""report.html as a page: what a browser, a screen reader, a printer and a telephone need of it."""

import copy
import html
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from confide.common.privacy.audit import SCOPES, bounds
from confide.server.report import audited, plots, plots_many, render_html
from confide.server.report.drawing import described, figure, png, svg
from confide.server.report.facts import Report
from confide.tests.server.test_report_facts import REPORT

CHROMIUM, PDFTOTEXT = shutil.which("chromium"), shutil.which("pdftotext")
ROUNDS, CLASSES, SITES = 120, 77, 40
PRIVATE = {
    "mode": "local",
    "unit": "example: one record of a site, added or removed",
    "adversary": "the server and all other sites",
    "sampling": "Poisson",
    "noise": "each site alone, in full",
    "secure_aggregation": False,
    "delta": 1e-5,
    "epsilon_planned": 8.0,
    "epsilon_spent": 7.99,
    "noise_multiplier": 0.7,
    "sampling_rate": 0.1,
    "clip": 1.0,
    "steps": ROUNDS,
    "epsilon_by_round": [8 * i / ROUNDS for i in range(ROUNDS + 1)],
    "composition": "",
    "accountant": "PLD",
    "cross_check": {"what": "the same by another", "epsilon": 8.0},
    "most_found": {"0.01": 0.136, "0.001": 0.03},
    "mechanism": "Gaussian",
    "statement": "One record is protected.",
    "sites": [
        {"site": f"site-{i}", "rounds": 9, "steps": 9, "epsilon_spent": 7.99, "epsilon_planned": 8.0, "delta": 1e-5}
        for i in range(SITES)
    ],
}


def audit(canaries: int, right: int) -> dict[str, Any]:
    part = {**bounds(canaries, 50, right, 1e-5), "scope": SCOPES["gradient"]}
    found = {"adversary": "the server", "confidence": 0.95, "delta": 1e-5, "excluded": [], "noise": True}
    return {**found, "kind": "words", "gradient": part}


def large() -> Report:
    """Many rounds, sites and classes with long names, an audit, and a text that is no HTML."""
    report, rng = copy.deepcopy(REPORT), np.random.default_rng(0)
    names = [f"card payment with a wrong exchange rate {i}" for i in range(CLASSES)]
    row = {
        "seconds": 0.1,
        "bytes_up": 1,
        "bytes_down": 1,
        "sites": ["site-1"],
        "failed": [],
        "accuracy": 0.5,
        "loss": 1,
    }
    report |= {
        "name": "a <b>run</b>",
        "privacy": PRIVATE,
        "rounds": [{"round": i + 1, **row, "epsilon": i / 100} for i in range(ROUNDS)],
        "partition": {"labels": names, "counts": rng.integers(0, 9, (SITES, CLASSES)).tolist()},
        "confusion": {
            "before": None,
            "after": (np.eye(CLASSES, dtype=int) * 9 + rng.integers(0, 3, (77, 77))).tolist(),
        },
        "environment": {"confide": "1", "packages": {"torch": "2"}},
        "config": {"run": {"rounds": ROUNDS}, "server": {}, "data": {"test": "x" * 200}},
        "audit": audit(1000, 45),
        **dict.fromkeys(("leakage", "robustness", "attack", "distillation", "explanation", "ledger", "personal")),
        **dict.fromkeys(("compression", "calibration", "best_round")),
    }
    report["model"]["labels"] = names
    for when in ("before", "after"):
        report[when]["macro_f1"] = 0.5
    return cast(Report, report)


class Page(HTMLParser):
    """What the tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def all(self, *names: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def text(real_plots: None) -> str:
    return render_html(large())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_first_screen_answers(text: str) -> None:
    before_contents = text[: text.index("<nav")]
    for told in ("95 % interval", "ε = 7.99", "for one record", "δ = 1e-05", "the server and all other sites", "Audit"):
        assert told in before_contents


def test_headings_are_in_order_and_ids_unique(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []


def test_contents_name_every_section_and_references_lead_somewhere(page: Page, text: str) -> None:
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"] for attributes in page.all("a")]
    assert {f"#{attributes['id']}" for attributes in page.all("h2") if "class" not in attributes} <= set(links)
    inside = [
        value for _, attributes in page.tags for key, value in attributes.items() if key in ("xlink:href", "href")
    ]
    assert {link[1:] for link in [*links, *inside] if link.startswith("#")} <= ids
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= ids


def test_nothing_is_fetched(page: Page, text: str) -> None:
    assert page.all("script", "link", "iframe") == []
    sources = [
        value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "xlink:href")
    ]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert re.findall(r"url\((?!#)", text) == []


def test_every_image_has_a_name_and_plots_keep_their_text(page: Page, text: str) -> None:
    for attributes in page.all("img"):
        assert attributes["alt"]
    roots = page.all("svg")
    assert len(roots) > 5
    assert all(root["role"] == "img" and root["aria-label"] for root in roots)
    assert "accuracy on the public test set</text>" in text


def test_tables_have_captions_and_scopes_and_boxes_that_scroll_can_be_reached(page: Page) -> None:
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    boxes = [a for a in page.all("div", "pre") if a.get("class") == "scroll" or "role" in a]
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in boxes)
    names = Counter(a["aria-label"] for a in boxes)
    assert max(names.values()) == 1


def test_names_of_the_run_are_no_html(text: str) -> None:
    assert "<h1>a &lt;b&gt;run&lt;/b&gt;</h1>" in text


def test_the_same_facts_give_the_same_page(text: str) -> None:
    assert render_html(large()) == text


def test_the_most_confused_pairs_are_listed_where_names_do_not_fit(text: str) -> None:
    assert "The pairs of classes that are confused most" in text
    found = plots.most_confused([[5, 3, 0], [0, 9, 1], [0, 0, 4]], ["a", "b", "c"])
    assert [(row["true"], row["predicted"], row["count"]) for row in found] == [("a", "b", 3), ("b", "c", 1)]
    assert found[0]["share"] == 3 / 8


@pytest.mark.parametrize(
    ("right", "told", "holds"),
    [(25, "consistent with the claim: yes", True), (50, "consistent with the claim: NO", False)],
)
def test_claim_and_audit_are_reconciled(right: int, told: str, holds: bool) -> None:
    privacy = {**PRIVATE, "epsilon_spent": 1.0}
    report = {"audit": audit(1000, right), "privacy": privacy}
    (row,) = audited.reconciled(report)
    assert row.consistent is holds
    assert told in row.words
    assert "An attacker who sees every released update can claim at most ε = 1.00" in row.words
    assert audited.verdict(report)[1] is holds


def test_a_test_that_is_too_small_says_so() -> None:
    report = {"audit": audit(100, 26), "privacy": PRIVATE}
    assert "could not have contradicted the claim" in audited.reconciled(report)[0].words
    assert "too small to contradict" in audited.verdict(report)[0]
    assert audited.verdict({"audit": None, "privacy": PRIVATE}) == (audited.NO_AUDIT, None)


def test_why_two_percentages_differ(text: str) -> None:
    shown = html.unescape(text)
    assert "Why one figure is 99.97 % and another 13.6 %" in shown
    assert "Which ε to quote to whom" in shown
    assert audited.limits({"privacy": REPORT["privacy"]}) == []


def test_letters_that_a_font_lacks_are_no_concern_of_the_terminal() -> None:
    """Warnings are errors here; a browser has other fonts."""
    drawn, axes = figure()
    axes.set_title("🌍 世界")
    assert "🌍 世界" in svg(drawn, "a", "t")
    assert png(drawn)


def test_names_of_users_are_names_in_plots() -> None:
    """No formulas, which may be wrong ones; in the legend whatever they begin with; and no wider than the plot."""
    main = {"name": "accuracy", "key": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6}
    names = ["$x_{$", "_other", "w" * 300]
    drawn = plots_many.against_epsilon([{"name": name, "main": main, "epsilon": 1.0} for name in names])
    assert "$x_{$" in svg(drawn, "a", "t")
    key = drawn.axes[0].get_legend()
    assert key is not None
    assert [text.get_text().strip().replace("\\", "")[:5] for text in key.get_texts()] == ["$x_{$", "_othe", "wwwww"]
    for picture in (plots.confusion([[1] * 3] * 3, names), plots.partition({"labels": names, "counts": [[1] * 3] * 2})):
        picture.draw_without_rendering()  # a warning where the axes have no room
        box = picture.axes[0].get_position()
        assert box.width > 0.3
        assert box.height > 0.3


def test_a_plot_is_described_by_its_axes_and_lines() -> None:
    drawn, axes = figure()
    axes.plot([1, 2], [3, 4], label="this run")
    axes.set(xlabel="round", ylabel="accuracy")
    assert described(drawn, "By round") == "By round: accuracy against round; this run"


def in_chromium(*arguments: str) -> str:
    command = [cast(str, CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways(text: str, tmp_path: Path, width: int) -> None:
    wrapper = tmp_path / "wrapper.html"
    told = "document.title = f.contentDocument.documentElement.scrollWidth"
    wrapper.write_text(
        f'<!doctype html><title></title><iframe id="f" style="border: 0; width: {width}px; height: 800px" '
        f'onload="{told}" srcdoc="{html.escape(text)}"></iframe>'
    )
    found = re.search(r"<title>(\d+)</title>", in_chromium("--dump-dom", wrapper.as_uri()))
    assert found is not None
    assert int(found[1]) <= width


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.skipif(PDFTOTEXT is None, reason="pdftotext (poppler-utils) is not installed")
def test_no_round_is_lost_in_print(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(text)
    pdf = tmp_path / "page.pdf"
    in_chromium(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", (tmp_path / "page.html").as_uri())
    told = subprocess.run(
        [cast(str, PDFTOTEXT), "-layout", pdf, "-"], capture_output=True, text=True, check=True
    ).stdout
    rounds = re.findall(r"(?m)^\s*(\d+)\s+0\.5000\s+1\.0000", told)
    assert rounds == [str(number + 1) for number in range(ROUNDS)]
    assert "x" * 50 in told.replace("\n", "").replace(" ", "")  # the configuration is unfolded

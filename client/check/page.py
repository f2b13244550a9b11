"""The page of `confide data check`: quotes records, so it is for the site's own eyes (mode 0600)."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from ..deploy.folder import write_private
from .identifiers import masked
from .look import Findings

PAGE = "check.html"
_EXAMPLES, _LETTERS, _BARS, _NAME = 12, 160, 40, 40


def write_page(folder: Path, source: str, checked: Findings, left_out: dict[int, str], seconds: float) -> Path:
    """check.html in the folder."""
    environment = Environment(loader=PackageLoader(__package__ or "", "."), autoescape=select_autoescape())
    html = environment.get_template("page.html").render(
        source=source,
        rows=len(checked.texts),
        seconds=seconds,
        cards=cards(checked),
        sections=_sections(checked),
        classes=_bars(checked.classes),
        left_out=len(left_out),
        judged=checked.judged,
    )
    path = folder / PAGE
    write_private(path, html.encode())
    return path


def cards(checked: Findings) -> list[tuple[str, int]]:
    """What was found, and in how many rows."""
    found = [
        ("empty", len(checked.empty)),
        ("broken encoding", len(checked.encoding)),
        ("exact copies", len(checked.copies)),
        ("near copies", len(checked.near)),
        ("in the test set, too", len(checked.leaked)),
        ("personal details", len({int(row) for rows in checked.details.values() for row in rows})),
        ("unlike all others", len(checked.far)),
    ]
    if checked.names is not None:
        found += [("copies with other labels", len(checked.conflicts)), ("labels that look wrong", len(checked.wrong))]
    return found


def _sections(checked: Findings) -> list[dict[str, Any]]:
    """Title, explanation, and examples as (row, text, remark)."""
    names = checked.names or [""] * len(checked.texts)
    parts = [
        ("Labels that look wrong", "Most doubtful first. Models that had not seen the row disagree with its label.",
         [(row, f"{names[row]} → {rather}") for row, rather in zip(checked.wrong, checked.rather, strict=True)]),
        ("Copies with other labels", "At least one of the labels is wrong.",
         [(row, names[row]) for row in checked.conflicts]),
        ("In the test set, too", "Trained on, they make the test say too much.",
         [(row, names[row]) for row in checked.leaked]),
        ("Nearly the same", "Beside an earlier row that shares three quarters of its runs of four letters.",
         [(row, f"like row {other + 1}") for row, other in checked.near.items()]),
        ("Unlike all others", "Farthest first, by the meaning that the backbone gives to a text.",
         [(row, names[row]) for row in checked.far]),
        ("Broken encoding", "Read in a wrong encoding once, or with control characters.",
         [(row, names[row]) for row in checked.encoding]),
        *(("Personal details: " + kind, "By pattern, hidden here. Patterns know no names: what they miss is there.",
           [(row, names[row]) for row in rows]) for kind, rows in checked.details.items()),
    ]  # fmt: skip
    return [
        {
            "title": title,
            "count": len(found),
            "what": what,
            "examples": [(int(row) + 1, _shown(checked.texts[row]), remark) for row, remark in found[:_EXAMPLES]],
        }
        for title, what, found in parts
        if found
    ]


def _shown(text: str) -> str:
    text = masked(text)
    return text if len(text) <= _LETTERS else text[:_LETTERS] + " …"


def _bars(classes: dict[str, int]) -> str | None:
    """How many rows each class has, as PNG in base64."""
    if not classes:
        return None
    shown = sorted(classes.items(), key=lambda pair: pair[1])
    if len(shown) > _BARS:
        shown = [*shown[: _BARS // 2], *shown[-_BARS // 2 :]]
    figure = Figure(figsize=(6.4, 1.0 + 0.2 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.barh(range(len(shown)), [count for _, count in shown], color="#0b6e99")
    axes.set_yticks(range(len(shown)), [name[:_NAME].replace("$", r"\$") for name, _ in shown])  # no formulas
    axes.tick_params(labelsize=8)
    axes.set(xlabel="rows")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()

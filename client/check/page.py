"""The page of `confide data check`: quotes records, so it is for the site's own eyes (mode 0600)."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from ..deploy.folder import write_private
from .identifiers import masked
from .look import Findings
from .trial import NEEDED

PAGE = "check.html"
_EXAMPLES, _LETTERS, _BARS = 12, 160, 40
_BEFORE = 4
"""of the labels around the cut: how many stand before it"""


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
        verdict=verdict(checked),
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


def verdict(checked: Findings) -> str:
    """What a trial says of the labels' ranking, and which cut holds; empty: there are no labels."""
    if checked.names is None:
        return ""
    if (judgement := checked.judgement) is None:
        return "Labels were not judged: fewer than two classes have five rows, or the texts have no words."
    trial = judgement.trial
    told = (
        f"as a trial, {trial.replaced:,} labels were replaced by other classes; of as many first places of the ranking "
        f"{trial.found:.0%} were these, labels not counted that are wrong already ({NEEDED:.0%} are needed)"
    )
    if not trial.passed:
        return (
            f"Labels cannot be judged here: {told}. No row is left out because a model doubts its label; the ranking "
            "is in labels.csv."
        )
    return (
        f"Labels can be judged: {told}. {judgement.estimated:,} are estimated to be wrong, {checked.cut:,} are named; "
        "the ranking is in labels.csv."
    )


def _sections(checked: Findings) -> list[dict[str, Any]]:
    """Title, explanation, and examples as (row, text, remark)."""
    names = checked.names or [""] * len(checked.texts)
    start = max(0, checked.cut - _BEFORE)
    parts = [
        ("Labels that look wrong", "Most doubtful first: given label → most likely label, and how probable the given "
         "one is to models that had not seen the row.", _ranked(checked, 0, checked.cut)),
        ("Labels around the cut",
         f"From place {start + 1:,} of the ranking on; the first {checked.cut:,} are named as wrong.",
         _ranked(checked, start, start + _EXAMPLES)),
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


def _ranked(checked: Findings, start: int, stop: int) -> list[tuple[int, str]]:
    """Places start … stop − 1 of the labels' ranking, with a remark."""
    if checked.names is None or (judgement := checked.judgement) is None:
        return []
    return [
        (row, f"{checked.names[row]} → {judgement.likely[place]}, {judgement.score[place]:.3f}")
        for place, row in enumerate(judgement.rows[start:stop], start=start)
    ]


def _shown(text: str) -> str:
    text = masked(text)
    return text if len(text) <= _LETTERS else text[:_LETTERS] + " …"


def _bars(classes: dict[str, int]) -> list[tuple[str, int, float]]:
    """The rows of each class, and these as a share of the largest's; of many classes the rarest and the largest."""
    shown = sorted(classes.items(), key=lambda pair: pair[1])
    if len(shown) > _BARS:
        shown = [*shown[: _BARS // 2], *shown[-_BARS // 2 :]]
    return [(name, count, count / max(1, shown[-1][1])) for name, count in reversed(shown)]

"""How a report's plots look, and their two forms: SVG inside the page, and PNG for a file of its own.

In a page the text of a plot stays text, and its colours are those of the page (style.html), light or dark.
"""

import html
import io
import re
import warnings
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, ACCENT, SECOND, SOFT, LINE = "#1f2933", "#0b6e99", "#c2410c", "#7b8794", "#dde3e9"
SERIES = ("#0072b2", "#d55e01", "#007a5e", "#a0458a", "#8a6d00", "#56789a", "#b03060", "#4a4a4a")
"""of many lines; told apart without colours by `MARKERS`"""
MARKERS = "osD^vPX*"
ON_LIGHT = "#102a43"
"""of text on a light cell, the same in both schemes"""
WIDTH = 5.4
"""inches: in a page 389 units, in which letters of 9 can be read on a telephone"""
_NAME = 24
"""characters of a name that a plot shows"""
_PAGE = {INK: "currentColor", "#000000": "currentColor", ACCENT: "var(--accent)", SECOND: "var(--warn)"}
_PAGE |= {SOFT: "var(--faint)", LINE: "var(--line)", **{color: f"var(--s{i})" for i, color in enumerate(SERIES)}}
_LOOK: Any = {  # the keys that matplotlib's stubs allow are a type that older ones lack
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "text.color": INK,
    "grid.color": LINE,
}


def figure(width: float = WIDTH, height: float = 3.2) -> tuple[Figure, Any]:
    """An empty figure with one pair of axes. width, height: inches."""
    with mpl.rc_context(_LOOK):
        drawn = Figure(figsize=(width, height), layout="constrained")
        axes = drawn.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return drawn, axes


def legend(axes: Any, **where: Any) -> Any:
    """The legend, without a frame."""
    return axes.legend(**{"fontsize": 8.5, "frameon": False, "labelcolor": INK, "loc": "best", **where})


def named(text: str) -> str:
    """A name of the user's in a plot: dollars are no formula, one with an underscore before it is in the legend, too,
    and a long one is cut."""
    cut = text if len(text) <= _NAME else f"{text[:_NAME]}…"
    return cut.replace("$", r"\$") if not cut.startswith("_") else named(f" {cut}")


def line_of(index: int) -> dict[str, Any]:
    """Colour and marker of the index-th of many lines."""
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)], "markersize": 4}


def scale(drawn: Figure, image: Any, label: str) -> None:
    """The bar of colours beside an image."""
    bar = drawn.colorbar(image, shrink=0.8, label=label)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.ax.yaxis.label.set_color(INK)


def png(drawn: Figure) -> bytes:
    """For a file of its own."""
    buffer = io.BytesIO()
    _save(drawn, buffer, format="png", dpi=130)
    return buffer.getvalue()


def svg(drawn: Figure, name: str, title: str) -> str:
    """For a page, where several stand side by side: every id begins with `name`, and the figure is named `title`."""
    buffer = io.StringIO()
    with mpl.rc_context({**_LOOK, "svg.hashsalt": name}):
        _save(drawn, buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    inside = text[text.index("<svg") :]
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", inside, flags=re.DOTALL)
    inside = re.sub(r'( id="| href="#|:href="#|url\(#)', rf"\1{name}-", inside)
    inside = re.sub(r"#[0-9a-f]{6}\b", lambda found: _PAGE.get(found[0], found[0]), inside)
    inside = inside.replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif")
    width, height = (72 * float(inches) for inches in drawn.get_size_inches())
    root = (
        f'<svg id="{name}" role="img" aria-label="{html.escape(described(drawn, title))}" '
        f'viewBox="0 0 {width:g} {height:g}" style="--natural: {width:.0f}px" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return re.sub(r"<svg.*?>", lambda _: root, inside, count=1, flags=re.DOTALL)


def _save(drawn: Figure, buffer: io.BytesIO | io.StringIO, **options: Any) -> None:
    """Does not tell the terminal that matplotlib's font lacks a letter of a name: a page has others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawn.savefig(buffer, **options)


def described(drawn: Figure, title: str) -> str:
    """What a plot shows, for whoever does not see it: its title, its axes, and the names of its lines."""
    axes = drawn.axes[0]
    across, up = axes.get_xlabel(), axes.get_ylabel()
    said = f"{title}: {up} against {across}" if across and up else f"{title}: {across or up}" if across or up else title
    names = axes.get_legend_handles_labels()[1]
    return said + (f"; {', '.join(names)}" if names else "")

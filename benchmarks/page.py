"""A hook of mkdocs: docs/reference/measurements.md ends in RESULTS.md as it stands, one level of headings lower."""

import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
PAGE = "reference/measurements.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What mkdocs reads of a page."""
    if page.file.src_uri != PAGE:
        return markdown
    return markdown + "\n\n" + re.sub(r"^#", "##", RESULTS.read_text(encoding="utf-8"), flags=re.MULTILINE)


def on_config(config: Any) -> None:
    config.watch.append(str(RESULTS))

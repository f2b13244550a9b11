"""Pages of the documentation that are made from the code equal what the code says; files that pages name are there."""

import re
from pathlib import Path

import pytest

from confide.cli import reference
from confide.common.config.section import RENAMED

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"`((?:cli|common|client|server|simulations|tests|benchmarks|docs)/[\w./-]+\.(?:py|md|html|ipynb))`")


def test_the_page_of_commands_is_that_of_the_commands() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python -m confide.cli.reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in _LINK.findall(text)]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    missing += [name for name in _FILE.findall(text) if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_sends_a_reader_to_files_that_only_we_have(page: Path) -> None:
    assert "../shared" not in page.read_text(encoding="utf-8")


def test_renamed_keys_are_told() -> None:
    text = (ROOT / "docs" / "reference" / "refused.md").read_text(encoding="utf-8")
    assert all(f"| `{old}` | `{new}` |" in text for old, new in RENAMED.items())


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150

"""docs/reference/configuration.md is what the tables and the rules give."""

import pytest

from confide.common.config import reference
from confide.common.config.reference import PAGE, page
from confide.common.config.rules import RULES
from confide.common.config.run import RunConfig, SiteConfig


def test_the_page_is_up_to_date() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(), "run: python -m confide.common.config.reference"


@pytest.mark.parametrize("file", [RunConfig, SiteConfig])
def test_every_key_says_what_it_means(file) -> None:
    tables = [reference._Table("", file), *reference._Table("", file).within()]
    assert not [f"{table.name}.{key}" for table in tables for key in table.keys if not table.documented.get(key)]


@pytest.mark.parametrize(
    "line",
    [
        "### [data.partition]",
        "### [datasets.NAME]",
        "| `rounds` | integer ≥ 1 | `10` | how often the server asks the sites for updates |",
        "| `optimizer` | `sgd`, `momentum` or `adam` | `'adam'` | of the sites, or of the server where it takes the "
        "steps |",
        "| `labels` | list: text | – | class names in order; omitted: those of the public test and validation sets, "
        "sorted |",
        "| `test` | text | required | public, at the server: the before / after comparison |",
        "| `server.groups` | a number of sites that it does not divide | groups are of one size | choose a divisor of "
        "`data.partition.clients` |",
    ],
)
def test_lines_of_the_page(line: str) -> None:
    assert line in page().splitlines()


def test_a_row_for_each_rule() -> None:
    refused = page().split("## Combinations that are refused")[1]
    assert all(f"| `{rule.key}` | {rule.when} |" in refused for rule in RULES)

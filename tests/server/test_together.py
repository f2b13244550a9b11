"""`confide compare`: finished runs side by side."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfigError
from confide.server.report.together import PAGE, TABLE, side_by_side, write
from confide.tests.server.test_report_facts import REPORT
from confide.tests.server.test_report_page import PRIVATE


def leave(folder: Path, **changes: Any) -> Path:
    """A folder with the report of a run, of which parts are changed."""
    report = copy.deepcopy(REPORT)
    report["rounds"] = [{"round": i, "bytes_up": 10, "bytes_down": 20, "seconds": 0.5} for i in (1, 2)]
    report["config"] = {"data": {"test": "t.csv"}, "run": {"rounds": 2, "output": str(folder)}}
    for key, value in changes.items():
        report[key] = {**report[key], **value}
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def main(value: float, **changes: Any) -> dict[str, Any]:
    found = {**REPORT["after"]["main"], "value": value, "low": value - 0.03, "high": value + 0.03, **changes}
    return {"main": found}


def test_figures_costs_and_keys_that_differ(tmp_path: Path) -> None:
    config = {"data": {"test": "t.csv"}, "run": {"rounds": 2, "output": "elsewhere"}, "privacy": {"epsilon": 8.0}}
    one = leave(tmp_path / "one", after=main(0.7))
    two = leave(tmp_path / "two", after=main(0.8), privacy=PRIVATE, config=config)
    facts = side_by_side([one, two])
    first, second = facts["rows"]
    assert [row["name"] for row in facts["rows"]] == ["one", "two"]
    assert (first["bytes_up"], first["bytes_down"], first["seconds"], first["rounds"]) == (20, 40, 1.0, 2)
    assert (first["epsilon"], second["epsilon"]) == (None, 7.99)
    assert first["difference"] is None
    assert second["difference"]["value"] == pytest.approx(0.1)
    assert second["difference"]["high"] - second["difference"]["value"] == pytest.approx(0.03 * 2**0.5)
    assert facts["keys"] == {"privacy.epsilon": [None, 8.0]}


def test_the_page_and_the_table(tmp_path: Path) -> None:
    one = leave(tmp_path / "one", after=main(0.7))
    two = leave(tmp_path / "two", after=main(0.75), privacy=PRIVATE)
    write(tmp_path / "out", side_by_side([one, two]))
    page = (tmp_path / "out" / PAGE).read_text()
    assert "+5.0 ± 4.2 points" in page
    assert 'id="against-epsilon"' in page
    assert "In no key." in page
    rows = list(csv.DictReader((tmp_path / "out" / TABLE).read_text().splitlines()))
    assert [row["value"] for row in rows] == ["0.7", "0.75"]
    assert rows[1]["epsilon"] == "7.99"


def test_a_spreadsheet_shows_names_and_computes_nothing(tmp_path: Path) -> None:
    """A name that begins as a formula is text there, and a number stays one."""
    config = {"data": {"test": "t.csv"}, "run": {"output": "x"}, "model": {"note": "@SUM(1)", "n": -2, "s": "+a"}}
    one, two = leave(tmp_path / "=1+1"), leave(tmp_path / "-x", config=config)
    write(tmp_path / "out", side_by_side([one, two]))
    rows = list(csv.reader((tmp_path / "out" / TABLE).read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == ["'=1+1", "'-x"]
    assert {"'@SUM(1)", "-2", "'+a"} <= set(rows[2])
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)


def test_other_test_records_give_no_difference(tmp_path: Path) -> None:
    one, two = leave(tmp_path / "one", after=main(0.7)), leave(tmp_path / "two", after=main(0.8, records=9))
    assert side_by_side([one, two])["rows"][1]["difference"] is None


@pytest.mark.parametrize(
    ("which", "told"),
    [(["one"], "1 run received"), (["one", "one"], "twice"), (["one", "other"], "judged by the same figure")],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, which: list[str], told: str) -> None:
    leave(tmp_path / "one")
    leave(tmp_path / "other", after=main(0.8, key="r2", name="R²"))
    with pytest.raises(ConfigError, match=told):
        side_by_side([tmp_path / name for name in which])

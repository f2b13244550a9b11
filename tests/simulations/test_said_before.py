"""What a run will not learn of is said, or refused, before anything is spent."""

import logging
from pathlib import Path

import pytest

from confide.common.errors import ConfigError
from confide.simulations.run import prepare
from confide.tests.tiny import sentences, write_csv


@pytest.fixture
def rows(tmp_path: Path):
    def write(*parts: list[tuple[str, str]]) -> str:
        return str(write_csv(tmp_path / "rows.csv", [row for part in parts for row in part]))

    return write


GOOD = [row for row in sentences(40, 3) if row[1] == "positive"]
BAD = [row for row in sentences(40, 3) if row[1] == "negative"]


def test_one_class_is_refused(make_config, rows) -> None:
    for data, told in (({}, "1 class found in "), ({"labels": ("positive",)}, "1 class received ")):
        with pytest.raises(ConfigError, match=told):
            prepare(make_config(data={"test": rows(GOOD), **data}))


def test_classes_without_a_record_and_sites_of_one_record_are_said(make_config, rows, caplog) -> None:
    with caplog.at_level(logging.WARNING, "confide.data"):
        prepare(make_config(data={"train": rows(GOOD[:5])}))
    assert "1 of 2 classes (the first is 'negative')" in caplog.text
    assert "all records are of one class" in caplog.text
    assert "3 of 4 sites hold one record alone (the first is site-2)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "confide.data"):
        prepare(make_config(data={"train": rows(GOOD, BAD)}))
    assert caplog.text == ""


def test_a_label_of_the_test_set_that_no_record_has_is_said(make_config, rows, caplog) -> None:
    with caplog.at_level(logging.WARNING, "confide.data"):
        prepare(make_config(data={"test": rows(GOOD, BAD, [("a film", "neutral")])}))
    assert "1 of 3 classes (the first is 'neutral')" in caplog.text

"""Tables by any name, files that are not there, and urls with passwords in any place."""

import sqlite3
from pathlib import Path

import pytest

from confide.common.data.formats import load
from confide.common.data.sql import shown
from confide.common.errors import DataError

NAMES = ["m", "selections", "selected rows", 'with "quotes"', "it's", "größe", "order", "a#b", "m; DROP TABLE m"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "r.db") as database:
        for number, name in enumerate(NAMES):
            quoted = '"' + name.replace('"', '""') + '"'
            database.execute(f"CREATE TABLE {quoted} (text, label)")
            database.execute(f"INSERT INTO {quoted} VALUES (?, 'yes')", (str(number),))  # noqa: S608  # a test's own
    database.close()
    return f"sqlite:///{tmp_path}/r.db"


def test_a_table_of_any_name(url: str) -> None:
    for number, name in enumerate(NAMES):
        assert load(f"{url}#{name}").columns["text"] == [str(number)]
    assert load(f"{url}#SELECT text FROM m").columns == {"text": ["0"]}  # noqa: S608  # fixed text
    assert load(f"{url}# select\ntext FROM m").columns == {"text": ["0"]}


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.db: no such file"):
        load(f"sqlite:///{tmp_path}/gone.db#m")
    assert not (tmp_path / "gone.db").exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("postgresql://u:measles@h/db#t", "postgresql://…@h/db#t"),
        ("postgresql://u:mea@sles@h/db#t", "postgresql://…@h/db#t"),
        ("postgresql://u:measles#1@h/db#t", "postgresql://…@h/db#t"),
        ("postgresql://h/db?user=u&password=measles#t", "postgresql://h/db?…#t"),
        ("postgresql://h/db?password=measles", "postgresql://h/db?…"),
        ("POSTGRESQL://u:measles@h/db#t", "POSTGRESQL://…@h/db#t"),
        ("sqlite:///r.db#SELECT '?', 'a@b' FROM t", "sqlite:///r.db#SELECT '?', 'a@b' FROM t"),
        ("sqlite:///r.db?mode=ro#t", "sqlite:///r.db?…#t"),
        ("rows.csv", "rows.csv"),
    ],
)
def test_no_password_is_shown(source: str, expected: str) -> None:
    assert shown(source) == expected
    if "measles" in source:
        with pytest.raises(DataError) as refused:
            load(source)
        assert "measles" not in str(refused.value)


def test_a_mistyped_url_is_not_asked_at_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("datasets.load_dataset", asked)
    for source in ("sqlite:/r.db#t", "SQLITE:///r.db#t", "owner/name:train#t"):
        with pytest.raises(DataError):
            load(source)

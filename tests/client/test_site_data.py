"""`confide site check` on a site's own rows: how many contribute nothing, which lines, and which classes there are."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from confide.client.deploy.setup import Check, check_site, init_site
from confide.common.credentials import make_ca
from confide.tests.row_files import png


def checked(folder: Path, source: str) -> Check:
    if not (folder / "ca.crt").exists():
        make_ca(folder)
    site = folder / f"site-{source}"
    init_site(site, "a", "127.0.0.1:9", folder / "ca.crt", "default", f"../{source}", 8.0)
    return next(check for check in check_site(site) if check.what == "data set default")


def test_bad_rows_are_counted_and_named_and_never_shown(tmp_path: Path) -> None:
    rows = ["text,label", *(f"text {i},{('yes', 'no')[i % 3 == 0]}" for i in range(30)), "measles,yess"]
    content = "\n".join(rows).encode() + b"\n ,yes\nmeasles \xff,no\nmeasles,yes,more\n"
    (tmp_path / "a.csv").write_bytes(content)
    found = checked(tmp_path, "a.csv")
    assert found.passed
    assert found.detail == (
        "31 rows, 3 classes: yes (20), no (10), yess (1), 3 of 34 rows contribute nothing: row 33 (column 'text': the "
        "field is empty), row 34 (column 'text': bytes that are not UTF-8), row 35 (3 columns instead of 2)"
    )


def test_many_are_counted_and_the_first_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n' + "{measles\n" * 1203)
    found = checked(tmp_path, "a.jsonl")
    assert found.passed
    assert found.detail.startswith("1 rows, 1 classes: 1 (1), 1,203 of 1,204 rows contribute nothing: row 2 (it cannot")
    assert found.detail.endswith("row 6 (it cannot be parsed), …")
    assert "measles" not in found.detail


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"text,label\n ,yes\n", "1 of 1 rows contributes nothing: row 2 (column 'text': the field is empty)"),
        (b"text,label\n", "there are no rows"),
        (b"body,label\na,yes\n", "column 'text' is missing; none of the 2 fields of the first line is called so"),
        (b"", "the file is empty"),
    ],
)
def test_nothing_usable_fails(tmp_path: Path, content: bytes, part: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    found = checked(tmp_path, "a.csv")
    assert not found.passed
    assert part in found.detail


def test_labels_of_other_tasks(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("Ann B-per\nsees O\n\nmeasles\n\nit O\n")
    assert checked(tmp_path, "a.conll").detail == (
        "2 rows, 2 classes: O (2), B-per (1), 1 of 3 rows contributes nothing: row 2 (line 4: a word without a tag)"
    )
    (tmp_path / "n.csv").write_text("text,label\n" + "".join(f"a,{i / 7}\n" for i in range(100)) + "a,measles\n")
    assert checked(tmp_path, "n.csv").detail == (
        "100 rows, 1 of 101 rows contributes nothing: row 102 (column 'label': not a finite number)"
    )
    (tmp_path / "m.csv").write_text("text,label\n" + "".join(f"a,name {i}\n" for i in range(100)))
    assert checked(tmp_path, "m.csv").detail == "100 rows, 100 different labels"
    (tmp_path / "c.csv").write_text("text,label\n" + "".join(f"a,c{i}\n" for i in range(16) for _ in range(20 - i)))
    assert checked(tmp_path, "c.csv").detail == (
        "200 rows, 16 classes: c0 (20), c1 (19), c2 (18), c3 (17), c4 (16), c5 (15), …, c11 (9), c12 (8), c13 (7), "
        "c14 (6), c15 (5)"
    )


def test_images_are_looked_at(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([png(1), b"measles", png(2)], pa.binary()), "label": ["a", "a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    found = checked(tmp_path, "p.parquet")
    assert found.passed
    assert found.detail.startswith(
        "2 rows, 2 classes: a (1), b (1), 1 of 3 rows contributes nothing: row 2 (column 'im"
    )
    assert "measles" not in found.detail


def test_persons_of_two_data_sets_are_counted(tmp_path: Path) -> None:
    """Each has a budget of its own, and nobody adds them up for a person who is in both."""
    for name, people in (("a", "p1 p2 p3"), ("b", "p3 p2 p9")):
        rows = [f"{who},text {who} {name},yes" for who in people.split()]
        (tmp_path / f"{name}.csv").write_text("\n".join(["who,text,label", *rows]) + "\n")
    make_ca(tmp_path)
    site = tmp_path / "site"
    init_site(site, "a", "127.0.0.1:9", tmp_path / "ca.crt", "default", "../a.csv", 8.0)
    text = (site / "site.toml").read_text().replace('source = "../a.csv"', 'source = "../a.csv"\nperson = "who"')
    other = '\n[datasets.other]\nsource = "../b.csv"\nperson = "who"\nepsilon = 8.0\ndelta = 1e-5\n'
    (site / "site.toml").write_text(text + other)
    found = next(check for check in check_site(site) if check.what == "persons")
    assert found.passed
    assert found.detail.startswith("2 persons of 'default' are in 'other', too: what both spend adds up for them")
    assert not any(who in found.detail for who in ("p2", "p3"))
    (tmp_path / "b.csv").write_text("who,text,label\np9,text,yes\n")
    found = next(check for check in check_site(site) if check.what == "persons")
    assert found.detail == "none has rows in two data sets with budgets of their own"

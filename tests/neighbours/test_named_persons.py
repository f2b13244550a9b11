"""Runs whose unit is the record at a site whose site.toml names persons; persons that only look like one."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from confide.client.deploy.host import readable
from confide.common.config.tables import DataSection
from confide.common.data import sources
from confide.common.data.sources import of_persons, read_checked
from confide.tests.neighbours.cases import CLASSES, CLIP, SLACK, Case, adapter_of, run_of
from confide.tests.neighbours.rows import Row, Table
from confide.tests.neighbours.site import Observer, Sites, ask, everybody

LABELS = ["negative", "positive"]


@pytest.mark.parametrize("case", [Case("bert", train="head"), Case("bert", views="words")], ids=str)
def test_a_record_of_a_person_with_many_displaces_no_other(
    sites: Sites, watch: Observer, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a person's rows some are read where the unit is the person. Where it is the record, another one came in for
    each that was removed: 1.9 C."""
    monkeypatch.setattr(sources, "PERSON_MOST", 5)
    rows = [Row(f"{i}", "good", ("ann", f"the film was {'very ' * i}good", CLASSES[i % 2])) for i in range(9)]
    rows.append(Row("other", "good", ("bob", "this story was cold", CLASSES[0])))
    table, config = Table(("patient", "text", "label"), tuple(rows)), run_of(sites, case, 16)
    host = sites.host(table, person="patient")
    adapter = adapter_of(host, config)
    (whole,) = ask(watch, host, config, adapter, [everybody])
    assert len(whole.keys) == len(rows)
    for row in rows:
        (fewer,) = ask(watch, sites.host(table.without(row), person="patient"), config, adapter, [everybody])
        assert sorted(fewer.keys) == sorted(set(whole.keys) & set(fewer.keys))
        assert len(fewer.keys) == len(rows) - 1
        assert np.linalg.norm(whole.sums[0] - fewer.sums[0]) <= CLIP + SLACK


def written(folder: Path, people: list[object], form: str) -> str:
    texts = [f"the film was {'very ' * i}good" for i in range(len(people))]
    rows = [{"who": who, "text": text, "label": "positive"} for who, text in zip(people, texts, strict=True)]
    file = folder / f"rows.{form}"
    if form == "parquet":
        columns = {"who": pa.array(people), "text": texts, "label": ["positive"] * len(people)}
        pyarrow.parquet.write_table(pa.table(columns), file)
    elif form == "csv":
        lines = [f"{'' if who is None else who},{text},positive" for who, text in zip(people, texts, strict=True)]
        file.write_text("\n".join(["who,text,label", *lines]) + "\n")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read(source: str) -> sources.CheckedRows:
    return read_checked(source, DataSection(train=source, test=source, person="who"), LABELS)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
def test_persons_whose_numbers_were_rounded_are_nobody(tmp_path: Path, form: str) -> None:
    """A column of numbers of 18 digits with one gap becomes one of floats, and a hundred persons eight."""
    people: list[object] = [float(10**17 + 3 * i) for i in range(20)]
    found = read(written(tmp_path, [*people, 7.0, 8.0], form))
    assert found.rows.person is not None
    assert found.rows.person.tolist() == ["7", "8"]
    assert {problem.what.partition(";")[0] for problem in found.problems} == {
        "a rounded number, which may stand for several persons"
    }


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("who", [10**17, "1e10", "12e34", "1.2.3", "ann", 2**53 - 1])
def test_other_names_are_names(tmp_path: Path, form: str, who: object) -> None:
    found = read(written(tmp_path, [who, who], form))
    assert found.rows.person is not None
    assert found.rows.person.tolist() == [str(who)] * 2


@pytest.mark.parametrize("who", ["", " ", "\u200b", "\0", "#VALUE!", "undefined", None])
def test_nobody_is_no_person(tmp_path: Path, who: object) -> None:
    found = read(written(tmp_path, ["ann", who], "jsonl"))
    assert len(found.rows) == 1
    assert "no person is named" in found.problems[0].what


def test_names_that_end_in_nothing_are_two_units(sites: Sites, tmp_path: Path) -> None:
    """numpy's strings lose zeros at their ends."""
    found = read(written(tmp_path, ["ann", "ann\0", "ann\0\0", "ann"], "jsonl"))
    case = Case("bert", train="head")
    config = run_of(sites, case, 1)
    host = sites.host(Table(("text", "label"), (Row("a", "good", ("the film was good", CLASSES[0])),)))
    model = host.enter(config.to_flat()).worker().model
    _, records = readable(config, model, of_persons(found.rows), b"secret")
    assert records.person is not None
    assert len(set(records.person.tolist())) == 3


@pytest.mark.parametrize("column", ["label", "text", "who"])
def test_a_column_of_whole_and_of_broken_numbers_reads_alike(tmp_path: Path, column: str) -> None:
    """A writer makes floats of whole numbers where one row has none."""
    base = {"who": ["1", "2"], "text": ["a", "b"], "label": ["0", "1"]}
    found = []
    for values in ([0, 1], [0.0, 1.0], [0.0, 1.0, None]):
        rows = {name: pa.array([*one, one[-1]][: len(values)]) for name, one in base.items()}
        rows[column] = pa.array(values)
        file = tmp_path / "rows.parquet"
        pyarrow.parquet.write_table(pa.table(rows), file)
        data = DataSection(train=str(file), test=str(file), person="who")
        checked = read_checked(str(file), data, ["0", "1"]).rows.take(np.arange(2))
        assert checked.person is not None
        assert checked.labels is not None
        found.append((checked.text, checked.labels.tolist(), checked.person.tolist()))
    assert found[0] == found[1] == found[2]

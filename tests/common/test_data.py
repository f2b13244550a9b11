"""Sources and their errors: file, row and column are named, no content of a row is shown."""

import gzip
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from confide.common.config.tables import DataSection, PartitionSection
from confide.common.data import demo
from confide.common.data.classes import label_names
from confide.common.data.formats import Problem, load
from confide.common.data.record_keys import record_keys
from confide.common.data.sources import content_digest, examine, read_rows, shuffled_limit
from confide.common.errors import DataError
from confide.common.types import Reads

LABELS = ["no", "yes"]
ROWS = [("first text", "yes"), ("second, with comma", "no"), ("third\nover two lines", "yes")]
SECRET = "patient Smith has measles"


def section(**changes) -> DataSection:
    return DataSection(train="unused", test="unused", **changes)


def write_all(folder: Path) -> dict[str, str]:
    """The same rows in every kind of file."""
    table = pa.table({"text": [t for t, _ in ROWS], "label": [label for _, label in ROWS]})
    (folder / "r.csv").write_text(
        'text,label\nfirst text,yes\n"second, with comma",no\n"third\nover two lines",yes\n', encoding="utf-8"
    )
    (folder / "r.jsonl").write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in ROWS))
    pyarrow.parquet.write_table(table, folder / "r.parquet")
    with sqlite3.connect(folder / "r.db") as database:
        database.execute("CREATE TABLE messages (text TEXT, label TEXT)")
        database.executemany("INSERT INTO messages VALUES (?, ?)", ROWS)
    database.close()
    return {
        "csv": str(folder / "r.csv"),
        "jsonl": str(folder / "r.jsonl"),
        "parquet": str(folder / "r.parquet"),
        "sql table": f"sqlite:///{folder}/r.db#messages",
        "sql query": f"sqlite:///{folder}/r.db#SELECT text, label FROM messages",  # noqa: S608  # fixed text
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "sql table", "sql query"])
def test_every_source_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    rows = read_rows(write_all(tmp_path)[kind], section(), LABELS)
    assert rows.text == [text for text, _ in ROWS]
    assert rows.labels is not None
    np.testing.assert_array_equal(rows.labels, [1, 0, 1])
    assert len(rows) == 3


def test_a_cached_hub_data_set_is_read_with_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loading code of `datasets` on a local folder; class numbers become names."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=LABELS)})
    folder = tmp_path / "hub" / "tiny"
    folder.mkdir(parents=True)
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(folder / "train.parquet")
    monkeypatch.chdir(tmp_path)
    rows = read_rows("hub/tiny:train", section(), LABELS)
    assert rows.labels is not None
    np.testing.assert_array_equal(rows.labels, [1, 0])


def refused(source: str | Path, data: DataSection | None = None, labels: list[str] | None = LABELS, **kw) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(str(source), data or section(), labels, **kw)
    message = str(caught.value)
    assert SECRET not in message
    assert "measles" not in message
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_missing_file_and_unknown_kind(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "gone.csv")
    assert "no file of a known kind" in refused("nobody/nothing")


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    assert "the file is empty" in refused(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("text,label\n")
    assert "there are no rows" in refused(tmp_path / "b.csv")


def test_missing_column_lists_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"body,label\n{SECRET},yes\n")
    message = refused(tmp_path / "a.csv")
    assert "column 'text' is missing; the columns are: body, label" in message


def test_unknown_label_names_row_and_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\nfine,yes\n{SECRET},measles\n")
    message = refused(tmp_path / "a.csv")
    assert f"{tmp_path / 'a.csv'}: row 3, column 'label'" in message
    assert "allowed: no, yes" in message


def test_a_label_set_that_differs_between_sites_is_refused_at_the_site_that_differs(tmp_path: Path) -> None:
    for site, label in (("a", "yes"), ("b", "perhaps")):
        (tmp_path / f"{site}.csv").write_text(f"text,label\nfine,{label}\n")
    assert len(read_rows(str(tmp_path / "a.csv"), section(), LABELS)) == 1
    assert "b.csv: row 2, column 'label'" in refused(tmp_path / "b.csv")


def test_empty_fields(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nfine,yes\n  ,no\n")
    assert "row 3, column 'text': the field is empty" in refused(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text('{"text": "fine", "label": "yes"}\n{"text": null, "label": "no"}\n')
    assert "row 2, column 'text': the field is empty" in refused(tmp_path / "a.jsonl")


def test_bytes_that_are_not_utf8_name_row_and_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,label\nfine,yes\n"patient, Smith \xe9 has measles",yes\n')
    assert "row 3, column 'text': bytes that are not UTF-8" in refused(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"text,label\nfine,\xff\n")
    assert "row 2, column 'label'" in refused(tmp_path / "b.csv")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "measles \xff", "label": "yes"}\n')
    assert "row 1, column 'text': bytes that are not UTF-8" in refused(tmp_path / "a.jsonl")


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\nfine,yes\n{SECRET},yes,more\n")
    assert "3 columns instead of 2" in refused(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text('{"text": "measles"\n')
    assert "it cannot be parsed" in refused(tmp_path / "a.jsonl")
    (tmp_path / "a.parquet").write_text("measles")
    assert "not a readable parquet file" in refused(tmp_path / "a.parquet")


def test_sql_errors_hide_passwords_and_rows(tmp_path: Path) -> None:
    source = write_all(tmp_path)["sql table"]
    assert "no table named" in refused(source.partition("#")[0])
    assert "the query failed (DatabaseError)" in refused(source.replace("messages", "measles_table"))
    message = refused("postgresql://user:s3cret@127.0.0.1/x")
    assert "s3cret" not in message


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("text", ["a", "good", "film"], "a list"),
        ("text", {"body": "a good film"}, "an object"),
        ("text", [{"role": "user", "content": "a good film"}], "a list"),
        ("label", [0, 2], "a list"),
    ],
)
def test_what_is_no_text_is_refused_by_row_and_not_made_one(
    tmp_path: Path, suffix: str, column: str, value: object, kind: str
) -> None:
    rows: list[dict[str, object]] = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    if suffix == "parquet":  # a column has one type
        rows[0][column] = None
    rows[1][column] = value
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = section()
    problems: list[Problem] = []
    left = read_rows(str(path), data, ["x", "y"], problems=problems)  # as at a site
    told = f"row 2, column '{column}': {kind} where a text or a number is expected"
    assert told in [str(problem) for problem in problems][-1]
    assert len(left) == len(rows) - len(problems)
    rows[0][column] = value
    if suffix == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=f"column '{column}': {kind}"):
        read_rows(str(path), data, ["x", "y"])


def test_what_looks_like_a_file_is_never_asked_at_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confide.common.data.formats.rows_of", lambda source: pytest.fail(source))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ag_news").mkdir()
    for source in ("rows.xlsx", "rows.parquet.gz", "rows.gz", "rows.zst", "./rows", "/nowhere/rows", "ag_news"):
        assert "no kind of file that is read; allowed: csv, tsv, jsonl" in refused(source)
    assert "no such file" in refused("rows.json")


@pytest.mark.parametrize("name", ["json", "pandas", "CSV:{", "text:train", "a b", "a/b/c", "imagefolder"])
def test_readers_of_a_library_are_no_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail(name))
    (tmp_path / "rows.json").write_text('{"text": "a", "label": "no"}')
    assert "neither a file nor a data set of the hub" in refused(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", '\ufeff[{"text": "a, \\"b\\"", "label": "no"},\n {"text": "c\\td", "label": "yes"}]'),
        ("lines.json", '{"text": "a, \\"b\\"", "label": "no"}\n{"text": "c\\td", "label": "yes"}\n'),
        ("tab.tsv", 'text\tlabel\n"a, ""b"""\tno\r\n"c\td"\tyes\n'),
    ],
)
def test_json_lists_and_tabs(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    found = read_rows(str(tmp_path / name), section(), LABELS)
    assert found.text == ['a, "b"', "c\td"]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1]


def test_json_that_is_no_list_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"data":\n [{"text": "a", "label": "no"}]}')
    assert "one object; expected a list of objects" in refused(str(path))
    path.write_text('[{"text": "a", "label": "no"},')
    assert "a list that cannot be parsed as JSON" in refused(str(path))
    path.write_text('[{"text": "a", "label": "no"}, 3]')
    assert "row 2" in refused(str(path))
    path.write_text('{"text": "a", "label": "no"}')
    assert len(read_rows(str(path), section(), LABELS)) == 1


def test_natural_column_and_instructions(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,a,ward\nwhat?,that,north\nwho?,they,south\n")
    data = section(prompt="q", response="a", partition=PartitionSection(kind="natural", column="ward", clients=2))
    rows = read_rows(str(tmp_path / "a.csv"), data, None, whose=True)
    assert (rows.text, rows.response) == (["what?", "who?"], ["that", "they"])
    assert rows.group is not None
    assert rows.group.tolist() == ["north", "south"]
    wrong = data.model_copy(update={"partition": PartitionSection(kind="natural", column="floor", clients=2)})
    assert "column 'floor' is missing" in refused(tmp_path / "a.csv", wrong, None, whose=True)


def test_labels_are_sorted_as_numbers_or_names(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("text,label\n" + "".join(f"x,{i}\n" for i in (10, 9, 0)))
    (tmp_path / "s.csv").write_text("text,label\nx,pear\nx,apple\n")
    assert label_names([str(tmp_path / "n.csv")], section()) == ["0", "9", "10"]
    assert label_names([str(tmp_path / "s.csv")], section()) == ["apple", "pear"]


def test_limit_is_a_seeded_choice(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{LABELS[i % 2]}\n" for i in range(50)))
    rows = read_rows(str(path), section(), LABELS)
    assert shuffled_limit(rows, None, 1) is rows
    first, again, other = (shuffled_limit(rows, 10, seed) for seed in (1, 1, 2))
    assert first.text == again.text != other.text
    assert len(first) == 10
    assert first.labels is not None
    assert [LABELS[i] for i in first.labels] == [LABELS[int(t.split()[1]) % 2] for t in first.text]


class TestDemo:
    def test_is_reproducible_and_balanced(self) -> None:
        table = demo.table("validation")
        assert table.equals(demo.table("validation"))
        counts = np.unique(table["label"].to_pylist(), return_counts=True)[1]
        assert len(counts) == 6
        assert counts.min() > 40

    def test_no_keyword_decides(self) -> None:
        """A bag-of-words logistic regression on 200 rows stays under 0.9."""
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression

        train, test = demo.table("train?rows=200"), demo.table("test")
        words = CountVectorizer(ngram_range=(1, 2))
        model = LogisticRegression(max_iter=2000).fit(
            words.fit_transform(train["text"].to_pylist()), train["label"].to_pylist()
        )
        assert model.score(words.transform(test["text"].to_pylist()), test["label"].to_pylist()) < 0.9

    def test_holds_personal_details_and_label_noise(self) -> None:
        texts = " ".join(demo.table("train?rows=400")["text"].to_pylist()).lower()
        assert all(mark in texts for mark in ("@example.com", "07700 900", "my iban is", "i was born on"))
        clean = demo.generate(2000, 5)
        assert 0 < demo.LABEL_NOISE < 0.1
        assert len(set(clean["text"].to_pylist())) > 1900

    @pytest.mark.parametrize("spec", ["nosuch", "train?rows=0", "train?rows=x"])
    def test_other_splits_are_refused(self, spec: str) -> None:
        with pytest.raises(DataError, match="allowed: demo:train"):
            demo.table(spec)


def test_pairs_are_read_as_two_answers_and_examined(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("q,better,worse\nwhat?,this,that\nwho?,they,\n")
    data = DataSection(test=str(path), prompt="q", chosen="better", rejected="worse")
    found = examine(str(path), data)
    assert (found.rows.text, found.rows.response, found.rows.rejected) == (["what?"], ["this"], ["that"])
    assert [(problem.row, problem.column) for problem in found.problems] == [(3, "worse")]
    problems: list = []
    rows = read_rows(str(path), data, None, reads=Reads(label=None, pairs=True), problems=problems)
    assert (rows.response, rows.rejected, len(problems)) == (["this"], ["that"], 1)
    assert rows.within(2).rejected == ["th"]
    assert content_digest(str(path), data) != content_digest(str(path), data.model_copy(update={"rejected": None}))
    # a pair's own key covers both answers
    other = replace(rows, rejected=["those"])
    assert record_keys(rows, b"")[0] != record_keys(other, b"")[0]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "conll"])
def test_packed_files_are_read(tmp_path: Path, kind: str) -> None:
    mark = "\t" if kind == "tsv" else ","
    written = {
        "csv": f"text{mark}label\ngood film{mark}a\nbad film{mark}b\n",
        "jsonl": '{"text": "good film", "label": "a"}\n{"text": "bad film", "label": "b"}\n',
        "json": '[{"text": "good film", "label": "a"}, {"text": "bad film", "label": "b"}]',
        "conll": "good a\nfilm a\n\nbad b\nfilm b\n",
    }
    content = written["csv" if kind == "tsv" else kind].encode()
    plain, packed = tmp_path / f"rows.{kind}", tmp_path / f"rows.{kind}.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    assert load(str(packed), ["text", "label"]).columns == load(str(plain), ["text", "label"]).columns
    packed.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(DataError, match="not a readable gzip file, or cut"):
        load(str(packed))
    packed.write_bytes(content)
    with pytest.raises(DataError, match="not a readable gzip file, or cut"):
        load(str(packed))


@pytest.mark.parametrize("mark", ["\t", ";", "|"])
def test_another_separator_is_that_of_the_header(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'\ufeff\ntext{mark}label\n"good, {mark}film"{mark}a\nbad, film{mark}b\n', encoding="utf-8")
    found = load(str(path))
    assert found.columns == {"text": [f"good, {mark}film", "bad, film"], "label": ["a", "b"]}
    path.write_text(f"text\ngood{mark} film\n")
    assert load(str(path)).columns == {"text": [f"good{mark} film"]}
    path.write_text(f"text,a{mark}b\ngood{mark}film,a\n")
    assert load(str(path)).columns == {"text": [f"good{mark}film"], f"a{mark}b": ["a"]}


def test_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "rows.TXT").write_bytes("\ufeffa, b\r\n\n  c\td\n".encode() + b"\xff\n")
    found = load(str(tmp_path / "rows.TXT"))
    assert found.columns == {"text": ["a, b", "  c\td", "\udcff"]}
    assert "row 3, column 'text': bytes that are not UTF-8" in refused(tmp_path / "rows.TXT", section(), None)


def test_zstandard_and_what_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    line = b'{"text": "a", "label": "no"}\n'
    with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as packed:
        packed.write(line * 2000)
    assert len(read_rows(str(path), section(), LABELS)) == 2000
    content = path.read_bytes()
    for size in (20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert "not a readable zstd file, or cut" in refused(str(path))
    path.write_bytes(b"good")
    assert "not a readable zstd file, or cut" in refused(str(path))

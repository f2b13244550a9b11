"""The digest of a source's rows, and its raw table."""

import json
import os
from pathlib import Path

import pytest

from confide.common.config.tables import DataSection
from confide.common.data.formats import Problem
from confide.common.data.sources import content_digest, read_checked, read_table, source_contents
from confide.common.errors import DataError
from confide.tests.row_files import (
    DATA,
    ENCODED_GOOD,
    IMAGES,
    IMAGES_GOOD,
    LABELS,
    csv_file,
    database,
    encoded_images,
    images,
    jsonl_file,
    parquet_file,
    png,
)


class TestRawTables:
    def test_rows_that_cannot_be_parsed_are_left_out_and_the_others_keep_their_numbers(self, tmp_path: Path) -> None:
        source = csv_file(tmp_path, [b"a,yes\n", b"a,b,c\n", b"\xff,no\n", b"d,no\n", b"e\n"])
        problems: list[Problem] = []
        assert read_table(source, DATA, problems).to_pylist() == [
            {"text": "a", "label": "yes"},
            {"text": "d", "label": "no"},
        ]
        assert [one.row for one in problems] == [3, 4, 6]
        with pytest.raises(DataError, match="row 3: 3 columns instead of 2"):
            read_table(source, DATA)

    def test_each_value_is_text_by_itself(self, tmp_path: Path) -> None:
        rows = [b'{"a": 1, "b": null}', b'{"a": 1.5, "b": true}', b'{"a": "2020-01-31"}']
        table = read_table(jsonl_file(tmp_path, rows), DATA)
        assert table.to_pydict() == {"a": ["1", "1.5", "2020-01-31"], "b": [None, "True", None]}
        assert read_table(encoded_images(tmp_path, ENCODED_GOOD), DATA).num_rows == 3


class TestDigest:
    ROWS = (("first", "yes"), ("second, with comma", "no"), ("third\nover two", "1"), ("fünf", "2"), ("first", "yes"))

    def sources(self, folder: Path) -> list[str]:
        quoted = ['"{}",{}\n'.format(*row).encode() for row in self.ROWS]
        return [
            csv_file(folder, quoted),
            jsonl_file(folder, [json.dumps({"label": label, "text": text}).encode() for text, label in self.ROWS]),
            parquet_file(folder, [*self.ROWS]),
            database(folder, [(text, int(label) if label.isdigit() else label) for text, label in self.ROWS]),
        ]

    def test_is_of_the_rows_and_not_of_the_kind_of_source_or_their_order(self, tmp_path: Path) -> None:
        first = content_digest(csv_file(tmp_path, ['"{}",{}\n'.format(*r).encode() for r in self.ROWS[::-1]]), DATA)
        assert {content_digest(source, DATA) for source in self.sources(tmp_path)} == {first}
        assert len(first) == 32

    def test_changes_with_any_row(self, tmp_path: Path) -> None:
        found = {content_digest(parquet_file(tmp_path, [*self.ROWS]), DATA)}
        for place, (text, label) in enumerate(self.ROWS[:4]):
            for row in ((text + " ", label), (text, "no" if label != "no" else "yes"), (None, label), ("", label)):
                found.add(
                    content_digest(parquet_file(tmp_path, [*self.ROWS[:place], row, *self.ROWS[place + 1 :]]), DATA)
                )
            found.add(content_digest(parquet_file(tmp_path, [*self.ROWS[:place], *self.ROWS[place + 1 :]]), DATA))
            found.add(content_digest(parquet_file(tmp_path, [*self.ROWS, self.ROWS[place]]), DATA))
        assert len(found) == 1 + 4 * 6
        split = [[("ab", "c")], [("a", "bc")], [("a", None), ("b", "c")], [("", "abc")], [(None, "abc")]]
        assert len({content_digest(parquet_file(tmp_path, rows), DATA) for rows in split}) == 5

    def test_images_are_their_files_bytes(self, tmp_path: Path) -> None:
        source = images(tmp_path, IMAGES_GOOD)
        first = content_digest(source, DATA)
        assert first == read_checked(source, DATA, LABELS, **IMAGES).digest
        labels = [row.decode().strip().partition(",")[2] for row in IMAGES_GOOD]
        assert first == content_digest(
            encoded_images(tmp_path, [({"bytes": png(i), "path": None}, label) for i, label in enumerate(labels)]), DATA
        )
        (tmp_path / "1.png").write_bytes(png(200))
        assert content_digest(source, DATA) != first

    @pytest.mark.parametrize("name", ["/proc/uptime", "/proc/self/stat", "contents.json", "pipe.png", "huge.png"])
    def test_a_path_that_leads_to_no_image_costs_its_row_alone(self, tmp_path: Path, name: str) -> None:
        """Files that change from one look to the next changed the digest, and so silenced the whole site; one of
        terabytes ended it."""
        source = Path(images(tmp_path, IMAGES_GOOD))
        os.mkfifo(tmp_path / "pipe.png")
        with (tmp_path / "huge.png").open("wb") as file:
            file.write(png(1))
            file.truncate(2**40)
        before = read_checked(str(source), DATA, LABELS, **IMAGES)
        with source.open("a") as rows:
            rows.write(f"{name},yes\n")
        found = []
        for content in ("{}", '{"default": ""}'):
            (tmp_path / "contents.json").write_text(content)
            found.append(content_digest(str(source), DATA))
        after = read_checked(str(source), DATA, LABELS, **IMAGES)
        assert found[0] == found[1] == after.digest
        assert len(after.rows) == len(before.rows)
        assert len(after.problems) == len(before.problems) + 1

    def test_covers_rows_that_cannot_be_parsed_and_columns_of_instructions(self, tmp_path: Path) -> None:
        lines = [[b"a,yes\n", bad] for bad in (b"x,y,z\n", b"x,y,w\n", b'"x,y\n', b"x\n")]
        assert len({content_digest(csv_file(tmp_path, rows), DATA) for rows in lines}) == 4
        data = DataSection(test="x", prompt="q", response="a")
        header = b"q,a,other\n"
        first, again, other = (
            content_digest(csv_file(tmp_path, [row], header), data) for row in (b"1,2,3\n", b"1,2,4\n", b"1,3,3\n")
        )
        assert first == again != other


def identity(path: Path, rows: list[tuple]) -> bytes:
    return source_contents(parquet_file(path, rows), DATA)[0]


def test_whose_records_they_are_does_not_hang_on_blanks_case_or_rows_without_any(tmp_path: Path) -> None:
    """Each of these made another data set of the same records, with a budget of its own."""
    rows = [("a good film", "yes"), ("a dull one", "no")]
    usual = identity(tmp_path, rows)
    for others in (
        [(f" {text}  ", label) for text, label in rows],
        [(text.upper(), label) for text, label in rows],
        [*rows, ("", "yes")],
        [*rows, (None, None)],
        [*rows, rows[0]],
        [(text, "another") for text, _ in rows],
    ):
        assert identity(tmp_path, others) == usual
    assert identity(tmp_path, [*rows, ("a third", "yes")]) != usual

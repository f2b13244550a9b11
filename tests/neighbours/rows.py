"""A site's rows for every task: ordinary ones, and those that a site had better not hold."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from confide.tests.architectures import NOTHING
from confide.tests.tiny import BAD, GOOD, NEUTRAL

Kind = Literal["good", "bad", "any"]
"""contributes; contributes nothing, as if it were not there; either"""
Form = Literal["csv", "jsonl"]

CLASSES, TAGS = ["negative", "positive"], ["B-per", "I-per", "O"]
PROMPTED = "prompt and response"
"""stands for the task causal-lm on two columns"""
TALKED = "conversations"
"""stands for the task causal-lm on a column of messages"""
TWO = "two texts"
"""stands for the task sequence-classification on two columns of texts"""
TEMPLATE = (
    "{% if messages[0].role == 'tool' %}{{ raise_exception('no tool') }}{% endif %}"
    "{% for m in messages %}< {{ m.role }} > {{ m.content }} </ {{ m.role }} > {% endfor %}"
    "{% if add_generation_prompt %}< assistant > {% endif %}"
)


@dataclass(frozen=True)
class Row:
    """One record as it stands in a file."""

    name: str
    kind: Kind
    values: tuple[str | bytes, ...]
    """one a column; bytes are written as they are"""


@dataclass(frozen=True)
class Table:
    """What a site's file is made of."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def without(self, row: Row) -> "Table":
        return Table(self.columns, tuple(other for other in self.rows if other is not row))

    def shorter(self, names: set[str]) -> "Table":
        """Some ten rows: those that are named, and some of each kind."""
        assert names <= {row.name for row in self.rows}
        return Table(self.columns, tuple(row for row in self.rows if row.name in names | _KEPT))

    def write(self, folder: Path, form: Form) -> Path:
        path = folder / f"data.{form}"
        line = _csv if form == "csv" else self._json
        header = [",".join(self.columns).encode()] if form == "csv" else []
        path.write_bytes(b"".join(one + b"\n" for one in [*header, *(line(row.values) for row in self.rows)]))
        return path

    def _json(self, values: Sequence[str | bytes]) -> bytes:
        if len(values) != len(self.columns):
            return b'{"' + self.columns[0].encode() + b'": "the film", '
        pairs = zip(self.columns, values, strict=True)
        parts = [json.dumps(key).encode() + b": " + (_quoted(value)) for key, value in pairs]
        return b"{" + b", ".join(parts) + b"}"


def _quoted(value: str | bytes) -> bytes:
    return b'"' + value + b'"' if isinstance(value, bytes) else json.dumps(value).encode()


def _csv(values: Sequence[str | bytes]) -> bytes:
    parts = []
    for value in values:
        content = value if isinstance(value, bytes) else value.encode()
        special = any(mark in content for mark in b',"\n')
        parts.append(b'"' + content.replace(b'"', b'""') + b'"' if special else content)
    return b",".join(parts)


def words(count: int, seed: int) -> str:
    """A text of so many words."""
    return " ".join(np.random.default_rng(seed).choice([*GOOD, *BAD, *NEUTRAL], count))


_BROKEN = "broken bytes"
_KEPT = {"first", "shortest", "over-long", "middle", "last", "empty", "unknown class", _BROKEN}
_TEXTS: dict[str, str] = {
    "first": "the film was good and warm",
    "second": words(9, 1),
    "shortest": "film",
    "twin": "a gloomy story",
    "words nobody knows": "zzz éé 😀, qq",
    "over-long": words(300, 2),
    "middle": 'quite "a" bright, film\nand a story',
    "its twin": "a gloomy story",
    "longest": words(17, 3),
    "over-long, too": words(90, 4),
    "last but one": words(7, 5),
    "last": words(12, 6),
}
"""texts that are records, by the name of their row"""


def table_of(task: str, turn: int = 0) -> Table:
    """Some twenty rows. turn: how many of them go from the front to the end, so that bad rows come first, too."""
    columns, rows = _MADE[task]() if task in _MADE else _plain()
    turn %= len(rows)
    return Table(columns, (*rows[turn:], *rows[:turn]))


def _classified() -> tuple[tuple[str, ...], list[Row]]:
    rows = [Row(name, "good", (text, CLASSES[i % 2])) for i, (name, text) in enumerate(_TEXTS.items())]
    rows += _bad_texts("positive")
    rows.insert(3, Row("unknown class", "bad", ("the film was dark", "neither")))
    rows.insert(6, Row("no class", "bad", ("the film was dark", "")))
    return ("text", "label"), _mixed(rows)


def _several() -> tuple[tuple[str, ...], list[Row]]:
    """Lists of classes, as JSON in a text; a row may have none."""
    lists = ('["positive"]', '["negative", "positive"]', "[]", "negative")
    rows = [Row(name, "good", (text, lists[i % 4])) for i, (name, text) in enumerate(_TEXTS.items())]
    rows += _bad_texts('["positive"]')
    for name, value in {"unknown class": '["positive", "neither"]', "no class": "", "a number": "[1]"}.items():
        rows.insert(len(name) % 7, Row(name, "bad", ("the film was dark", value)))
    return ("text", "label"), _mixed(rows)


def _two_texts() -> tuple[tuple[str, ...], list[Row]]:
    texts = list(_TEXTS.values())
    rows = [Row(name, "good", (texts[-1 - i], text, CLASSES[i % 2])) for i, (name, text) in enumerate(_TEXTS.items())]
    rows += _bad_texts("a story", "positive")
    rows += [
        Row("unknown class", "bad", ("the film", "a story", "neither")),
        Row("no second", "bad", ("film", " ", "positive")),
    ]
    return ("text", "text_pair", "label"), _mixed(rows)


def _plain() -> tuple[tuple[str, ...], list[Row]]:
    """Without labels; a column `label` may hold anything."""
    # one token is guessed from no other, and of unknown words none is hidden
    nothing = ("shortest", "words nobody knows")
    rows = [Row(name, "any" if name in nothing else "good", (text, "neither")) for name, text in _TEXTS.items()]
    return ("text", "label"), _mixed([*rows, *_bad_texts("")])


def _prompted() -> tuple[tuple[str, ...], list[Row]]:
    texts = list(_TEXTS.values())
    rows = [Row(name, "good", (texts[-1 - i], text)) for i, (name, text) in enumerate(_TEXTS.items())]
    rows += _bad_texts("the film")
    return ("prompt", "response"), _mixed([*rows, Row("no response", "bad", ("the film", " "))])


def _talked() -> tuple[tuple[str, ...], list[Row]]:
    texts = list(_TEXTS.values())
    rows = [Row(name, "any" if name == "shortest" else "good", (_talk(i, texts), "")) for i, name in enumerate(_TEXTS)]
    answer = {"role": "assistant", "content": "the film"}
    bad: dict[str, Any] = {
        "empty": [],
        "blank": [{"role": "user", "content": " "}, answer],
        "nobody answers": [{"role": "user", "content": "the film"}],
        "unknown role": [{"role": "measles", "content": "the film"}, answer],
        "no content": [{"role": "user"}, answer],
        "refused by the template": [{"role": "tool", "content": "the film"}, answer],
    }
    rows += [Row(name, "bad", (json.dumps(value), "")) for name, value in bad.items()]
    rows += [Row(_BROKEN, "bad", (b"the \xff film", "")), Row("no JSON", "bad", ("the film", ""))]
    rows += [Row("a column too many", "bad", (_talk(0, texts), "", "more")), Row("a column too few", "bad", ("film",))]
    return ("messages", "label"), _mixed(rows)


def _talk(number: int, texts: list[str]) -> str:
    """One to three exchanges, the last answer being the text of that number."""
    said = [(texts[number - back - 3], texts[number - back]) for back in reversed(range(1 + number % 3))]
    talk = [{"role": "system", "content": "be warm"}] * (number % 2)
    for asked, answer in said:
        talk += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return json.dumps(talk)


def _paired() -> tuple[tuple[str, ...], list[Row]]:
    """Either answer is now the longer, now the shorter one; equal answers have no gradient."""
    texts = list(_TEXTS.values())
    rows = [Row(name, "good", (texts[-1 - i], text, texts[i - 5])) for i, (name, text) in enumerate(_TEXTS.items())]
    rows += _bad_texts("the film", "a story")
    rows += [Row("no chosen", "bad", ("the film", " ", "good")), Row("no rejected", "bad", ("the film", "good", ""))]
    return ("prompt", "chosen", "rejected"), _mixed([*rows, Row("equal", "any", ("the film", "good", "good"))])


def _measured() -> tuple[tuple[str, ...], list[Row]]:
    rows = [Row(name, "good", (text, str((i - 4) / 3))) for i, (name, text) in enumerate(_TEXTS.items())]
    rows += _bad_texts("0.5")
    for name in ("nan", "inf", "1e999", "measles"):
        rows.insert(len(rows) // 2, Row(name, "bad", ("the film was dark", name)))
    rows.insert(5, Row("huge", "any", ("the film was bright", "1e300")))
    rows.insert(7, Row("large", "any", ("the film was bright", "-3e37")))
    return ("text", "label"), _mixed(rows)


def _tagged() -> tuple[tuple[str, ...], list[Row]]:
    def tags(text: str) -> str:
        return " ".join(("B-per", "I-per", "O", "O")[i % 4] for i in range(len(text.split())))

    rows = [Row(name, "good", (text, tags(text))) for name, text in _TEXTS.items()]
    rows += _bad_texts("O O")
    rows.insert(2, Row("a tag too few", "bad", ("the film was dark", "O O O")))
    rows.insert(8, Row("a tag too many", "bad", ("the film", "O O O")))
    rows.insert(5, Row("unknown tag", "bad", ("the film", "O B-measles")))
    return ("text", "label"), _mixed(rows)


def _imaged(texts: bool) -> tuple[tuple[str, ...], list[Row]]:
    rows = []
    for i, (name, text) in enumerate(list(_TEXTS.items())[:9]):
        rows.append(Row(name, "good", _cells(f"../images/{i}.png", text if texts else None, CLASSES[i % 2])))
    for name in ("gone", "broken", "short", "folder"):
        rows.insert(2 * len(name) - 6, Row(name, "bad", _cells(f"../images/{name}.png", _or(texts), "positive")))
    rows.append(Row("unknown class", "bad", _cells("../images/0.png", _or(texts), "neither")))
    rows.append(Row("wrong columns", "bad", (*_cells("../images/0.png", _or(texts), "positive"), "more")))
    rows.append(Row("no image", "bad", _cells("", _or(texts), "positive")))
    if texts:
        rows.append(Row("empty text", "bad", ("../images/0.png", "", "positive")))
    return _cells("image", "text" if texts else None, "label"), rows


def _or(texts: bool) -> str | None:
    return "the film" if texts else None


def _cells(first: str, text: str | None, last: str) -> tuple[str, ...]:
    return (first, last) if text is None else (first, text, last)


def _bad_texts(*others: str) -> list[Row]:
    """others: what stands in the columns after the text's."""
    return [
        Row("empty", "bad", ("", *others)),
        Row("blank", "bad", ("  ", *others)),
        Row(_BROKEN, "bad", (b"the \xff film", *others)),
        Row("a column too many", "bad", ("the film", *others, "more")),
        Row("a column too few", "bad", ("the film",)),
        Row("no tokens", "any", (NOTHING, *others)),
    ]


def _mixed(rows: list[Row]) -> list[Row]:
    """Bad ones among the others, the first, the middle and the last row being good."""
    last = next(row for row in rows if row.name == "last")
    rest = [row for row in rows[1:] if row is not last]
    order = np.random.default_rng(0).permutation(len(rest))
    return [rows[0], *(rest[i] for i in order), last]


_MADE = {
    "sequence-classification": _classified,
    "multi-label-classification": _several,
    "token-classification": _tagged,
    TWO: _two_texts,
    "regression": _measured,
    PROMPTED: _prompted,
    TALKED: _talked,
    "preference": _paired,
    "image-classification": lambda: _imaged(texts=False),
    "image-text-classification": lambda: _imaged(texts=True),
}


def write_images(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(7)
    for i in range(12):
        size = (8, 8) if i != 5 else (30, 11)
        shape = (*size[::-1], 3) if i % 3 else size[::-1]
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG measles")
    (folder / "short.png").write_bytes((folder / "5.png").read_bytes()[:120])
    (folder / "folder.png").mkdir()

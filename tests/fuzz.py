"""Configurations, data files and run folders as nobody means them: mutations that a seed decides."""

import csv
import gzip
import io
import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tomli_w
from safetensors.numpy import load_file, save_file

from confide.common.config.run import RunConfig
from confide.common.config.section import Section
from confide.simulations.recipes import FOLDER
from confide.tests.tiny import LOCAL, merged, sentences

SECRET = "zqxsecret"
"""a word of every row: no message may hold it"""

QUICK = {**LOCAL, "sampling_rate": 1.0}
"""a [privacy] section whose ε is computed at once"""

Random = np.random.Generator


def pick(rng: Random, among: Any) -> Any:
    among = list(among)
    return among[int(rng.integers(len(among)))]


# configurations

VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 2**31, 2**63 - 1, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1.0, 1e-300, 1e308, -3.5),
    *(float("nan"), float("inf"), -float("inf"), True, False, "", " ", "a", "0", "auto", "none", "local", "nosuch"),
    *(
        "é ü 😀",
        "\u202e",
        "a\nb",
        "a\tb",
        "\0",
        "x" * 5000,
        "../..",
        "/",
        "~",
        "~/x",
        "demo:",
        "demo:nosuch",
        "http://h/x",
    ),
    *("sqlite:///nosuch.db#t", "json:{", "'", '"', "{c.run}", "[red]", "train.csv", "2024", "1e3", "nan"),
    *([], [1], ["a"], ["a", "a"], ["", "é"], [[]], [1, "a"], {}, {"a": 1}, {"kind": "iid"}, [{"a": {}}], [True]),
)


def _keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        yield f"{prefix}{name}", kind
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _keys(kind, f"{prefix}{name}.")


_KINDS = dict(_keys(RunConfig))
KEYS = (*_KINDS, "nosuch", "run.nosuch", "sweep.seeds", "active.rounds", "compare.seeds")
# no thousand among them: the accounting of a thousand rounds takes minutes
_FITTING: dict[Any, tuple[Any, ...]] = {
    bool: (True, False),
    int: (0, 1, 2, 3, 10, 20, 10**6, 2**31 - 1, 10**9, 10**12, 2**63 - 1),
    float: (1e-300, 1e-9, 1e-3, 0.01, 0.5, 0.999999, 1.0, 1.5, 8.0, 100.0, 1e6, 1e300),
}


def _fitting(kind: Any, rng: Random) -> Any:
    """A value of the kind that a key has."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fitting(args[0], rng)
    if origin is Literal:
        return pick(rng, args)
    if origin in (Union, UnionType):
        return _fitting(pick(rng, [one for one in args if one is not type(None)]), rng)
    if origin is tuple:
        return [_fitting(args[0], rng) for _ in range(int(rng.integers(0, 4)))]
    if kind in _FITTING:
        return pick(rng, _FITTING[kind])
    return pick(rng, [value for value in VALUES if isinstance(value, str)])


def _is_value(key: str) -> bool:
    kind = _KINDS.get(key, Section)
    return not (isinstance(kind, type) and issubclass(kind, Section))


def _set(content: dict, dotted: str, value: Any) -> None:
    *tables, last = dotted.split(".")
    for name in tables:
        inner = content.get(name)
        content[name] = inner if isinstance(inner, dict) else {}
        content = content[name]
    content[last] = value


def _mutated_tables(content: dict, rng: Random) -> None:
    for _ in range(pick(rng, [1, 1, 2, 3])):
        key, how = pick(rng, KEYS), int(rng.integers(8))
        if how < 5 and _is_value(key):
            _set(content, key, _fitting(_KINDS[key], rng))
        elif how < 6:
            _set(content, key, pick(rng, VALUES))
        elif how == 6:
            content.pop(pick(rng, content), None) if content else None
        else:
            _set(content, f"{pick(rng, KEYS)}{pick(rng, ['x', '.y', '_'])}", pick(rng, VALUES))


def _as_toml(content: dict) -> str:
    """Whole numbers that tomli_w would write as they are; what it cannot write becomes a text."""
    try:
        return tomli_w.dumps(content)
    except (TypeError, ValueError):
        return tomli_w.dumps({key: str(value)[:50] for key, value in content.items()})


def _mutated_text(text: str, rng: Random) -> bytes:
    lines, raw = text.splitlines(), text.encode("utf-8", "surrogatepass")
    place = int(rng.integers(len(raw) + 1))
    return pick(
        rng,
        [
            raw[:place],
            raw[:place] + bytes(rng.integers(0, 256, 3, dtype=np.uint8)) + raw[place:],
            "\n".join([*lines, pick(rng, lines or [""])]).encode(),
            "\n".join(lines[::-1]).encode(),
            text.replace('"', "", 1).encode(),
            text.replace("=", pick(rng, ["==", ":", " "]), 1).encode(),
            raw
            + b"\n"
            + pick(rng, [b"x = " + b"[" * 3000, b"x = " + b"9" * 5000, b"[run]", b"[[data]]", b"\xff\xfe", b"\0"]),
            raw.replace(b"1", b"1" * 4400, 1),
        ],
    )


def configurations(bert: Path, data: Path, folder: Path, rng: Random) -> Path:
    """A file that was a recipe."""
    own = pick(rng, ["mine", "mine", "mine", *sorted(path.stem for path in FOLDER.glob("*.toml"))])
    content: dict[str, Any] = (
        {} if own == "mine" else tomllib.loads((FOLDER / f"{own}.toml").read_text(encoding="utf-8"))
    )
    tiny = {
        "run": {"name": "tiny", "rounds": 2, "output": str(folder / "out")},
        "model": {"backbone": str(bert), "max_length": 32, "lora": {"rank": 2, "alpha": 4}},
        "data": {"train": str(data / "train.csv"), "test": str(data / "test.csv"), "partition": {"clients": 4}},
        "privacy": QUICK,
    }
    content = merged(content, tiny)
    _mutated_tables(content, rng)
    text = _as_toml(content)
    raw = _mutated_text(text, rng) if rng.random() < 0.3 else text.encode("utf-8", "surrogatepass")
    path = folder / "run.toml"
    path.write_bytes(raw)
    return path


# files of rows


def _rows(rng: Random) -> list[tuple[str, str]]:
    return [(f"{text} {SECRET}", label) for text, label in sentences(24, int(rng.integers(1000)))]


def _csv(rows: list[tuple[str, str]], separator: str = ",") -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator).writerows([("text", "label"), *rows])
    return out.getvalue().encode()


def _json_values(rows: list[tuple[str, str]], rng: Random) -> list[Any]:
    values: list[Any] = [{"text": text, "label": label} for text, label in rows]
    for _ in range(int(rng.integers(0, 4))):
        odd = pick(
            rng, [None, 3, 2.5, True, [], ["a"], {"a": SECRET}, "", " ", "\ud800", "x" * 200_000, 10**400, "é\0"]
        )
        pick(rng, values)[pick(rng, ["text", "label", "more"])] = odd
    if rng.random() < 0.2:
        values.insert(int(rng.integers(len(values))), pick(rng, [None, 3, [], "a", [SECRET]]))
    return values


def _dumped(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def _parquet(rows: list[tuple[str, str]], rng: Random) -> bytes:
    texts: list[Any] = [text for text, _ in rows]
    if rng.random() < 0.3:
        texts[int(rng.integers(len(texts)))] = None
    labels = [label for _, label in rows]
    columns = pick(
        rng,
        [
            {"text": texts, "label": labels},
            {"text": list(range(len(rows))), "label": labels},
            {"text": [[text] for text in texts], "label": labels},
            {"text": texts, "label": [float("nan")] * len(rows)},
            {"text": [str(text).encode() + b"\xff" for text in texts], "label": labels},
            {"text": pa.array(texts, pa.large_string()), "label": pa.array(labels).dictionary_encode()},
            {"text": pa.nulls(len(rows)), "label": labels},
        ],
    )
    names = pick(rng, [["text", "label"], ["text", "label"], ["text", "text"], ["label", "text"], ["", "label"]])
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(list(map(pa.array, columns.values())), names=names), out)
    return out.getvalue()


def _sentence(text: str, rng: Random) -> str:
    return "\n".join(f"{word}\t{pick(rng, ['O', 'O', 'B-x', 'I-x'])}" for word in text.split()) + "\n"


def _written(kind: str, rng: Random) -> bytes:
    rows = _rows(rng)
    if kind in ("csv", "tsv"):
        return _csv(rows, "," if kind == "csv" else "\t")
    if kind == "parquet":
        return _parquet(rows, rng)
    if kind == "conll":
        return "\n".join(_sentence(text, rng) for text, _ in rows).encode()
    values = [
        _dumped(value) if isinstance(value, int) else json.dumps(value, default=str)
        for value in _json_values(rows, rng)
    ]
    return ("\n".join(values) if kind == "jsonl" else f"[{', '.join(values)}]").encode()


def _spoiled(raw: bytes, rng: Random) -> bytes:
    place, end = int(rng.integers(len(raw) + 1)), raw.find(b"\n")
    header = raw[: end if end >= 0 else len(raw)]
    flipped = bytearray(raw)
    for _ in range(int(rng.integers(1, 6))):
        if flipped:
            flipped[int(rng.integers(len(flipped)))] ^= 1 << int(rng.integers(8))
    return pick(
        rng,
        [
            raw,
            bytes(flipped),
            raw[:place],
            b"",
            header,
            header + b"\n",
            header + b"," + header + raw[len(header) :],
            raw[len(header) :],
            raw[:place] + b"\0" * 3 + raw[place:],
            raw[:place] + b'"' + raw[place:],
            raw[:place] + b"\xff\xfe" + raw[place:],
            b"\xef\xbb\xbf" + raw,
            raw.replace(b"\n", b"\r"),
            raw.replace(b"\n", b"\n\n"),
            raw.decode("utf-8", "replace").encode("utf-16"),
            b"[" * 100_000,
            raw[:place] + b"," * 5000 + raw[place:],
            raw[:place] + b"9" * 5000 + raw[place:],
            raw.replace(b"positive", b"negative"),
            raw.replace(b"label", b"text", 1),
        ],
    )


KINDS = ("csv", "tsv", "jsonl", "json", "parquet", "conll")


def data_file(folder: Path, rng: Random, kinds: tuple[str, ...] = KINDS) -> Path:
    """A file that was of rows; now and then under another kind's name, or packed."""
    kind = pick(rng, kinds)
    raw, suffix = _spoiled(_written(kind, rng), rng), kind
    if rng.random() < 0.1:
        suffix = pick(rng, kinds)
    if rng.random() < 0.2:
        raw, suffix = gzip.compress(raw), f"{suffix}.gz"
        raw = raw if rng.random() < 0.5 else raw[: int(rng.integers(len(raw)))]
    path = folder / f"rows.{suffix}"
    path.write_bytes(raw)
    return path


# folders of runs

_ODD_JSON: tuple[Any, ...] = (None, [], {}, "", "nosuch", -1, 0, 10**12, 0.5, True, ["a"], {"a": 1}, "x" * 3000, [None])


def _nested(value: Any, rng: Random) -> tuple[Any, Any]:
    """A container in a JSON value, and a place in it."""
    while True:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place = pick(rng, places) if places else None
        if place is None or not isinstance(value[place], dict | list) or not value[place] or rng.random() < 0.3:
            return value, place
        value = value[place]


def _odd_json(path: Path, rng: Random) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(int(rng.integers(1, 4))):
        inside, place = _nested(value, rng)
        if place is not None and rng.random() < 0.3:
            del inside[place]
        elif place is not None:
            inside[place] = pick(rng, _ODD_JSON)
    path.write_text(json.dumps(value), encoding="utf-8")


def _odd_arrays(path: Path, rng: Random) -> None:
    arrays = load_file(path)
    name = pick(rng, sorted(arrays))
    array = arrays[name]
    changed: dict[str, Callable[[], Any]] = {
        "NaN": lambda: np.full_like(array, np.nan),
        "infinite": lambda: np.full_like(array, np.inf),
        "large": lambda: np.full_like(array, 3e38),
        "shape": lambda: array[:1].copy(),
        "flat": lambda: array.ravel().copy(),
        "empty": lambda: np.zeros((0,), np.float32),
        "half": lambda: array.astype(np.float16),
        "double": lambda: array.astype(np.float64),
        "whole": lambda: np.zeros(array.shape, np.int64),
    }
    kind = pick(rng, [*changed, "gone", "more", "renamed"])
    if kind in changed:
        arrays[name] = changed[kind]()
    elif kind == "more":
        arrays["more"] = array
    else:
        arrays = {(f"{key}x" if key == name else key): value for key, value in arrays.items()}
        arrays = arrays if kind == "renamed" else {key: value for key, value in arrays.items() if not key.endswith("x")}
    save_file(arrays, path)


def spoil_run(run: Path, folder: Path, rng: Random) -> str:
    """A copy of a finished run in `folder`, in which something is not as it was; returns what was done."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "report.html"))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = pick(rng, [*files, *[one for one in files if one.parent.name == "adapter"] * 2])
    how = pick(rng, ["cut", "bytes", "gone", "empty", "folder", "swapped", "odd", "odd", "odd"])
    raw = path.read_bytes()
    if how == "odd" and path.suffix == ".json":
        _odd_json(path, rng)
    elif how == "odd" and path.suffix == ".safetensors":
        _odd_arrays(path, rng)
    elif how in ("cut", "odd"):
        path.write_bytes(raw[: int(rng.integers(len(raw) + 1))])
    elif how == "bytes":
        changed = bytearray(raw or b"x")
        for place in rng.integers(len(changed), size=8):
            changed[int(place)] = int(rng.integers(256))
        path.write_bytes(bytes(changed))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "swapped":
        path.write_bytes(pick(rng, files).read_bytes())
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
    return f"{path.relative_to(folder)}: {how}"

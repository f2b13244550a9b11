"""A record's randomness is its own: drawn from a keyed hash of its content, never from a stream in file order.

One record more or less changes nothing about any other record then: its copies, the choice among them, its teacher and
its place in an order follow from its content, a secret of the site, and, for what is drawn anew in every step, a secret
of that step. Equal records have equal keys, which is right: each is still a function of itself.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from ..config.run import RunConfig
from ..types import Rows
from .conversations import transcript

Keys = np.ndarray
"""(N,) uint64, one a record"""


def record_keys(rows: Rows, secret: bytes) -> Keys:
    """(N,) uint64: BLAKE2b over everything that training reads of a row, keyed. secret: up to 64 bytes."""
    return np.array([_digest(parts, secret) for parts in _contents(rows)], dtype=np.uint64)


def rows_digest(rows: Rows) -> bytes:
    """64 bytes, whatever the order: whose records they are (their texts, or else images), and all that they hold."""
    everything = list(_contents(rows, whose=True))
    whose = {b"text" + plain(parts[0]) if parts[0] else parts[4] for parts in everything}
    return b"".join(_in_any_order(found) for found in ([[one] for one in whose], everything))


def plain(text: bytes) -> bytes:
    """A text without what does not make it another: case, and which blanks stand between words or around them."""
    return " ".join(text.decode("utf-8", "replace").casefold().split()).encode()


def _in_any_order(rows: list[list[bytes]]) -> bytes:
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(_framed(parts)).digest() for parts in rows))).digest()


def simulated_secret(config: RunConfig) -> bytes:
    """Of all sites of a simulation, whose processes must agree on it: from the run's random id; in mode `none` from its
    seed."""
    named = f"confide records of {config.run.id if config.private else config.run.seed}"
    return hashlib.sha256(named.encode()).digest()


def mixed(keys: Keys, salt: int) -> Keys:
    """(N,) uint64, uniform and independent for another salt: two rounds of splitmix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        return _splitmix(_splitmix(keys + np.uint64(salt % 2**64)) ^ np.uint64((salt * 0x9E3779B97F4A7C15) % 2**64))


def choices(keys: Keys, salt: int, count: int) -> np.ndarray:
    """(N,) int64 in 0 … count − 1, one draw a record. count: far below 2⁶⁴, so that the remainder's bias is nothing."""
    return (mixed(keys, salt) % np.uint64(count)).astype(np.int64)


def in_order(keys: Keys, salt: int = 0) -> np.ndarray:
    """(N,) positions in the order of the keys. One more record shifts the others and changes the order of none; the
    first k of them, a subset of fixed size, lose at most one."""
    return np.argsort(mixed(keys, salt), kind="stable")


def own_generator(key: np.uint64, *purpose: int) -> np.random.Generator:
    """A generator of one record, for one purpose."""
    return np.random.default_rng([int(key), *purpose])


def _splitmix(x: Keys) -> Keys:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _digest(parts: list[bytes], secret: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(_framed(parts), key=secret, digest_size=8).digest(), "little")


def _framed(parts: list[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _contents(rows: Rows, whose: bool = False) -> Iterable[list[bytes]]:
    """whose: also the person, which a record's randomness does not depend on."""
    for i, text in enumerate(rows.text):
        read = text if rows.turns is None else transcript(rows.turns[i])
        parts = [read.encode("utf-8", "surrogatepass")]
        parts.append(b"" if rows.response is None else rows.response[i].encode("utf-8", "surrogatepass"))
        parts.append(b"" if rows.labels is None else rows.labels[i : i + 1].tobytes())
        parts.append(b"" if rows.tags is None else rows.tags[i].tobytes())
        parts.append(b"" if rows.images is None else rows.images[i].tobytes())
        if rows.rejected is not None:
            parts.append(rows.rejected[i].encode("utf-8", "surrogatepass"))
        if rows.pair is not None:
            parts.append(rows.pair[i].encode("utf-8", "surrogatepass"))
        if whose and rows.person is not None:
            parts.append(str(rows.person[i]).encode("utf-8", "surrogatepass"))
        yield parts

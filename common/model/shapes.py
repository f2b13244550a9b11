"""The shapes of batches under privacy: public, so that a record's gradient is a function of that record alone.

Kernels are chosen by the shape of a batch, and another kernel rounds otherwise: in float32 a record's gradient moves by
up to 10⁻⁶ when the number or the length of its batch-mates changes, and below float32 by far more. Here the length that
a record is padded to follows from the record alone, and the number of rows from that length and from what the run
declares; missing rows are filled with repeated ones that count for nothing. A shape then always meets the same kernel,
and a record's gradient has the same bits whatever its mates, their number and its position. Where a kernel treats the
rows of one batch differently (matrix products of few rows do), `proof.py` finds that out and takes another number.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

_FEW_LENGTHS = [2**n for n in range(4, 20)]
_LENGTHS = sorted({2**n for n in range(3, 20)} | {3 * 2**n for n in range(3, 19)})
"""8, 16, 24, 32, 48, 64, 96, …: at most half of a row is padding, and a third where rows are long"""
_MANY = 150
"""records expected in a step from which on they fill batches of so many lengths"""
_SHORTEST = 16
"""tokens below which a row costs as much as one of so many"""
_FEWEST_ROWS = 2
MOST_RECORDS = 256
"""of any batch"""
_FEW_TOKENS, _TOKENS = (12, 512), (2.5, 1024)
"""tokens of a batch for each record that a step is expected to draw, and at most; of few lengths and of many. A batch
costs as much as 120 tokens beside its own (MiniLM, two cores): more and smaller batches waste that, fewer and larger
ones the rows of the last of a length. What that comes to: benchmarks/shapes.py"""


@dataclass(frozen=True)
class Shapes:
    """Which shape a record's batch has. Everything here is public."""

    longest: int
    """tokens that a record is cut to; 0: records have no length (images, features)"""
    most_rows: int
    """rows of any batch"""
    expected: float
    """records that a step is expected to draw, from the declaration"""
    spare: bool = True
    """whether every row ends in at least one token of padding: where no row of a batch has any, attention takes another
    kernel for all of them"""
    found: dict[int, int] = field(default_factory=dict, compare=False)
    """rows by length, where a proof has decided on them"""

    @property
    def all_lengths(self) -> list[int]:
        """Every length that a batch may have."""
        last = self.longest + (self.spare and self.longest > 0)
        steps = _LENGTHS if self.expected >= _MANY else _FEW_LENGTHS
        return [*(n for n in steps if n < self.longest), last]

    def lengths(self, tokens: np.ndarray) -> np.ndarray:
        """(n,) tokens of each record → (n,) what each is padded to."""
        if not self.longest:
            return np.zeros_like(tokens)
        steps = np.array(self.all_lengths)
        return steps[np.searchsorted(steps, tokens + self.spare)]

    def rows(self, length: int) -> int:
        """Rows of a batch of this length: a power of two, or `most_rows`."""
        if length in self.found:
            return self.found[length]
        # of one length, only a step's last batch is filled up
        each, most = _TOKENS if self.expected >= _MANY else _FEW_TOKENS
        tokens = min(each * self.expected, most)
        wanted = min(self.expected / 4, MOST_RECORDS) if not self.longest else tokens / max(_SHORTEST, length)
        if wanted >= self.most_rows:
            return self.most_rows
        return min(self.most_rows, 2 ** round(math.log2(max(_FEWEST_ROWS, wanted))))

    def candidates(self, length: int) -> list[int]:
        """Numbers of rows, best first: the wanted one and more, then fewer; one row has no mates at all."""
        wanted = self.rows(length)
        more = [rows for rows in (2 * wanted, 4 * wanted) if rows <= self.most_rows]
        return list(dict.fromkeys([wanted, *more, self.most_rows, max(1, wanted // 2), 1]))

    def batches(self, tokens: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """tokens: (n,) of the drawn records. For each batch: (m,) positions of the records in it, (R,) the same filled
        up to the rows of its shape, and the length of that shape."""
        lengths = self.lengths(tokens)
        for length in np.unique(lengths):
            same, rows = np.flatnonzero(lengths == length), self.rows(int(length))
            for start in range(0, len(same), rows):
                part = same[start : start + rows]
                yield part, filled(part, rows), int(length)


def filled(part: np.ndarray, rows: int) -> np.ndarray:
    """(rows,): the part, and its first entry again where it is too short."""
    return np.concatenate([part, np.full(rows - len(part), part[0])])

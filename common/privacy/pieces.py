"""A site's share of the noise in pieces, of which the server takes off what a round turned out not to need.

Of n sites D = n − t may vanish, so shares of σ²/(t − c) make up the whole noise when only t are left; when all answer,
σ²/(n − c) would do. A share is therefore drawn in pieces: the first suffices with nobody absent, each further one
raises the share to what it must be with more absent. Once the survivors are agreed, a site hands out the seeds of the
pieces that they do not need (Jiang et al. 2024, "Dordis", EuroSys, has the idea of adding first and removing then;
docs/explanation/secure-sums.md has the argument for this protocol).
"""

import hashlib
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from ..errors import PrivacyError
from .discrete_gaussian import Words, add_noise, words_from
from .noise import LEAST_SHARE, require_wide

SEED_SIZE = 32


@dataclass(frozen=True)
class Pieces:
    """How a share is cut: piece k raises the share to what is needed with `absent[k]` sites away."""

    absent: tuple[int, ...]
    """rising; the last is D"""
    variances: tuple[float, ...]
    """grid steps², of each piece; their sum is σ²/(t − c)"""

    @classmethod
    def of(cls, variance: float, fewest: int, most: int) -> "Pieces":
        """variance: σ² of the whole noise. fewest, most: t − c and n − c, honest sites behind a sum.

        Few pieces, since each is drawn once more: for nobody absent, one, √D and D. One that would be too narrow to
        add up with others is part of the next. Raises PrivacyError for shares that are too narrow themselves.
        """
        tolerated = most - fewest
        levels, least = [tolerated], variance / fewest
        require_wide(least)
        for level in sorted({0, 1, math.isqrt(tolerated)}, reverse=True):
            if level >= tolerated:
                continue
            share = variance / (most - level)
            if least - share >= LEAST_SHARE**2 and share >= LEAST_SHARE**2:
                levels.insert(0, level)
                least = share
        shares = [variance / (most - level) for level in levels]
        return cls(tuple(levels), (shares[0], *(b - a for a, b in pairwise(shares))))

    def needed(self, absent: int) -> int:
        """How many pieces, from the first on, stay in the sum. Raises PrivacyError for more absent than tolerated."""
        if not 0 <= absent <= self.absent[-1]:
            raise PrivacyError(f"noise: {absent} sites absent; its shares allow for 0 to {self.absent[-1]}")
        return next(k for k, level in enumerate(self.absent, start=1) if level >= absent)

    def kept(self, absent: int) -> float:
        """Variance of a site's share once what is not needed is off."""
        return sum(self.variances[: self.needed(absent)])

    def add(self, values: np.ndarray, words: Words) -> bytes:
        """Draws a share and adds it to `values` (d,) int64 in place. Returns the seed of all pieces but the first."""
        seed = secrets.token_bytes(SEED_SIZE)
        add_noise(values, self.variances[0], words)
        for variance, key in zip(self.variances[1:], _chain(seed), strict=False):
            add_noise(values, variance, words_from(_piece_key(key)))
        return seed

    def released(self, seed: bytes, absent: int) -> bytes:
        """The seed from which the pieces follow that are not needed, and none that are; empty where all are.

        seed: empty where no noise was added.
        """
        needed = self.needed(absent)
        if not seed or needed == len(self.variances):
            return b""
        return next(islice(_chain(seed), needed - 1, None))

    def remove(self, values: np.ndarray, released: bytes, absent: int) -> None:
        """Takes what is not needed of one site's share off a sum (d,) int64, in place.

        released: what the site handed out; empty: nothing is taken off. Raises PrivacyError for another length.
        """
        if not released:
            return
        if len(released) != SEED_SIZE:
            raise PrivacyError(f"noise: a seed of {len(released)} bytes; allowed: {SEED_SIZE}")
        for variance, key in zip(self.variances[self.needed(absent) :], _chain(released), strict=False):
            add_noise(values, variance, words_from(_piece_key(key)), sign=-1)


def _chain(seed: bytes) -> Iterator[bytes]:
    """Seeds of one piece after another: each follows from those before, and none from those after."""
    while True:
        yield seed
        seed = hashlib.sha256(b"confide noise chain\0" + seed).digest()


def _piece_key(seed: bytes) -> bytes:
    return hashlib.sha256(b"confide noise piece\0" + seed).digest()

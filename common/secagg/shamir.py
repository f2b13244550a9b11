"""Shamir's secret sharing over the integers modulo 2²⁵⁵ − 19 (Shamir 1979)."""

import secrets
from collections.abc import Iterable, Sequence

PRIME = 2**255 - 19
SIZE = 32
"""bytes of an element"""


def random_element() -> int:
    return secrets.randbelow(PRIME)


def to_bytes(element: int) -> bytes:
    return element.to_bytes(SIZE, "little")


def from_bytes(content: bytes) -> int:
    """Raises ValueError for anything but one element."""
    element = int.from_bytes(content, "little")
    if len(content) != SIZE or element >= PRIME:
        raise ValueError("not an element of the field")
    return element


def share(secret: int, threshold: int, points: Iterable[int]) -> list[int]:
    """A share for each point (distinct, above 0); any `threshold` of them give the secret, fewer give nothing."""
    coefficients = [secret, *(random_element() for _ in range(threshold - 1))]
    shares = []
    for x in points:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % PRIME
        shares.append(value)
    return shares


def weights(points: Sequence[int]) -> list[int]:
    """λ of Lagrange's interpolation at 0: secret = Σ λ_i · share_i over these points."""
    result = []
    for i in points:
        numerator = denominator = 1
        for j in points:
            if j != i:
                numerator = numerator * j % PRIME
                denominator = denominator * (j - i) % PRIME
        result.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return result


def combine(lambdas: Sequence[int], shares: Sequence[int]) -> int:
    return sum(weight * value for weight, value in zip(lambdas, shares, strict=True)) % PRIME

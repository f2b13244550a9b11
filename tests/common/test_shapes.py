"""Shapes of batches: a function of the record alone, and of what a run declares."""

import numpy as np
import pytest

from confide.common.model.shapes import Shapes


@pytest.mark.parametrize(
    ("longest", "most", "expected"), [(64, 16, 6.0), (48, 64, 50.0), (512, 64, 2000.0), (7, 1, 3.0)]
)
def test_a_records_shape_does_not_depend_on_who_is_drawn_with_it(longest: int, most: int, expected: float) -> None:
    rng, shapes = np.random.default_rng(0), Shapes(longest, most, expected)
    tokens = rng.integers(1, longest + 1, 300)
    alone = {int(n): next(iter(shapes.batches(np.array([n]))))[1:] for n in tokens}
    for _ in range(20):
        drawn = rng.permutation(tokens)[: rng.integers(1, 300)]
        seen = []
        for part, rows, length in shapes.batches(drawn):
            seen += part.tolist()
            assert set(rows) == set(part)
            for n in drawn[part]:
                assert (len(rows), length) == (len(alone[int(n)][0]), alone[int(n)][1])
                assert n < length <= max(2 * (n + 1), 16)
        assert sorted(seen) == list(range(len(drawn)))


def test_rows_follow_from_the_declaration() -> None:
    assert [Shapes(64, 64, 50.0).rows(n) for n in (16, 32, 65)] == [32, 16, 8]
    assert [Shapes(64, 64, 4.0).rows(n) for n in (16, 32, 65)] == [4, 2, 2]
    assert Shapes(64, 64, 50.0).all_lengths == [16, 32, 65]
    assert Shapes(64, 64, 500.0).all_lengths == [8, 16, 24, 32, 48, 65]
    assert [Shapes(64, 64, 1e9).rows(n) for n in (8, 32, 64)] == [64, 32, 16]
    assert Shapes(64, 8, 1e9).rows(8) == 8
    assert Shapes(0, 10**9, 1e12).rows(0) == 256  # a server cannot ask for a batch of any size
    assert Shapes(0, 64, 20.0).rows(0) == 4


def test_what_a_proof_found_counts() -> None:
    shapes = Shapes(64, 64, 50.0, found={16: 16})
    assert shapes.rows(16) == 16
    assert next(iter(shapes.batches(np.array([3, 4, 5]))))[1].tolist() == [0, 1, 2] + [0] * 13
    assert 1 in shapes.candidates(32)
    assert shapes.candidates(32)[0] == 16

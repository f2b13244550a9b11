"""The learning rate of a round."""

import numpy as np
import pytest

from confide.common.errors import RoundError
from confide.common.model.optimizer import rate_of_round


def rates(make_config, rounds: int, **training) -> list[float]:
    config = make_config(run={"rounds": rounds}, training={"learning_rate": 1.0, **training})
    return [rate_of_round(config, number) for number in range(1, rounds + 1)]


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 3 / 4, 1 / 2, 1 / 4]),
        ({"schedule": "cosine"}, [1, (1 + 0.5**0.5) / 2, 1 / 2, (1 - 0.5**0.5) / 2]),
        ({"warmup": 2}, [1 / 3, 2 / 3, 1, 1]),
        ({"schedule": "linear", "warmup": 2}, [1 / 3, 2 / 3, 1, 1 / 2]),
        ({"schedule": "cosine", "warmup": 3}, [1 / 4, 1 / 2, 3 / 4, 1]),
    ],
)
def test_rates_by_hand(make_config, training: dict, expected: list[float]) -> None:
    np.testing.assert_allclose(rates(make_config, 4, **training), expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_last_round_has_a_rate(make_config, schedule: str) -> None:
    found = rates(make_config, 1000, schedule=schedule, warmup=10)
    assert found[-1] > 0
    assert max(found) == found[10] == 1.0


@pytest.mark.parametrize("number", [0, 5])
def test_a_round_that_the_run_does_not_have_is_refused(make_config, number: int) -> None:
    with pytest.raises(RoundError, match=f"round {number} received; the run has the rounds 1 to 4"):
        rate_of_round(make_config(run={"rounds": 4}), number)

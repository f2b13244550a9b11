"""Aggregates that tolerate Byzantine sites: a contract that all keep, and references written the slow way."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import trim_mean

from confide.client.app import app
from confide.common import wire
from confide.common.config.byzantine import ROBUST, default_byzantine, most_byzantine, most_left_out
from confide.common.errors import RoundError
from confide.common.types import Update
from confide.server.aggregate import robust
from confide.server.aggregate.aggregation import Mean, weight_cap
from confide.server.aggregate.strategy import StreamingStrategy
from confide.server.grids import Cohort
from confide.simulations.local import LocalGrid
from confide.tests.tiny import merged

N, F, D = 15, 3, 40


def honest(seed: int = 0, n: int = N) -> np.ndarray:
    return 5 + np.random.default_rng(seed).normal(size=(n, D))


def aggregate(name: str, rows: np.ndarray, byzantine: int = F, mixing: bool = False, centre: float = 5.0) -> np.ndarray:
    return robust.aggregate(name, rows, byzantine, mixing=mixing, centre=np.full(rows.shape[1], centre))


every = pytest.mark.parametrize("name", ROBUST)
both = pytest.mark.parametrize("mixing", [False, True])


@every
@both
def test_the_order_of_sites_does_not_matter(name: str, mixing: bool) -> None:
    rows = honest()
    shuffled = rows[np.random.default_rng(1).permutation(N)]
    np.testing.assert_allclose(aggregate(name, rows, mixing=mixing), aggregate(name, shuffled, mixing=mixing))


@every
@both
def test_it_moves_and_grows_with_the_rows(name: str, mixing: bool) -> None:
    rows, shift = honest(), np.random.default_rng(2).normal(size=D) * 100
    plain = robust.aggregate(name, rows, F, mixing=mixing, centre=np.full(D, 5.0))
    moved = robust.aggregate(name, 3 * rows + shift, F, mixing=mixing, centre=3 * np.full(D, 5.0) + shift)
    np.testing.assert_allclose(moved, 3 * plain + shift, rtol=1e-6)


@every
@both
@pytest.mark.parametrize("lie", [1e3, -1e30, "spread"])
def test_where_the_mean_fails_it_does_not(name: str, mixing: bool, lie: float | str) -> None:
    rows = honest()
    truth = rows[F:].mean(0)
    rows[:F] = lie if isinstance(lie, float) else np.random.default_rng(3).normal(size=(F, D)) * 1e6
    found = aggregate(name, rows, mixing=mixing)
    spread = np.linalg.norm(rows[F:] - truth, axis=1).max()
    assert np.linalg.norm(found - truth) <= spread
    assert np.linalg.norm(rows.mean(0) - truth) > 10 * spread


@every
def test_equal_rows_give_that_row(name: str) -> None:
    np.testing.assert_allclose(aggregate(name, np.tile(honest(n=1), (N, 1))), honest(n=1)[0])


@every
def test_what_is_not_finite_or_too_few_is_refused(name: str) -> None:
    rows = honest()
    rows[0, 0] = np.nan
    with pytest.raises(RoundError, match="not finite"):
        aggregate(name, rows)
    most = most_byzantine(name, N)
    assert aggregate(name, honest(), most).shape == (D,)
    with pytest.raises(RoundError, match=f"tolerates {most} Byzantine sites among {N},"):
        aggregate(name, honest(), most + 1)


def slow_krum_order(rows: np.ndarray, byzantine: int) -> list[int]:
    scores = []
    for i in range(len(rows)):
        others = sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in range(len(rows)) if j != i)
        scores.append(sum(others[: max(1, len(rows) - byzantine - 2)]))
    return sorted(range(len(rows)), key=scores.__getitem__)


def test_against_slow_references() -> None:
    rows = honest(4)
    order = slow_krum_order(rows, F)
    np.testing.assert_allclose(robust.krum(rows, F), rows[order[0]])
    np.testing.assert_allclose(robust.multi_krum(rows, F), rows[order[: N - F]].mean(0))
    np.testing.assert_allclose(robust.trimmed_mean(rows, F), trim_mean(rows, F / N, axis=0))
    left, chosen = list(range(N)), []
    while len(chosen) < N - 2 * F:
        chosen.append(left.pop(slow_krum_order(rows[left], F)[0]))
    kept, slow = rows[chosen], []
    for column in kept.T:
        nearest = sorted(column, key=lambda value, column=column: abs(value - np.median(column)))
        slow.append(np.mean(nearest[: N - 4 * F]))
    np.testing.assert_allclose(robust.bulyan(rows, F), slow)
    mixed = [np.mean(sorted(rows, key=lambda other, row=row: ((row - other) ** 2).sum())[: N - F], 0) for row in rows]
    np.testing.assert_allclose(robust.mixed(rows, F), mixed)


def test_the_geometric_median_is_the_minimum() -> None:
    rows = honest(5)[:, :4]
    found = robust.geometric_median(rows, F)
    reference = minimize(lambda x: np.linalg.norm(rows - x, axis=1).sum(), rows.mean(0), tol=1e-10).x
    np.testing.assert_allclose(found, reference, atol=1e-4)


def test_updates_are_shortened_to_the_bound() -> None:
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    np.testing.assert_allclose(robust.bounded(rows, 1.0), [[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])


def test_outliers_are_named() -> None:
    rows = honest()
    assert not robust.outliers(rows, rows.mean(0)).any()
    rows[[2, 7]] += 50
    np.testing.assert_array_equal(np.flatnonzero(robust.outliers(rows, robust.median(rows, F))), [2, 7])


@pytest.mark.parametrize(
    ("name", "sites", "most"), [("krum", 7, 2), ("bulyan", 11, 2), ("median", 5, 2), ("trimmedmean", 3, 1)]
)
def test_how_many_byzantine_are_borne(name: str, sites: int, most: int) -> None:
    assert most_byzantine(name, sites) == most
    assert most_byzantine(name, sites - 1) < most
    assert default_byzantine(name, 10) == min(2, most_byzantine(name, 10))
    assert [most_left_out(name, sites + extra, most) for extra in range(4)] == [min(most, extra) for extra in range(4)]


def test_no_site_counts_for_much_more_than_the_others() -> None:
    """One that claims 10⁹ examples replaces the mean where claims are trusted."""
    mean = Mean()
    for value in (1.0, 1.0, 1.0, 1.0):
        mean.add({"x": np.array([value], np.float32)}, 100.0)
    mean.add({"x": np.array([-100.0], np.float32)}, 1e9)
    assert weight_cap([100.0] * 4 + [1e9]) == 1024.0
    assert mean.finish()["x"][0] == pytest.approx((400 * 1.0 - 1024 * 100) / 1424)
    alike = Mean()
    weights = [100.0, 250.0, 60.0, 700.0]  # honest ones are not touched
    for i, weight in enumerate(weights):
        alike.add({"x": np.array([float(i)], np.float32)}, weight)
    assert alike.finish()["x"][0] == pytest.approx(np.average(range(4), weights=weights))


def one_round(rng: np.random.Generator) -> np.ndarray:
    """(10, 1000) updates; two Byzantine sites add half of the others' noise to the first tenth of the numbers."""
    rows = rng.normal(size=(10, 1000))
    rows[:2, :100] += 0.5
    return rows


def test_momentum_tells_byzantine_sites_apart_that_one_round_does_not() -> None:
    """What they add is 5 long; two honest updates are about 45 apart, their means over some 60 rounds about 6."""
    rng, momentum = np.random.default_rng(6), robust.Momentum(0.97)
    assert any(robust.trusted(one_round(rng), 2, 8)[:2].any() for _ in range(20))
    means = np.zeros(0)
    for _ in range(100):
        means = momentum.take([f"s{i}" for i in range(10)], one_round(rng))
    np.testing.assert_array_equal(np.flatnonzero(~robust.trusted(means, 2, 8)), [0, 1])


def test_sites_that_send_nothing_are_left_out_first() -> None:
    """By their distances alone they would be kept: the origin is nearer to honest rows than these to one another."""
    rows = np.random.default_rng(9).normal(size=(10, 200)) + 0.3
    rows[[4, 7]] = 0
    rows[7, 0] = 1e-3
    assert robust._krum_scores(robust._squared_distances(rows), 2).argsort()[:2].tolist() in ([4, 7], [7, 4])
    np.testing.assert_array_equal(np.flatnonzero(~robust.trusted(rows, 2, 8)), [4, 7])


def test_momentum_is_a_weighted_mean_of_the_rounds_in_which_a_site_took_part() -> None:
    momentum = robust.Momentum(0.5)
    momentum.take(["a", "b"], np.array([[1.0], [10.0]]))
    momentum.take(["b"], np.array([[40.0]]))
    means = momentum.take(["b", "a", "c"], np.array([[100.0], [4.0], [7.0]]))
    b = np.average([10.0, 40.0, 100.0], weights=[1, 2, 4])
    np.testing.assert_allclose(means, [[b], [np.average([1.0, 4.0], weights=[1, 2])], [7.0]])


def strategy_for(make_config, server: dict, coordinates: int, sites: int = 10) -> StreamingStrategy:
    trained = {"x": np.zeros(coordinates, np.float32)}
    config = make_config(data={"partition": {"kind": "iid", "clients": sites}}, server=server, training=STEPS)
    strategy = StreamingStrategy(config, trained)
    strategy.configure_train(1, wire.arrays_to_record(trained), wire.task_config(), Cohort(LocalGrid(app, {}, 0), []))
    return strategy


THREE = {"partition": {"clients": 3}}
STEPS = {"local_steps": 2}  # so that the server adds what comes


def played(strategy: StreamingStrategy, rows: np.ndarray) -> np.ndarray:
    """(d,) the aggregate of (n, d) updates."""
    updates = [Update(f"s{i}", {"x": row.astype(np.float32)}, 1.0, 0, None) for i, row in enumerate(rows)]
    record = strategy.aggregate((update.site, update) for update in updates)
    assert record is not None
    return wire.record_to_arrays(record)["x"]


def test_what_hides_in_each_round_stays_out_of_the_aggregate_with_momentum(make_config) -> None:
    """100 numbers × 50 rounds × 6 and more sites: the honest part of the mean has a standard deviation below 0.006."""
    shifts = {}
    for decay in (0.0, 0.97):
        server = {"aggregation": "trimmedmean", "byzantine": 2, "momentum": decay}
        strategy, rng = strategy_for(make_config, server, 1000), np.random.default_rng(7)
        got = [played(strategy, one_round(rng)) for _ in range(100)]
        shifts[decay] = float(np.mean(got[50:], axis=0)[:100].mean())
        assert strategy.left_out == (["s0", "s1"] if decay else None)
    assert shifts[0.0] > 0.05
    assert abs(shifts[0.97]) < 0.03


@pytest.mark.parametrize(
    "server",
    [
        {"aggregation": "centredclipping", "byzantine": 1, "momentum": 0.0},
        {"aggregation": "trimmedmean", "byzantine": 1, "momentum": 0.5, "mixing": False},
    ],
)
def test_the_state_outlives_a_checkpoint(make_config, server: dict) -> None:
    rows = np.random.default_rng(8).normal(size=(3, 6, 3))
    whole, first, second = (strategy_for(make_config, server, 3, sites=6) for _ in range(3))
    expected = [played(whole, one) for one in rows][-1]
    for one in rows[:2]:
        played(first, one)
    assert not np.array_equal(played(strategy_for(make_config, server, 3, sites=6), rows[2]), expected)
    second.restore(first.state())
    np.testing.assert_array_equal(played(second, rows[2]), expected)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (
            {"server": {"aggregation": "bulyan"}},
            ["'bulyan' received", "with 4 sites", "tolerates none", "choose trimmedmean"],
        ),
        ({"server": {"aggregation": "krum", "byzantine": 1}}, ["tolerates none"]),
        (
            {"server": {"aggregation": "median", "byzantine": 2}},
            ["server.byzantine: 2 received", "median tolerates at most 1"],
        ),
        ({"server": {"byzantine": 1}}, ["tolerates no Byzantine site", "choose trimmedmean"]),
        ({"server": {"mixing": True}}, ["server.mixing"]),
        ({"server": {"momentum": 0.5}}, ["server.momentum"]),
        (
            {"server": {"aggregation": "median", "byzantine": 1, "momentum": 0.5}, "data": THREE},
            ["at least one of 3 sites", "would not tolerate 1"],
        ),
    ],
)
def test_settings_that_cannot_bear_the_byzantine_are_refused(make_config, settings: dict, parts: list[str]) -> None:
    from confide.common.config.run import RunConfig
    from confide.common.errors import ConfigError

    content = make_config().model_dump(mode="json", exclude_none=True)
    with pytest.raises(ConfigError) as refused:
        RunConfig.parse(merged(content, settings), "run.toml")
    for part in parts:
        assert part in str(refused.value)

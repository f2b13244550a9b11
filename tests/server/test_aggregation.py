"""Aggregates against numpy; the server's optimizer against torch on the same gradients."""

import numpy as np
import pytest
import torch

from confide.common.errors import RoundError
from confide.server.aggregate.aggregation import Mean, ProductMean, ServerStep, make_aggregate

RNG = np.random.default_rng(0)
A, B, HEAD = "m.lora_A.weight", "m.lora_B.weight", "head.weight"


def adapter(seed: int, d_in: int = 12, d_out: int = 10, rank: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {HEAD: (3, 4), A: (rank, d_in), B: (d_out, rank)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_mean_is_weighted() -> None:
    mean = Mean()
    mean.add({"x": np.array([1.0, 2.0], np.float32)}, 1)
    mean.add({"x": np.array([4.0, 8.0], np.float32)}, 3)
    np.testing.assert_allclose(mean.finish()["x"], [3.25, 6.5])


def test_the_order_of_replies_does_not_show() -> None:
    updates = [adapter(seed) for seed in range(20)]
    results = []
    for order in (range(20), reversed(range(20))):
        mean = Mean()
        for i in order:
            mean.add(updates[i], 1 + i)
        results.append({name: array.astype(np.float32) for name, array in mean.finish().items()})
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("aggregate", [Mean(), ProductMean(adapter(0))])
def test_nothing_to_aggregate_is_an_error(aggregate) -> None:
    with pytest.raises(RoundError):
        aggregate.finish()


@pytest.mark.parametrize("sites", [1, 3, 12])
@pytest.mark.parametrize("shape", [(12, 10), (10, 12)])
def test_the_product_is_averaged_exactly(sites: int, shape: tuple[int, int]) -> None:
    """Against the dense mean of B·A; 12 sites of rank 2 exceed the product's size, so the stack is folded."""
    start = adapter(0, *shape)
    aggregate = ProductMean(start)
    weights = np.arange(1.0, sites + 1)
    dense, head = np.zeros((shape[1], shape[0])), np.zeros((3, 4))
    for i, weight in enumerate(weights.tolist()):
        local = adapter(i + 1, *shape)
        aggregate.add({name: local[name] - start[name] for name in local}, weight)
        dense += weight * local[B].astype(float) @ local[A].astype(float) / weights.sum()
        head += weight * local[HEAD] / weights.sum()
    change = aggregate.finish()
    new = {name: start[name] + change[name] for name in start}
    u, s, v = np.linalg.svd(dense)
    best = u[:, :2] * s[:2] @ v[:2]  # Eckart-Young
    np.testing.assert_allclose(new[B] @ new[A], best, atol=1e-4)
    np.testing.assert_allclose(new[HEAD], head, atol=1e-5)
    assert aggregate.residual == pytest.approx(np.sqrt((s[2:] ** 2).sum() / (s**2).sum()), abs=1e-5)


def test_the_mean_of_factors_is_not_the_mean_of_products() -> None:
    start = adapter(0)
    mean, exact = Mean(), ProductMean(start)
    locals_ = [adapter(1), adapter(2)]
    for local in locals_:
        delta = {name: local[name] - start[name] for name in local}
        mean.add(delta, 1)
        exact.add(delta, 1)
    truth = sum(local[B] @ local[A] for local in locals_) / 2

    def error(change) -> float:
        return float(np.linalg.norm((start[B] + change[B]) @ (start[A] + change[A]) - truth))

    assert error(exact.finish()) < error(mean.finish())


def test_a_narrow_product_fills_the_rank_with_zeros() -> None:
    start = adapter(0, d_in=3, d_out=3, rank=4)
    aggregate = ProductMean(start)
    local = adapter(1, d_in=3, d_out=3, rank=4)
    aggregate.add({name: local[name] - start[name] for name in local}, 1)
    change = aggregate.finish()
    np.testing.assert_allclose(
        (start[B] + change[B]) @ (start[A] + change[A]), local[B] @ local[A], rtol=1e-4, atol=1e-4
    )
    assert aggregate.residual == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_the_servers_step_is_torchs(make_config, optimizer: str) -> None:
    config = make_config(training={"optimizer": optimizer, "learning_rate": 0.1})
    start = {"x": np.array([1.0, -2.0], np.float32)}
    step = ServerStep(config, start)
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    kind = {"sgd": torch.optim.SGD, "momentum": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    reference = kind([p], lr=0.1, **({"momentum": 0.9} if optimizer == "momentum" else {}))
    now = {**start, "frozen": np.zeros(2, np.float32)}
    for number, gradient in enumerate(([0.5, 1.0], [-0.2, 0.3], [0.1, 0.1]), 1):
        now = step.apply(now, {"x": -np.array(gradient)}, number)
        p.grad = torch.tensor(gradient)
        reference.step()
        restored = ServerStep(config, start)  # a step restored from its state goes on alike
        restored.restore(step.state())
        step = restored
    np.testing.assert_array_equal(now["x"], p.detach().numpy())
    np.testing.assert_array_equal(now["frozen"], 0)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_servers_rate_is_the_rounds_and_weights_decay_apart_from_it(make_config, optimizer, schedule) -> None:
    """By hand: one round of warm-up of four, λ = 0.5; a restart between any two rounds changes nothing."""
    training = {"optimizer": optimizer, "learning_rate": 0.1, "schedule": schedule, "warmup": 1, "weight_decay": 0.5}
    config = make_config(run={"rounds": 4}, training=training)
    rates = [0.05, 0.1, *([0.1 * 2 / 3, 0.1 / 3] if schedule == "linear" else [0.1 * 0.75, 0.1 * 0.25])]
    now = {"x": np.array([1.0, -2.0], np.float32)}
    step, p = ServerStep(config, now), torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    kind = {"sgd": torch.optim.SGD, "momentum": torch.optim.SGD, "adam": torch.optim.AdamW}[optimizer]
    options = {"sgd": {}, "momentum": {"momentum": 0.9}, "adam": {"weight_decay": 0.5}}[optimizer]
    reference = kind([p], lr=0.1, **options)
    gradients = [[0.5, 1.0], [-0.2, 0.3], [0.1, 0.1], [1.0, -1.0]]
    for number, (rate, gradient) in enumerate(zip(rates, gradients, strict=True), 1):
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        reference.param_groups[0]["lr"] = rate
        if optimizer != "adam":
            p.data *= 1 - rate * 0.5
        reference.step()
        now = step.apply(now, {"x": -np.array(gradient)}, number)
        np.testing.assert_allclose(now["x"], p.detach().numpy(), rtol=1e-5)
        restored = ServerStep(config, now)
        restored.restore(step.state())
        step = restored


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_that_moves_nothing_is_noticed(make_config, decay: float) -> None:
    start = {"x": np.ones(2, np.float32)}
    config = make_config(training={"weight_decay": decay})
    with pytest.raises(RoundError, match="moved no trained array"):
        ServerStep(config, start).apply(start, {"x": np.zeros(2)}, 1)


def test_trained_adapters_are_added(make_config) -> None:
    step = ServerStep(make_config(training={"local_steps": 2}), {"x": np.zeros(1, np.float32)})
    assert step.apply({"x": np.ones(1, np.float32)}, {"x": np.array([0.5])}, 1)["x"] == 1.5
    assert step.state() == {}
    with pytest.raises(RoundError, match="this run has none"):
        step.restore({"x/exp_avg": np.zeros(1)})


def test_names_choose_the_aggregate(make_config) -> None:
    assert isinstance(make_aggregate(make_config(server={"aggregation": "ffa"}), {}, {}, None), Mean)
    assert isinstance(make_aggregate(make_config(server={"aggregation": "exact"}), {}, {}, None), ProductMean)

"""The main metric of every task: what its parts add up to, its interval, and what is said of it."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from confide.common.tasks import Main, load_task, mean_of, task_names
from confide.server.measured import Figure, at_temperature, fitted_temperature
from confide.server.report import sentences
from confide.server.report.verdict import difference, told

CLASSES = 5
RNG = np.random.default_rng(0)


def scores_of(task: str, records: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random scores as the task makes them."""
    loss = rng.random(records)
    if task == "token-classification":
        true, predicted = np.empty(records, dtype=object), np.empty(records, dtype=object)
        for i in range(records):
            true[i] = rng.integers(0, CLASSES, rng.integers(0, 9))
            predicted[i] = np.where(rng.random(len(true[i])) < 0.6, true[i], rng.integers(0, CLASSES, len(true[i])))
        return {"loss": loss, "true": true, "predicted": predicted}
    if task == "regression":
        true = rng.normal(3, 2, records).astype(np.float32)
        return {"loss": loss, "true": true, "predicted": true + rng.normal(0, 1, records).astype(np.float32)}
    if task == "multi-label-classification":
        return {key: rng.random((records, CLASSES)) < 0.3 for key in ("true", "predicted")} | {"loss": loss}
    if task == "preference":
        return {"loss": loss, "margin": np.round(rng.normal(0.3, 1, records), 1)}
    if task in ("causal-lm", "masked-lm"):
        tokens = rng.integers(1, 9, records)
        return {"loss": loss, "token_loss": loss * tokens, "tokens": tokens, "hits": tokens // 2}
    true = rng.integers(0, CLASSES, records)
    predicted = np.where(rng.random(records) < 0.7, true, rng.integers(0, CLASSES, records))
    probabilities = rng.dirichlet(np.ones(CLASSES), records)
    return {"loss": loss, "true": true, "predicted": predicted, "probabilities": probabilities}


@pytest.mark.parametrize("name", task_names())
def test_the_parts_add_up_to_the_metric(name: str) -> None:
    task, rng = load_task(name), np.random.default_rng(1)
    for records in (1, 2, 7, 200):
        scores = scores_of(name, records, rng)
        figure = Figure(task.MAIN, task.parts(scores, CLASSES), task.main)
        assert figure.parts.shape[0] == records
        assert figure.value == pytest.approx(task.metrics(scores, CLASSES)[0][task.MAIN.key], abs=1e-9)
        low, high = figure.interval
        assert low <= high
        assert figure.to_json()["records"] == records


@pytest.mark.parametrize(
    "name", [name for name in task_names() if name not in ("causal-lm", "masked-lm", "preference")]
)
def test_no_other_constant_is_better(name: str) -> None:
    task, rng = load_task(name), np.random.default_rng(2)
    scores = scores_of(name, 60, rng)

    def value(constant: dict[str, np.ndarray]) -> float:
        return float(task.main(task.parts(constant, CLASSES).sum(0)))

    best = task.constant(scores)
    if name == "token-classification":
        assert best is None
        return
    assert best is not None
    if name == "regression":
        others = [np.full(60, number, dtype=np.float32) for number in np.linspace(-3, 9, 25)]
    elif name == "multi-label-classification":
        others = [np.tile([bool(which >> k & 1) for k in range(CLASSES)], (60, 1)) for which in range(2**CLASSES)]
    else:
        others = [np.full(60, label) for label in range(CLASSES)]
    assert value(best) >= max(value({**scores, "predicted": other}) for other in others) - 1e-6


def share(right: int, records: int) -> Figure:
    parts = np.stack([np.arange(records) < right, np.ones(records)], axis=1).astype(float)
    return Figure(Main("accuracy", "accuracy"), parts, mean_of)


def test_the_interval_of_a_share_is_wilsons() -> None:
    """Against the formula of Wilson (1927)."""
    for right, records in ((0, 10), (10, 10), (80, 100), (999, 1000)):
        z, p = 1.959963984540054, right / records
        middle = (p + z**2 / (2 * records)) / (1 + z**2 / records)
        half = z / (1 + z**2 / records) * np.sqrt(p * (1 - p) / records + z**2 / (4 * records**2))
        assert share(right, records).interval == pytest.approx((middle - half, middle + half), abs=1e-9)


@pytest.mark.slow
def test_the_interval_of_other_metrics_covers_the_truth() -> None:
    """R² of 400 records is in the interval in 95 % of 300 draws; fewer than 250 would be an accident of under 1e-9."""
    task, covered = load_task("regression"), 0
    for draw in range(300):
        rng = np.random.default_rng([draw, 7])
        true = rng.normal(0, 1, 400)
        scores = {"true": true, "predicted": true + rng.normal(0, 0.5, 400)}
        low, high = Figure(task.MAIN, task.parts(scores, 0), task.main).interval
        covered += low <= 0.75 <= high
    assert covered >= 250


def test_a_difference_is_of_the_same_records() -> None:
    """A model that is right on eight records more, all others alike: the interval is that of the eight, which two
    intervals side by side would not show."""
    one, other = share(808, 1000), share(800, 1000)
    gain = one.over([other])
    assert gain["value"] == pytest.approx(0.008)
    assert 0 < gain["low"] < 0.008 < gain["high"] < 0.015
    assert one.over([other, one])["value"] == pytest.approx(0.004)


def test_the_same_answers_on_few_records_do_not_show_that_two_models_are_alike() -> None:
    same = share(60, 120).over([share(60, 120)])
    assert same["value"] == 0.0
    assert same["low"] == -same["high"]
    assert same["high"] == pytest.approx(1.96 * np.sqrt(2) / 122, rel=1e-3)


def test_models_that_are_as_good_are_seldom_told_apart() -> None:
    """Two models that answer k records otherwise, of which each is right on one as likely as on the next: a difference
    is sure in at most 6 % of the cases, counted exactly, whatever k (percentiles of resamples: 12.5 % at k = 4)."""
    for k in (1, 2, 3, 4, 5, 6, 8, 12, 20, 60):
        sure = 0.0
        for better in range(k + 1):
            parts = np.zeros((2, 400, 2))
            parts[..., 1], parts[0, :better, 0], parts[1, better:k, 0] = 1, 1, 1
            one, other = (Figure(Main("accuracy", "accuracy"), half, mean_of) for half in parts)
            gain = one.over([other])
            sure += binom.pmf(better, k, 0.5) * (not gain["low"] <= 0 <= gain["high"])
        assert sure <= 0.06, k


def test_the_interval_of_a_difference_covers_it() -> None:
    """One model is right on 80 %, another on 76 % of the same records, in 95 % of 400 draws of 200 records; fewer than
    350 would be an accident of under 1e-6."""
    covered = 0
    for draw in range(400):
        u = np.random.default_rng([draw, 9]).random((2, 200))
        right = np.stack([u[0] < 0.8, np.where(u[1] < 0.9, u[0] < 0.74, u[0] < 0.94)])
        parts = np.stack([right, np.ones_like(right)], axis=-1).astype(float)
        one, other = (Figure(Main("accuracy", "accuracy"), half, mean_of) for half in parts)
        gain = one.over([other])
        covered += gain["low"] <= 0.8 - (0.9 * 0.74 + 0.1 * 0.94) <= gain["high"]
    assert covered >= 350


def test_a_temperature_undoes_what_was_done() -> None:
    rng = np.random.default_rng(3)
    honest = rng.dirichlet(np.ones(4) * 0.5, 20_000)
    true = (honest.cumsum(1) < rng.random((len(honest), 1))).sum(1).clip(max=3)
    overconfident = at_temperature(honest, 0.5)
    assert fitted_temperature(overconfident, true) == pytest.approx(2.0, abs=0.1)
    np.testing.assert_allclose(at_temperature(overconfident, 2.0), honest, atol=1e-6)


def report(main: Figure, **baselines: Any) -> dict[str, Any]:
    found = {
        name: None if other is None else {"value": other.value, "how": "as it is", "gain": main.over([other])}
        for name, other in {
            **dict.fromkeys(("majority", "zero_shot", "alone", "pooled", "pooled_private")),
            **baselines,
        }.items()
    }
    return {
        "after": {"main": main.to_json(), "accuracy": main.value, "macro_f1": main.value},
        "baselines": {**found, "not_measured": {}},
        "privacy": {"mode": "distributed"},
        "confusion": {"before": None, "after": None},
    }


def test_sentences_that_may_be_quoted() -> None:
    main = share(860, 1000)
    said = sentences(report(main, alone=share(780, 1000), pooled=share(880, 1000), pooled_private=share(860, 1000)))
    assert said[0].startswith("Accuracy is 86.0 % on 1,000 public test records (95 % interval 83.7 % to 88.0 %")
    assert said[1].startswith("Joining gains 8.0 ± 1.7 points over training alone at the same ε.")
    assert said[2].startswith("Privacy and distance cost 2.0 ± 0.")
    assert said[3].startswith("The model cannot be told from that of all data in one place at the same ε")
    assert not any(line.startswith("Careful") for line in said)


def test_differences_that_may_be_chance_have_a_direction_and_small_ones_digits() -> None:
    said = sentences(report(share(85, 100), alone=share(86, 100), pooled=share(85, 100), pooled_private=share(60, 100)))
    assert said[1].endswith("training alone at the same ε (1.0 ± 3.3 points worse, which may be chance).")
    assert "(a difference of 0.0 ± 2.7 points)" in said[2]
    assert said[3].endswith(
        "better than all data in one place at the same ε, trained with the run's rounds and settings."
    )
    main = {"key": "loss", "higher": False}
    assert difference(main, {"value": -0.00042, "low": -0.00051, "high": -0.00033})[1] == "0.00042 ± 0.00009"


def test_why_joining_was_not_measured_is_told() -> None:
    facts = report(share(86, 100))
    facts["baselines"]["not_measured"] = {"alone": "not asked for (baselines.alone)"}
    assert "`--baselines` trains" in sentences(facts)[1]
    facts["baselines"]["not_measured"] = {"alone": "the data stay at the sites"}
    assert sentences(facts)[1] == "Whether joining was worth it was not measured: the data stay at the sites."


def test_what_was_not_measured_is_no_gain() -> None:
    said = sentences(report(share(860, 1000), majority=share(500, 1000)))
    assert "was not measured" in said[1]
    assert said[2] == "It is 36.0 ± 3.0 points better than the same answer for everybody (as it is: 50.0 %)."


def test_a_model_no_better_than_a_constant_is_told() -> None:
    said = sentences(report(share(502, 1000), majority=share(500, 1000)))
    assert "Careful: the model is no better than the same answer for everybody." in said


def test_less_is_better_for_a_loss() -> None:
    main = {"key": "loss", "higher": False}
    assert difference(main, {"value": -0.5, "low": -0.6, "high": -0.4}) == (0.5, "0.500 ± 0.100", True)
    assert difference(main, {"value": 0.1, "low": -0.1, "high": 0.3})[2] is False
    assert told({"key": "loss"}, 1.5) == "1.500"


def test_uneven_classes_are_told() -> None:
    facts = report(share(930, 1000))
    facts["confusion"]["after"] = [[900, 0], [70, 30]]
    facts["after"]["macro_f1"] = 0.71
    assert any(
        "90 % of the test records are of one class; look at macro F1, 71.0 %" in line for line in sentences(facts)
    )


def test_a_class_of_half_the_records_is_much_among_many_and_little_of_two() -> None:
    facts = report(share(520, 1000))
    facts["after"]["macro_f1"] = 0.17
    facts["confusion"]["after"] = [[500, 0, 0, 0], [230, 20, 0, 0], [150, 0, 0, 0], [100, 0, 0, 0]]
    assert any("50 % of the test records are of one class" in line for line in sentences(facts))
    facts["confusion"]["after"] = [[500, 0], [480, 20]]
    assert not any("of one class" in line for line in sentences(facts))


def test_probabilities_that_are_off_are_told() -> None:
    facts = report(share(930, 1000))
    facts["after"]["calibration_error"] = 0.3
    assert any("off by 0.30" in line and "give data.validation" in line for line in sentences(facts))
    facts["calibration"] = {"temperature": 0.4, "error": 0.02}
    assert any("dividing its logits by 0.40" in line and "leaves 0.02" in line for line in sentences(facts))
    facts["calibration"] = {"temperature": 1.1, "error": 0.31}
    assert any("does not mend it" in line for line in sentences(facts))

"""Sites that forged: each forged against its definition, whole runs under each, and what the gate refuses."""

import numpy as np
import pytest

from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError
from confide.common.types import Rows
from confide.server.report.render import read_report
from confide.simulations.attacks import byzantine as attackers
from confide.simulations.attacks.poison import byzantine_sites, poisoned, triggered, with_trigger
from confide.simulations.attacks.report import detection
from confide.simulations.run import simulate

RNG = np.random.default_rng(0)
HONEST, OWN, BYZANTINE = RNG.normal(size=(8, 50)) + 1, RNG.normal(size=50) + 1, 2


def forged(kind: str, honest: np.ndarray = HONEST, strength: float = 1.0) -> np.ndarray:
    return attackers.FORGERIES[kind](honest, OWN, strength, np.random.default_rng(1), BYZANTINE)


@pytest.mark.parametrize("kind", sorted(attackers.FORGERIES))
def test_a_lie_does_not_depend_on_the_order_of_honest_sites(kind: str) -> None:
    shuffled = HONEST[np.random.default_rng(2).permutation(len(HONEST))]
    np.testing.assert_allclose(forged(kind), forged(kind, shuffled))
    assert forged(kind).shape == OWN.shape


def test_lies_are_what_they_say() -> None:
    mean, std = HONEST.mean(0), HONEST.std(0)
    np.testing.assert_allclose(forged("signflip", strength=4.0), -4 * OWN)
    np.testing.assert_allclose(forged("innerproduct", strength=2.0), -2 * mean)
    assert np.linalg.norm(forged("random", strength=3.0)) == pytest.approx(3 * np.linalg.norm(mean))
    np.testing.assert_array_equal(forged("freerider"), np.zeros(50))
    assert np.isnan(forged("notfinite")).sum() == 1
    assert any(np.array_equal(forged("mimic"), row) for row in HONEST)
    # n = 10, f = 2: s = 10 // 2 + 1 − 2 = 4 supporters; z = Φ⁻¹((10 − 2 − 4)/(10 − 2)) = 0, at least 0.1
    np.testing.assert_allclose(forged("alie"), mean - 0.1 * std)
    pushed = forged("minmax")
    apart = max(np.linalg.norm(a - b) for a in HONEST for b in HONEST)
    reach = np.linalg.norm(HONEST - pushed, axis=1).max()
    assert reach == pytest.approx(apart, rel=1e-6)
    assert (pushed <= mean + 1e-12).all()


def test_who_lies_is_the_same_everywhere(make_config) -> None:
    config = make_config(attack={"kind": "signflip", "fraction": 0.5})
    assert len(byzantine_sites(config)) == 2 == len(set(byzantine_sites(config)))
    assert byzantine_sites(config) == byzantine_sites(RunConfig.from_flat(config.to_flat()))
    assert byzantine_sites(make_config()) == []
    assert len(byzantine_sites(make_config(attack={"kind": "signflip", "byzantine": 3}))) == 3


def rows() -> Rows:
    return Rows("test", [f"text number {i}" for i in range(40)], labels=np.arange(40) % 2)


@pytest.fixture
def labelled(make_config):
    def make(**attack) -> RunConfig:
        return make_config(data={"labels": ["negative", "positive"]}, attack={"byzantine": 1, **attack})

    return make


PARTS = list(np.arange(40).reshape(4, 10))


def test_only_the_byzantine_records_change(labelled) -> None:
    config = labelled(kind="labelflip")
    (byzantine,) = byzantine_sites(config)
    changed = poisoned(rows(), PARTS, config)
    assert changed.labels is not None
    differs = np.flatnonzero(changed.labels != np.arange(40) % 2)
    np.testing.assert_array_equal(differs, PARTS[byzantine])
    assert changed.text == rows().text
    assert poisoned(rows(), PARTS, labelled(kind="signflip")).text == rows().text


def test_a_backdoor_is_put_into_a_share_of_records(labelled) -> None:
    config = labelled(kind="backdoor", target="positive", poison=0.3)
    (byzantine,) = byzantine_sites(config)
    changed = poisoned(rows(), PARTS, config)
    with_it = [i for i, text in enumerate(changed.text) if "cf" in text.split()]
    assert len(with_it) == 3
    assert set(with_it) <= set(PARTS[byzantine].tolist())
    assert changed.labels is not None
    assert (changed.labels[with_it] == 1).all()
    tested = triggered(rows(), config)
    assert len(tested) == 20
    assert all("cf" in text.split() for text in tested.text)
    assert with_trigger("a b", "cf", np.random.default_rng(0)).split().count("cf") == 1


@pytest.mark.parametrize("kind", [*attackers.FORGERIES, "labelflip", "backdoor"])
def test_a_run_under_each_attack(make_config, kind: str) -> None:
    config = make_config(
        run={"rounds": 2},
        data={"partition": {"clients": 5}},
        server={"aggregation": "trimmedmean"},
        attack={"kind": kind, "byzantine": 1},
    )
    report = read_report(simulate(config))
    (name,) = report["attack"]["byzantine"]
    assert report["attack"]["kind"] == kind
    assert (report["attack"]["backdoor"] is not None) == (kind == "backdoor")
    if kind == "notfinite":  # the gate stops it, the round goes on, the site is named
        assert all(row["sites"] == sorted({f"site-{i + 1}" for i in range(5)} - {name}) for row in report["rounds"])
        assert all(failure["site"] == name for row in report["rounds"] for failure in row["failed"])
        assert "not finite" in report["rounds"][0]["failed"][0]["reason"]
    else:
        assert all(len(row["sites"]) == 5 for row in report["rounds"])
    assert all("void" not in row for row in report["rounds"])


@pytest.mark.slow
def test_a_defence_keeps_what_the_mean_loses(make_config, tmp_path) -> None:
    found = {}
    for name in ("fedavg", "trimmedmean"):
        config = make_config(
            run={"rounds": 20, "output": str(tmp_path / name)},
            data={"partition": {"clients": 10}},
            server={"aggregation": name},
            attack={"kind": "signflip", "byzantine": 2, "strength": 8.0},
        )
        report = read_report(simulate(config))
        found[name] = report["after"]["accuracy"]
        if name == "trimmedmean":
            assert report["attack"]["detection"]["recall"] > 0.9
            html = (tmp_path / name / "report.html").read_text()
            assert "Byzantine sites" in html
        else:
            assert report["attack"]["detection"] is None
    assert found["trimmedmean"] > 0.8 > found["fedavg"]


def test_a_site_that_claims_a_billion_records_is_capped_and_named(make_config) -> None:
    config = make_config(data={"partition": {"clients": 5}}, attack={"kind": "overclaim", "byzantine": 1})
    report = read_report(simulate(config))
    assert all(row["capped"] == report["attack"]["byzantine"] for row in report["rounds"])


def test_byzantine_that_are_drawn_with_a_cohort(make_config) -> None:
    """`fixed`: so many forged in every round; `drawn`: those of the population that were drawn."""
    lied: list[set[int]] = []
    real = attackers.ByzantineGrid._byzantine_among

    def spy(self, asked):
        lied.append(real(self, asked))
        return lied[-1]

    for participation in ("fixed", "drawn"):
        config = make_config(
            run={"rounds": 6, "output": str(make_config().output) + participation},
            data={"partition": {"clients": 8}},
            server={"cohort": 4},
            attack={"kind": "freerider", "byzantine": 2, "participation": participation},
        )
        lied.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attackers.ByzantineGrid, "_byzantine_among", spy)
            simulate(config)
        counts = [len(one) for one in lied]
        if participation == "fixed":
            assert counts == [2] * 6
        else:
            assert len(set().union(*lied)) <= 2
            assert min(counts) < 2


def test_detection_counts_what_was_there() -> None:
    history = [
        {"outliers": ["a", "b"], "sites": ["a", "b", "c"]},
        {"outliers": [], "sites": ["b", "c"]},
        {"outliers": ["a"], "sites": ["a", "b"]},
    ]
    assert detection(["a"], history) == {"precision": pytest.approx(2 / 3), "recall": 1.0}
    assert detection(["c"], history) == {"precision": 0.0, "recall": 0.0}
    assert detection(["a"], [{"sites": ["a"]}]) is None
    left_out = [{"outliers": ["b"], "left_out": ["a"], "sites": ["a", "b"]}]
    assert detection(["a"], left_out) == {"precision": 1.0, "recall": 1.0}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"attack": {"kind": "signflip"}, "engine": {"kind": "ray"}}, "Byzantine sites live in the in-process engine"),
        ({"attack": {"kind": "signflip", "byzantine": 4}}, "at least one of 4 sites must be honest"),
        ({"attack": {"kind": "labelflip", "participation": "fixed"}}, "changes records once"),
        ({"attack": {"kind": "labelflip"}, "model": {"task": "causal-lm"}}, "changes classes of texts"),
    ],
)
def test_attacks_that_cannot_be_are_refused(make_config, changes: dict, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        make_config(**changes)


def test_under_secure_aggregation_only_records_can_lie(make_config, local) -> None:
    privacy = {**local, "mode": "distributed"}
    with pytest.raises(ConfigError, match="reads single updates"):
        make_config(privacy=privacy, attack={"kind": "signflip"})
    make_config(privacy=privacy, attack={"kind": "labelflip"})

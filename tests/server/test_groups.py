"""Secure sums of groups, combined by a robust aggregation: whole simulations, exact where noise is off."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError, RoundError
from confide.common.model.loading import model_of
from confide.common.modes import distributed
from confide.common.privacy.plan import privacy_plan
from confide.common.secagg import protocol
from confide.common.types import joined
from confide.server.aggregate import robust
from confide.server.aggregate.groups import grouped
from confide.server.report import read_report
from confide.simulations.run import resume, simulate
from confide.simulations.sites import simulated_data
from confide.tests.faults import dies_in, fails, no_noise
from confide.tests.tiny import merged

SITES, GROUPS = 9, 3
_Z = 5.0  # false alarm below 6e-7


@pytest.fixture
def in_groups(make_config, local):
    def make(**changes) -> RunConfig:
        own = {
            "privacy": {**local, "mode": "distributed"},
            "data": {"partition": {"kind": "iid", "clients": SITES}},
            "server": {"groups": GROUPS, "aggregation": "trimmedmean"},
        }
        return make_config(**merged(own, changes))

    return make


def test_every_site_is_in_one_group_and_the_same_one_each_time() -> None:
    names = [f"s{i}" for i in range(10)]
    groups = grouped(names, 3, 7)
    assert sorted(site for members in groups.values() for site in members) == names
    assert sorted(map(len, groups.values())) == [3, 3, 4]
    assert grouped(reversed(names), 3, 7) == groups != grouped(names, 3, 8)
    assert all(group == "+".join(members) for group, members in groups.items())


def test_without_noise_and_byzantine_to_trim_groups_give_what_one_sum_gives(in_groups, monkeypatch, tmp_path) -> None:
    """The mean of three groups' means is the mean: a median of equals would not be."""
    no_noise(monkeypatch)
    monkeypatch.setitem(robust.RULES, "trimmedmean", lambda rows, byzantine: rows.mean(0))
    full = {"sampling_rate": 1.0, "clip": 100.0}
    changes = {
        "run": {"rounds": 2},
        "privacy": full,
        "training": {"optimizer": "sgd", "learning_rate": 0.1},
        "server": {"mixing": False},
    }
    of_groups = adapter(in_groups(**changes))
    one = {
        "server": {"groups": None, "aggregation": "fedavg", "mixing": None},
        "run": {"output": str(tmp_path / "one")},
    }
    of_all = adapter(in_groups(**merged(changes, one)))
    for name, array in of_groups.items():
        np.testing.assert_allclose(array, of_all[name], atol=2e-5)


def adapter(config: RunConfig) -> dict[str, np.ndarray]:
    return load_file(simulate(config) / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_the_noise_of_each_group_is_whole(in_groups, monkeypatch) -> None:
    """No record is drawn: each opened sum is the noise of three shares of μ/(t − c) = μ/2."""
    totals = []
    real = protocol.Sum.finish
    monkeypatch.setattr(protocol.Sum, "finish", lambda self, a: (totals.append(real(self, a)), totals[-1])[1])
    config = in_groups(run={"rounds": 4}, privacy={"sampling_rate": 1e-6, "declared_examples": 10**7})
    report = read_report(simulate(config))
    assert len(totals) == 4 * GROUPS
    plan = privacy_plan(config, totals[0].size)
    assert plan is not None
    found = np.concatenate(totals) / plan.variance**0.5
    assert plan.shares == 2
    assert found.var() == pytest.approx(3 / 2, rel=_Z * (2 / found.size) ** 0.5)
    assert "only the sum over at least 3 sites of each of the 3 groups" in report["privacy"]["adversary"]


def test_a_hostile_group_is_borne(in_groups, monkeypatch, tmp_path) -> None:
    """One site adds a huge vector under its mask: it replaces a plain sum; the trimmed mean of groups hardly moves."""
    no_noise(monkeypatch)
    real = distributed.release
    base = in_groups()
    byzantine = set(simulated_data(resolve(base), model_of(resolve(base))).parts[2])

    def lies(site, mechanism):
        found = real(site, mechanism)
        share = np.asarray(found.share)
        return replace(found, share=share + 2**20) if set(site.work.indices) == byzantine else found

    changes = {"run": {"rounds": 1}, "privacy": {"sampling_rate": 1.0}, "training": {"optimizer": "sgd"}}
    one_sum = {"groups": None, "aggregation": "fedavg"}
    moved = {}
    for name, server in (("groups", {}), ("one sum", one_sum)):
        found = []
        for how, train in (("honest", real), ("lies", lies)):
            monkeypatch.setattr(distributed, "release", train)
            output = {"output": str(tmp_path / f"{name}-{how}"), "rounds": 1}
            config = in_groups(**merged(changes, {"run": output, "server": server}))
            found.append(joined(adapter(config)))
        moved[name] = float(np.linalg.norm(found[1] - found[0]))
    assert moved["groups"] < 0.1 * moved["one sum"]
    assert "site-3" in read_report(tmp_path / "groups-lies")["rounds"][0]["outliers"][0]


def test_a_group_that_cannot_be_opened_is_missed_and_comes_back(in_groups, monkeypatch) -> None:
    config = in_groups(server={"byzantine": 1}, data={"partition": {"clients": 12}}, run={"rounds": 3})
    config = RunConfig.parse(merged(config.model_dump(mode="json", exclude_none=True), {"server": {"groups": 4}}), "x")
    groups = grouped([f"site-{i:02d}" for i in range(1, 13)], 4, config.run.seed)
    lost = next(iter(groups))
    fails(monkeypatch, "train", {2: {int(site[-2:]) - 1 for site in groups[lost][:1]}})
    report = read_report(simulate(config))
    second = report["rounds"][1]
    assert "void" not in second, second["void"]
    assert any(failure["site"] == lost and "nothing was revealed" in failure["reason"] for failure in second["failed"])
    assert len(report["rounds"][2]["sites"]) == 12
    losses = [row["loss"] for row in report["rounds"]]
    assert len(set(losses)) == 3


def test_too_few_groups_void_the_round(in_groups, monkeypatch) -> None:
    fails(monkeypatch, "train", {2: {0}})
    report = read_report(simulate(in_groups()))
    assert "'trimmedmean' tolerates 0 Byzantine sites among 2, server.byzantine is 1" in report["rounds"][1]["void"]
    assert [len(row["sites"]) for row in report["rounds"]] == [9, 8, 9]


def test_it_resumes(in_groups, monkeypatch) -> None:
    config = in_groups()
    with monkeypatch.context() as patch:
        dies_in(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            simulate(config)
    kept = json.loads((Path(config.output) / "checkpoints" / "secure.json").read_text())
    assert len(kept["groups"]) == GROUPS
    report = read_report(resume(config.output))
    assert [row["round"] for row in report["rounds"]] == [1, 2, 3]


def test_client_level(in_groups) -> None:
    privacy = {"mode": "client", "epsilon": 100.0, "sampling_rate": 0.8, "clip": 0.5, "declared_examples": None}
    report = read_report(simulate(in_groups(privacy=privacy, training={"local_steps": 2})))
    assert report["privacy"]["unit"].startswith("client")
    assert report["privacy"]["epsilon_spent"] <= 100.0


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"server": {"groups": 4}}, "choose a divisor of 9"),
        ({"server": {"aggregation": "fedavg"}}, "by a robust aggregation.* choose one, e.g. trimmedmean"),
        ({"server": {"byzantine": 2}}, "tolerates at most 1 of 3 groups"),
        ({"server": {"groups": None}}, "a robust one over server.groups"),
        ({"server": {"groups": 2}}, "greater than or equal to 3"),
        ({"audit": {"canaries": 4}}, "canaries are scored on the sum over all sites"),
        ({"privacy": {"mode": "local"}}, "sums of groups are for secure aggregation"),
        ({"server": {"groups": 9}}, "a secure sum over 1 of them hides nothing"),
    ],
)
def test_settings_that_cannot_hold(in_groups, changes: dict, part: str) -> None:
    content = in_groups().model_dump(mode="json", exclude_none=True)
    if changes.get("server", {}).get("groups", 0) is None:
        del content["server"]["groups"]
        changes = {}
    with pytest.raises(ConfigError, match=part):
        RunConfig.parse(merged(content, changes), "run.toml")


def test_a_set_up_of_too_few_groups_ends_the_run(in_groups, monkeypatch) -> None:
    fails(monkeypatch, "query.keys", {attempt: {0} for attempt in range(10)})
    with pytest.raises(RoundError, match="2 groups have a set-up of secure sums, 3 are needed for 1 Byzantine sites"):
        simulate(in_groups())

"""Who may lower the noise: a site's minimums for secure sums, its own peers, audits' controls, δ, ε and clip norms."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from confide.client.site import Site
from confide.common.config.run import PolicySection, RunConfig, SiteConfig
from confide.common.errors import BudgetError, ConfigError, PolicyError, SecureSumError
from confide.common.ledger.chain import SiteKey
from confide.common.ledger.ledger import Ledger
from confide.common.privacy.mechanism import PrivacyPlan
from confide.common.privacy.plan import privacy_plan, secure_session
from confide.common.secagg.protocol import SecureSite
from confide.simulations.run import simulate
from confide.simulations.sites import SimulatedSites, make_ledgers, simulated_policy

DIGEST = b"0" * 32
MINIMUMS = ("min_colluders", "min_sites", "min_survivors")


@pytest.fixture
def secure(make_config, local) -> Callable[..., RunConfig]:
    """A run of n sites in mode distributed with t survivors and c colluders."""

    def make(n: int, t: int | None, c: int, **changes: Any) -> RunConfig:
        return make_config(
            run={"id": "r"},
            privacy={**local, "mode": "distributed", "colluders": c},
            data={"labels": ["negative", "positive"], "partition": {"clients": n, "kind": "iid"}},
            server={"min_survivors": t, "min_clients": 2} | changes,
        )

    return make


def site_with(policy: dict | None = None, peers: int = 0, datasets: dict | None = None, **dataset: Any) -> Site:
    content = {"datasets": datasets or {"default": {"epsilon": 8.0, **dataset}}, "policy": policy or {}}
    listed = {f"site-{number}": f"{number:064x}" for number in range(peers)}
    return Site("st-mary", SiteConfig.parse(content, "site.toml"), Ledger.in_memory("st-mary", SiteKey.new()), listed)


def account(site: Site, run: RunConfig):
    return site.account(run, privacy_plan(run, 1000), DIGEST)


def test_the_measured_example_is_refused(secure) -> None:
    """n = 2, t = 2, c = 0 declared to a site with 8 peers. Once one site works for the server, its share is no noise:
    z = .586 becomes .414, and ε is 18.3 where 8 was charged."""
    assert PrivacyPlan(0.05, 0.586 / math.sqrt(2), 30, 1.0, 1e-5, 1000, 100.0).epsilon() == pytest.approx(18.3, abs=0.1)
    site = site_with(peers=8)
    with pytest.raises(PolicyError, match=r"its policy refuses the run: colluders 0; allowed: 1 and above"):
        account(site, secure(2, 2, 0))
    with pytest.raises(PolicyError, match=r"2 sites with 2 survivors and 1 colluders declared, 8 listed in \[peers\]"):
        account(site, secure(2, 2, 1))
    with pytest.raises(PolicyError, match=r"8 listed in \[peers\]: secure sum: survivors 2 of 8"):
        account(site_with({"min_colluders": 0}, peers=8), secure(2, 2, 0))
    assert site.ledger.book().head.seq == 0


@pytest.mark.parametrize(
    ("peers", "run", "policy", "text"),
    [
        (8, (9, None, 1), {}, r"sites 9; allowed: at most 8, as \[peers\] lists"),
        (0, (8, None, 1), {"min_colluders": 2}, "colluders 1; allowed: 2 and above"),
        (0, (8, None, 1), {"min_sites": 9}, "sites in a sum 8; allowed: 9 and above"),
        (12, (8, 7, 1), {"min_sites": 9}, "sites in a sum 8; allowed: 9 and above"),
        (0, (8, 6, 1), {"min_survivors": 7}, "survivors 6; allowed: 7 and above"),
        (8, (6, 4, 1), {}, r"8 listed in \[peers\]: secure sum: survivors 4 of 8 sites with 1 colluders"),
    ],
)
def test_minimums_and_peers_hold(secure, peers: int, run: tuple, policy: dict, text: str) -> None:
    site = site_with(policy, peers)
    with pytest.raises(PolicyError, match=f"site st-mary: its policy refuses the run: .*{text}") as refused:
        account(site, secure(*run))
    assert "\n" not in str(refused.value)
    assert site.ledger.book().head.seq == 0


def test_a_sum_that_is_safe_among_all_peers_is_admitted(secure) -> None:
    account(site_with(peers=8), secure(8, 7, 1))
    account(site_with(peers=8), secure(6, 5, 1))  # two of the federation are ill; 2·5 > 8 + 1
    account(site_with(), secure(2, 2, 1))  # no peers listed: it will mask for nobody


def test_minimums_are_of_a_groups_sum(secure) -> None:
    run = secure(12, None, 1, groups=4, aggregation="trimmedmean")
    account(site_with(peers=12), run)
    with pytest.raises(PolicyError, match="sites in a sum 3; allowed: 4 and above"):
        account(site_with({"min_sites": 4}, peers=12), run)
    with pytest.raises(PolicyError, match=r"3 sites with 3 survivors and 1 colluders declared, 24 listed"):
        account(site_with(peers=24), run)  # groups of six there


def test_sums_in_the_open_have_no_minimums(make_config, local) -> None:
    run = make_config(run={"id": "r"}, privacy={**local, "colluders": 0}, data={"labels": ["a", "b"]})
    account(site_with(peers=2), run)


@pytest.mark.parametrize(("n", "t", "c"), [(4, 4, 0), (4, 3, 1), (2, 2, 0), (8, 7, 2)])
def test_simulated_sites_allow_the_sums_of_their_run(secure, n: int, t: int, c: int, tmp_path: Path) -> None:
    run = secure(n, t, c)
    policy = simulated_policy(run).policy
    assert tuple(getattr(policy, name) for name in MINIMUMS) == (min(c, 1), 2, 2)
    account(SimulatedSites(run).site(0), run)
    kept = run.model_copy(update={"engine": run.engine.model_copy(update={"ledger": str(tmp_path / "l")})})
    make_ledgers(kept)
    assert f"min_colluders = {min(c, 1)}" in (tmp_path / "l" / "site.toml").read_text()
    account(SimulatedSites(kept).site(0), kept)


def test_a_simulation_without_colluders_goes_through(secure) -> None:
    simulate(secure(2, 2, 0))


def test_an_audits_control_is_mode_none_to_the_policy(make_config, local) -> None:
    run = make_config(
        run={"id": "r"}, privacy=local, audit={"control": True, "canaries": 4}, data={"labels": ["a", "b"]}
    )
    for modes in (["local"], ["local", "distributed", "client"]):
        site = site_with({"modes": modes, "canaries": True}, epsilon=None)
        with pytest.raises(PolicyError, match=r"mode none \(audit\.control\); allowed: local"):
            account(site, run)
        assert site.ledger.book().head.seq == 0
    account(site_with({"modes": ["none"], "canaries": True}, epsilon=None), run)
    assert simulated_policy(run).policy.modes == ("none",)
    account(SimulatedSites(run).site(0), run)


def test_delta_is_checked_without_a_limit(make_config, local) -> None:
    run = make_config(run={"id": "r"}, privacy={**local, "delta": 1e-2}, data={"labels": ["a", "b"]})
    site = site_with(epsilon=None)
    with pytest.raises(BudgetError, match=r"asked δ = 0\.01, limit 1e-05"):
        account(site, run)
    assert site.ledger.book().head.seq == 0


def test_the_most_of_one_run_is_taken_at_the_sites_delta(make_config, local) -> None:
    """ε = 3 at δ = 10^-2 is more at the site's 10^-5: a run cannot look cheap by its own δ."""
    run = make_config(run={"id": "r"}, privacy={**local, "epsilon": 3.0, "delta": 1e-2}, data={"labels": ["a", "b"]})
    plan = privacy_plan(run, 1000)
    assert plan is not None
    assert plan.epsilon() <= 3.0
    with pytest.raises(PolicyError, match=r"ε for one run \d+\.\d+; allowed: at most 5\.0 \(δ = 1e-05\)"):
        account(site_with({"max_epsilon_per_run": 5.0}), run)
    account(site_with({"max_epsilon_per_run": 5.0}, delta=1e-2), run)


def test_the_clip_norm_of_a_task_is_the_declared_one(make_config, local) -> None:
    run = make_config(run={"id": "r"}, privacy=local)
    plan, site = privacy_plan(run, 1000), site_with({"min_clip": 0.5, "max_clip": 2.0})
    site.admit_clip(run, plan, None)
    site.admit_clip(run, plan, 1.0)
    for clip in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(PolicyError, match=r"a task's clip norm \S+; allowed: 1e-12 to 1e12"):
            site.admit_clip(run, plan, clip)
    with pytest.raises(PolicyError, match=r"a task's clip norm 1\.5; allowed: 1\.0, as the run declares"):
        site.admit_clip(run, plan, 1.5)


def test_a_clip_norm_that_adapts_stays_within_the_policy(make_config, local) -> None:
    privacy = {"mode": "client", "epsilon": 100.0, "sampling_rate": 0.8, "clip_quantile": 0.5, "clip_count_noise": 5.0}
    run = make_config(run={"id": "r"}, privacy=privacy)
    plan, site = privacy_plan(run, 1000), site_with({"min_clip": 0.5, "max_clip": 2.0})
    site.admit_clip(run, plan, 1.5)
    for clip, allowed in ((0.4, "0.5 and above"), (2.1, "2.0 and below")):
        with pytest.raises(PolicyError, match=rf"clip norm {clip}; allowed: {allowed}"):
            site.admit_clip(run, plan, clip)
    site_with().admit_clip(run, plan, 40.0)


def on(run: RunConfig, dataset: str, number: str) -> RunConfig:
    update = {"data": run.data.model_copy(update={"name": dataset})}
    return run.model_copy(update={**update, "run": run.run.model_copy(update={"id": number})})


def test_one_content_under_two_names_is_one_budget_or_none(make_config, local) -> None:
    run = make_config(privacy=local, data={"labels": ["a", "b"]})
    two = {"films": {"epsilon": 8.0}, "letters": {"epsilon": 8.0}}
    site = site_with(datasets=two)
    account(site, on(run, "films", "one"))
    with pytest.raises(BudgetError, match=r"'letters': holds the records that were charged as 'films'"):
        account(site, on(run, "letters", "two"))
    same = site_with(datasets={"films": {"epsilon": 8.0}, "letters": {"same_as": "films"}})
    account(same, on(run, "letters", "one"))
    assert same.ledger.book().charges.keys() == {("films", "one")}
    with pytest.raises(
        BudgetError, match=r"data set 'films': spent ε = 9\.\d+, asked .* limit 8, .* one has ε = 7\.\d+"
    ):
        account(same, on(run, "films", "two"))
    # what one name spent before the operator wrote same_as is not forgotten
    late = Site("st-mary", same.config, site.ledger, {})
    with pytest.raises(BudgetError, match=r"data set 'films': spent ε = 9\.\d+, asked"):
        account(late, on(run, "letters", "three"))


def test_the_other_tables_delta_and_epsilon_hold(make_config, local) -> None:
    run = make_config(privacy={**local, "delta": 1e-6}, data={"labels": ["a", "b"]})
    datasets = {"films": {"epsilon": 8.0, "delta": 1e-7}, "letters": {"same_as": "films"}}
    with pytest.raises(BudgetError, match=r"'films': asked δ = 1e-06, limit 1e-07"):
        account(site_with(datasets=datasets), on(run, "letters", "one"))


@pytest.mark.parametrize(
    ("letters", "text"),
    [
        ({"same_as": "flims"}, r"letters\.same_as: received 'flims'; allowed: another data set of this file: films, x"),
        ({"same_as": "letters"}, r"letters\.same_as: received 'letters'; allowed: another data set of this file"),
        ({"same_as": "x"}, r"letters\.same_as: received 'x', which is the same as 'films' itself"),
        ({"same_as": "films", "epsilon": 9.0}, r"letters\.epsilon: 9 received beside same_as"),
        ({"same_as": "films", "order": 4.0}, r"letters\.order: 4 received beside same_as"),
        ({"same_as": "films", "delta": 1e-3}, r"letters\.delta: 0\.001 received beside same_as"),
    ],
)
def test_names_that_cannot_be_the_same(letters: dict, text: str) -> None:
    content = {"datasets": {"films": {"epsilon": 8.0}, "letters": letters, "x": {"same_as": "films"}}}
    with pytest.raises(ConfigError, match=text):
        SiteConfig.parse(content, "site.toml")


def test_a_site_with_one_budget_of_two_names_is_written_and_read_again() -> None:
    config = SiteConfig.parse({"datasets": {"a": {"epsilon": 8.0, "delta": 1e-6}, "b": {"same_as": "a"}}}, "site.toml")
    again = SiteConfig.parse(config.model_dump(mode="json", exclude_none=True), "again")
    assert again == config
    assert config.budget("b") == ("a", config.datasets["a"])
    assert config.aliases("a") == ["b"]


def test_a_run_that_returns_as_another_is_refused(make_config, local) -> None:
    run = make_config(run={"id": "r"}, privacy=local, data={"labels": ["a", "b"]})
    site = site_with()
    account(site, run)
    changed = run.model_copy(update={"training": run.training.model_copy(update={"learning_rate": 0.5})})
    with pytest.raises(BudgetError, match="run r returns with another configuration than it reserved"):
        account(site, changed)
    with pytest.raises(BudgetError, match="another configuration than"):  # nothing about the rows, which changed, too
        site.account(changed, privacy_plan(changed, 1000), b"1" * 32)
    assert account(site, run).steps == 0
    assert site.ledger.book().head.seq == 1


def test_a_private_run_over_other_records_is_no_other_run(make_config, local) -> None:
    """A refusal would tell the server, without noise, that a record came or went; without privacy it may."""
    run = make_config(run={"id": "r"}, privacy=local, data={"labels": ["a", "b"]})
    site = site_with()
    assert not account(site, run).stale
    stale = site.account(run, privacy_plan(run, 1000), b"1" * 32)
    assert stale.stale
    assert stale.reservation.request.content == account(site, run).reservation.request.content
    assert site.ledger.book().head.seq == 1
    open_run = make_config(run={"id": "open"}, data={"labels": ["a", "b"]})
    free = Site(
        "site", SiteConfig.parse({"datasets": {"default": {}}, "policy": {"modes": ["none"]}}, "x"), site.ledger, {}
    )
    account(free, open_run)
    with pytest.raises(BudgetError, match="run open returns with another content than it reserved"):
        free.account(open_run, None, b"1" * 32)


def test_a_clipped_update_without_noise_is_for_a_trusted_server_only(make_config) -> None:
    """Mode client with `secure_aggregation = false`: the server's own switch must not take the noise off."""
    privacy = {"mode": "client", "epsilon": 8.0, "sampling_rate": 1.0}
    run = make_config(run={"id": "r"}, privacy=privacy, server={"secure_aggregation": False})
    site = SimulatedSites(run).site(0)
    assert site.config.policy.trust_server  # a simulation is its own server
    real = replace(site, config=SiteConfig(datasets=site.config.datasets, policy=PolicySection()))
    with pytest.raises(PolicyError, match=r"before any noise; allowed: with secure sums, or policy\.trust_server"):
        real.admit(run)


def test_the_order_stays_when_names_become_one(make_config, local) -> None:
    """It was chosen anew, when a name was made another's, by what had been charged."""
    first = make_config(privacy={**local, "epsilon": 1.0}, data={"labels": ["a", "b"]})
    later = make_config(privacy={**local, "epsilon": 2.0}, data={"labels": ["a", "b"]})
    site = site_with(datasets={"films": {"epsilon": 8.0}, "letters": {"epsilon": 30.0}})
    account(site, on(first, "films", "one"))
    fixed = site.ledger.book().limits["films"].order
    config = SiteConfig.parse(
        {"datasets": {"letters": {"epsilon": 30.0}, "films": {"same_as": "letters"}}, "policy": {}}, "site.toml"
    )
    account(Site("st-mary", config, site.ledger, {}), on(later, "films", "two"))
    assert site.ledger.book().limits["letters"].order == fixed


@pytest.mark.parametrize(
    "told", [{"sampling_rate": 1e-7, "declared_examples": 10**10}, {"epsilon": 200.0}, {"delta": 1e-3}, {"clip": 2.0}]
)
def test_a_sum_is_set_up_among_sites_that_were_told_the_same(secure, told: dict) -> None:
    """A site's share follows from what it was told. Peers that had been told q = 1e-7 added next to no noise: ε was 20
    at four sites and 60 at twenty, where each ledger charged 8. The widths of the sums were the same."""
    run = secure(4, 4, 1)
    other = run.model_copy(update={"privacy": run.privacy.model_copy(update=told)})
    first, second = (secure_session(one, required(one), 1) for one in (run, other))
    assert first.length == second.length
    _, advert = SecureSite.advertise(second, "site-2", SiteKey.new())
    advert.check(second)
    with pytest.raises(SecureSumError, match="keys of site-2 belong to another set-up, or to another configuration"):
        advert.check(first)


def required(run: RunConfig) -> PrivacyPlan:
    plan = privacy_plan(run, 1000)
    assert plan is not None
    return plan

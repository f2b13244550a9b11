"""A site's policy: what it refuses, and that nothing is charged then."""

import shutil
from pathlib import Path

import pytest

from confide.client.site import Site
from confide.common.config.run import RunConfig, SiteConfig
from confide.common.errors import BudgetError, ConfigError, LedgerError, PolicyError
from confide.common.ledger.chain import SiteKey
from confide.common.ledger.ledger import Ledger
from confide.common.privacy.plan import privacy_plan
from confide.simulations.sites import SimulatedSites, make_ledgers, simulated_policy

DIGEST = b"0" * 32


@pytest.fixture
def run(make_config, local) -> RunConfig:
    return make_config(run={"id": "r"}, privacy=local, data={"labels": ["negative", "positive"]})


def site_with(policy: dict, **dataset) -> Site:
    content = {"datasets": {"default": {"epsilon": 8.0, **dataset}}, "policy": policy}
    return Site("st-mary", SiteConfig.parse(content, "site.toml"), Ledger.in_memory("st-mary", SiteKey.new()), {})


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"modes": ["distributed"]}, "mode local; allowed: distributed"),
        ({"tasks": ["causal-lm"]}, "task sequence-classification; allowed: causal-lm"),
        ({"backbones": ["other/model"]}, r"backbone \S+; allowed: what its policy lists"),
        ({"min_noise_multiplier": 50.0}, r"noise multiplier \S+; allowed: 50.0 and above"),
        ({"min_clip": 2.0}, "clip norm 1; allowed: 2.0 and above"),
        ({"max_clip": 0.5}, "clip norm 1; allowed: 0.5 and below"),
        ({"max_epsilon_per_run": 3.0}, r"ε for one run 7\.\d+; allowed: at most 3.0"),
    ],
)
def test_a_policy_refuses_and_nothing_is_charged(run: RunConfig, policy: dict, text: str) -> None:
    site = site_with(policy)
    with pytest.raises(PolicyError, match=f"site st-mary: its policy refuses the run: {text}"):
        site.account(run, privacy_plan(run, 1000), DIGEST)
    assert site.ledger.book().head.seq == 0


def test_canaries_need_the_sites_consent(run: RunConfig) -> None:
    audited = run.model_copy(update={"audit": run.audit.model_copy(update={"canaries": 10})})
    with pytest.raises(PolicyError, match="audit canaries 10; allowed: none"):
        site_with({}).account(audited, privacy_plan(run, 1000), DIGEST)
    site_with({"canaries": True}).account(audited, privacy_plan(run, 1000), DIGEST)


def test_a_data_set_that_is_not_listed_is_refused(run: RunConfig) -> None:
    other = run.model_copy(update={"data": run.data.model_copy(update={"name": "letters"})})
    with pytest.raises(PolicyError, match=r"data set letters; allowed: what its site\.toml names"):
        site_with({}).account(other, privacy_plan(run, 1000), DIGEST)


def test_a_run_that_fits_is_charged_once(run: RunConfig) -> None:
    site = site_with({})
    account = site.account(run, privacy_plan(run, 1000), DIGEST)
    assert site.account(run, privacy_plan(run, 1000), DIGEST).steps == 0
    assert site.ledger.book().head.seq == 1
    with account.taking(1) as before:
        assert before == 0
        assert account.steps == 1  # whatever becomes of this process
    assert account.steps == 1
    second = run.model_copy(update={"run": run.run.model_copy(update={"id": "second"})})
    with pytest.raises(BudgetError, match="limit 8, remaining"):
        site.account(second, privacy_plan(run, 1000), DIGEST)


def test_the_noise_is_the_sites_own_calculation(run: RunConfig) -> None:
    """The charge is for the plan that the site derived: a server cannot make it account for noise that is not added."""
    plan = privacy_plan(run, 1000)
    account = site_with({}).account(run, plan, DIGEST)
    assert plan is not None
    assert account.reservation.request.step.event.noise_multiplier == plan.noise_multiplier  # type: ignore[attr-defined]


def test_the_content_of_a_data_set_is_recorded_under_the_sites_key(run: RunConfig) -> None:
    """Two sites with the same records record different digests: nobody can test a guess at the records against them."""
    contents = set()
    for _ in range(2):
        site = site_with({})
        site.account(run, privacy_plan(run, 1000), DIGEST)
        contents |= {charge.content for charge in site.ledger.book().charges.values()}
    assert len(contents) == 2


def test_simulated_sites_allow_what_the_run_needs_once(make_config, local) -> None:
    private = simulated_policy(make_config(privacy=local))
    assert private.datasets["default"].epsilon == 8.0
    assert private.policy.modes == ("local",)
    assert simulated_policy(make_config()).datasets["default"].epsilon is None


def test_ledgers_of_a_simulation_are_made_once(run: RunConfig, tmp_path: Path) -> None:
    kept = run.model_copy(update={"engine": run.engine.model_copy(update={"ledger": str(tmp_path / "l")})})
    make_ledgers(kept)
    policy = (tmp_path / "l" / "site.toml").read_text()
    assert "epsilon = 8.0" in policy
    SimulatedSites(kept).site(0).account(kept, privacy_plan(kept, 1000), DIGEST)
    make_ledgers(kept)
    assert SimulatedSites(kept).site(0).ledger.book().head.seq == 1
    (tmp_path / "l" / "site-2" / "ledger.db").unlink()
    with pytest.raises(LedgerError, match="missing"):
        make_ledgers(kept)
    shutil.rmtree(tmp_path / "l" / "site-2")
    (tmp_path / "l" / "site.toml").write_text("[datasets.default]\nepsilom = 3\n")
    with pytest.raises(ConfigError, match=r"datasets\.default\.epsilom: unknown key; .*did you mean 'epsilon'"):
        make_ledgers(kept)

"""Audits of whole runs: ledgers across runs, canaries with their control, leakage."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

from confide.cli.progress import watch
from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError, DataError, RoundError
from confide.common.ledger.ledger import DATABASE, Ledger
from confide.common.ledger.verify import audit
from confide.server.report import amend_report, read_report
from confide.simulations.attacks.leakage import audit_leakage
from confide.simulations.audit import audit_canaries, with_canaries
from confide.simulations.run import resume, simulate
from confide.tests.tiny import sentences, write_csv


@pytest.fixture
def kept(make_config, local, tmp_path: Path):
    """A private run with ledgers in a folder; every call has a run folder of its own."""
    calls = iter(range(100))

    def make(**changes) -> RunConfig:
        output = str(tmp_path / f"run-{next(calls)}")
        return make_config(
            **{"run": {"output": output}, "privacy": local, "engine": {"ledger": str(tmp_path / "ledgers")}} | changes
        )

    return make


def test_a_second_run_on_the_same_data_is_refused(kept, tmp_path: Path) -> None:
    simulate(kept())
    with pytest.raises(
        RoundError,
        match=r"4 sites declined the run, 0 are left.*spent ε = 9\.\d+, asked 7\.\d+.*limit 8",
    ):
        simulate(kept())
    outcome = audit(tmp_path / "ledgers" / "site-1" / DATABASE)
    assert outcome.holds
    assert [run["used"] for run in outcome.datasets[0]["runs"]] == [3]


def test_the_server_goes_on_without_a_site_that_refuses(kept, tmp_path: Path) -> None:
    """site-2 has spent its budget on an earlier run: the others train, and the report says why it was left out."""
    simulate(kept())
    for name in ("site-1", "site-3", "site-4"):
        shutil.rmtree(tmp_path / "ledgers" / name)
    (tmp_path / "ledgers" / "server.json").unlink()
    report = read_report(simulate(kept()))
    assert [len(row["sites"]) for row in report["rounds"]] == [3, 3, 3]
    assert [len(row["failed"]) for row in report["rounds"]] == [1, 0, 0]  # it is not asked again
    assert "limit 8" in report["rounds"][0]["failed"][0]["reason"]


def test_a_raised_limit_admits_another_run_and_composes_it(kept, tmp_path: Path) -> None:
    simulate(kept())
    policy = tmp_path / "ledgers" / "site.toml"
    policy.write_text(policy.read_text().replace("epsilon = 8.0", "epsilon = 20.0"))
    simulate(kept())
    facts = audit(tmp_path / "ledgers" / "site-1" / DATABASE).datasets[0]
    alone = facts["runs"][0]["epsilon_reserved"]
    assert alone < facts["epsilon"]["rdp"] < 2 * alone


def test_a_ledger_that_was_rolled_back_keeps_its_site_out(kept, tmp_path: Path) -> None:
    simulate(kept())
    shutil.rmtree(tmp_path / "ledgers" / "site-1")
    policy = tmp_path / "ledgers" / "site.toml"
    policy.write_text(policy.read_text().replace("epsilon = 8.0", "epsilon = 20.0"))
    report = read_report(simulate(kept()))  # the server has seen a longer ledger of site-1 than the new one
    assert all(row["sites"] == ["site-2", "site-3", "site-4"] for row in report["rounds"])


def test_a_resumed_run_does_not_pay_twice(kept, tmp_path: Path) -> None:
    folder = simulate(kept())
    before = Ledger.open(tmp_path / "ledgers" / "site-1").book()
    resume(folder)
    after = Ledger.open(tmp_path / "ledgers" / "site-1").book()
    assert after.head == before.head


def test_runs_without_privacy_are_recorded_as_such(make_config, tmp_path: Path) -> None:
    simulate(make_config(engine={"ledger": str(tmp_path / "ledgers")}))
    outcome = audit(tmp_path / "ledgers" / "site-1" / DATABASE)
    assert outcome.holds
    assert outcome.to_json()["datasets"][0]["epsilon"]["rdp"] == "infinite"


@pytest.mark.slow
def test_the_ledger_on_ray_is_the_same(kept, tmp_path: Path) -> None:
    simulate(kept(engine={"kind": "ray", "ledger": str(tmp_path / "ledgers")}))
    for name in ("site-1", "site-4"):
        outcome = audit(tmp_path / "ledgers" / name / DATABASE)
        assert outcome.holds
        assert outcome.datasets[0]["runs"][0]["used"] == 3


def test_an_audit_stands_beside_the_claim(make_config, local) -> None:
    config = with_canaries(
        make_config(run={"rounds": 20}, privacy={**local, "sampling_rate": 0.3}), canaries=400, records=80, guesses=None
    )
    found = audit_canaries(config)
    report = read_report(config.output)
    assert report["audit"] == found
    assert found["excluded"] == []
    gradient, control = found["gradient"], found["control"]["gradient"]
    assert gradient["canaries"] == 400
    assert gradient["guesses"] == 20
    assert gradient["epsilon_steinke"] <= report["privacy"]["epsilon_spent"]
    # without noise a canary that was drawn even once stands out: nearly all of 20 guesses are right
    assert control["correct"] >= 18
    # the same canary records twice: on every update, and on the final model alone
    through, blackbox = found["clipped_records"], found["records"]
    assert (through["canaries"], through["guesses"]) == (blackbox["canaries"], blackbox["guesses"]) == (80, 4)
    assert {"clipped_records", "records"} < found["control"].keys()
    sensitivity = found["sensitivity"]
    assert sensitivity["holds"]
    assert 0 < sensitivity["largest"] <= 1
    assert (sensitivity["canaries"], sensitivity["records"]) == (8, 248)
    assert found["noise"] is True
    assert found["control"]["noise"] is False
    html = (config.output / "report.html").read_text()
    assert "Planned, spent, measured" in html
    assert 'id="audit"' in html
    for part in (gradient, through, blackbox, sensitivity):
        assert "cannot show" in part["scope"]
        assert escape(part["scope"]) in html
    assert not (config.output / "control").exists()


def test_the_coins_are_committed_before_training_and_bind(make_config, local, monkeypatch) -> None:
    config = with_canaries(make_config(privacy=local), canaries=40, records=0, guesses=10)
    real = simulate(config)
    assert read_report(real)["audit"]["gradient"]["canaries"] == 40
    # a site that reveals other coins than it committed to: its canaries are not counted
    from confide.client.site import Site

    honest = Site.coin_seed
    seen = []

    def changes_its_mind(self, run):
        seen.append(self.name)
        seed = honest(self, run)
        return b"x" * 32 if self.name == "site-1" and seen.count("site-1") > 2 else seed

    monkeypatch.setattr(Site, "coin_seed", changes_its_mind)
    found = read_report(simulate(config, overwrite=True))["audit"]
    assert found["excluded"] == ["site-1"]
    assert found["gradient"]["canaries"] == 30


def test_audits_that_would_say_nothing_are_refused(make_config, local) -> None:
    with pytest.raises(ConfigError, match="claims nothing that could be audited"):
        with_canaries(make_config(), 100, 100, None)
    with pytest.raises(ConfigError, match=r"training\.local_steps: 3"):
        with_canaries(make_config(privacy=local, training={"local_steps": 3}), 100, 0, None)
    with pytest.raises(ConfigError, match=r"audit\.guesses: 200 received"):
        with_canaries(make_config(privacy=local), 100, 0, 200)
    with pytest.raises(ConfigError, match="allowed: a ledger in memory"):
        make_config(privacy=local, audit={"control": True}, engine={"ledger": "x"})


@pytest.mark.slow
def test_fifty_audits_never_exceed_the_claimed_epsilon(make_config, local) -> None:
    for _ in range(50):
        config = with_canaries(make_config(run={"rounds": 2}, privacy=local), canaries=400, records=0, guesses=None)
        found = read_report(simulate(config, overwrite=True))["audit"]["gradient"]
        assert found["epsilon_steinke"] <= 8
        assert found["epsilon_gdp"] <= 8


@pytest.mark.parametrize("private", [False, True])
def test_leakage_of_a_finished_run(make_config, local, tmp_path: Path, private: bool) -> None:
    write_csv(tmp_path / "many.csv", sentences(200, 5))
    privacy = {**local, "sampling_rate": 0.5, "declared_examples": 80} if private else {}
    config = make_config(
        run={"rounds": 6},
        model={"lora": {"rank": 8}},
        data={"train": str(tmp_path / "many.csv"), "limit": 80},
        privacy=privacy,
    )
    folder = simulate(config)
    outcome = audit_leakage(folder, 4, watch)
    member, inverted = outcome["membership"], outcome["inversion"]
    assert (member["members"], member["others"], member["references"]) == (80, 80, 4)
    assert 0 <= member["attacks"]["lira"]["auc"] <= 1
    assert (member["bound"] is None) is not private
    assert inverted["none"]["1"]["label"] == 1.0
    assert inverted["none"]["1"]["tokens"] > 0.9 > 0.3 > inverted["private"]["1"]["tokens"]
    assert inverted["embedding"]["none"] == 1.0
    assert inverted["embedding"]["released"] is False
    html = (folder / "report.html").read_text()
    assert 'id="leakage"' in html
    json.dumps(outcome, allow_nan=False)


def test_leakage_needs_records_to_compare_with(make_config, tmp_path: Path) -> None:
    folder = simulate(make_config(run={"rounds": 1}))
    with pytest.raises(ConfigError, match="trained on every row"):
        audit_leakage(folder, 4, watch)
    with pytest.raises(ConfigError, match="an even number from 2"):
        audit_leakage(folder, 3, watch)
    folder = simulate(make_config(run={"rounds": 1}, data={"limit": 200}), overwrite=True)
    with pytest.raises(DataError, match=r"lower data\.limit to 120 or less"):
        audit_leakage(folder, 4, watch)


def test_reports_are_read_and_amended_or_refused(make_config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the folder of a finished run"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"schema": 99}')
    with pytest.raises(ConfigError, match="not a report of this version"):
        amend_report(tmp_path, "ledger", [])


def test_reference_draws_hold_every_record_half_of_the_time(make_config) -> None:
    from confide.common.data.sources import reference_draw
    from confide.common.types import Rows

    config = make_config(data={"limit": 50, "reference": 0})
    held = np.zeros(100)
    for number in range(6):
        data = config.data.model_copy(update={"reference": number})
        _, drawn = reference_draw(Rows("x", [f"text {i}" for i in range(240)]), data, 3)
        held[drawn] += 1
    assert (held == 3).all()

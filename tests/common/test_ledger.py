"""The ledger: order, refusals, chain, receipt, and what stress leaves of it (see benchmarks/ledger.py)."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import NonPrivateDpEvent

from confide.benchmarks import ledger as stress
from confide.common.errors import BudgetError, ConfigError, LedgerError, PrivacyError
from confide.common.ledger.chain import SiteKey, check_document, read_json, read_public_key, signed_document, verify
from confide.common.ledger.ledger import DATABASE, KEY, RECEIPT, Head, Ledger, Limit, Request
from confide.common.ledger.verify import audit, export, find_ledgers, verify_account
from confide.common.privacy.accounting import epsilon_pld, epsilon_rdp, filter_order, rdp_at, sides
from confide.common.privacy.events import (
    DiscreteGaussianDpEvent,
    History,
    check,
    from_json,
    history_of,
    repeated,
    step_event,
    to_json,
)

STEP = step_event(0.03, DiscreteGaussianDpEvent(0.6, 1000))
LIMIT = Limit(8.5, 1e-5)


def asked(run: str = "r", steps: int = 40, step=STEP, dataset: str = "reviews", **changes: Any) -> Request:
    return replace(Request(run, dataset, "c" * 64, "example", step, steps, 1e-5, "tiny", "f" * 64), **changes)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "site", "st-mary")


@pytest.fixture(params=["file", "memory"])
def any_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "file":
        return Ledger.create(tmp_path / "site", "st-mary")
    return Ledger.in_memory("st-mary", SiteKey.new())


def test_a_run_is_charged_in_full_before_it_begins(any_ledger: Ledger) -> None:
    any_ledger.reserve(asked(), LIMIT)
    book = any_ledger.book()
    charge = book.charges["reviews", "r"]
    assert (charge.steps, charge.used) == (40, 0)
    assert epsilon_rdp(book.history("reviews"), 1e-5) == pytest.approx(7.199, abs=0.01)


def test_a_second_run_is_refused_with_all_numbers_and_changes_nothing(any_ledger: Ledger) -> None:
    any_ledger.reserve(asked(), LIMIT)
    before = any_ledger.book().head
    with pytest.raises(
        BudgetError,
        match=r"data set 'reviews': spent ε = \d\S+, asked \S+, together \d+\S*, limit 8.5, remaining \d\S*",
    ):
        any_ledger.reserve(asked("other"), LIMIT)
    assert any_ledger.book().head == before


def asked_elsewhere(run: str, dataset: str = "letters", **changes: Any) -> Request:
    """Of a data set that holds other records."""
    return asked(run, dataset=dataset, content="d" * 64, **changes)


def test_the_budget_belongs_to_the_name_not_to_the_content_the_run_or_the_model(any_ledger: Ledger) -> None:
    any_ledger.reserve(asked(), LIMIT)
    others: list[dict[str, Any]] = [{"content": "d" * 64}, {"model": "other"}, {"configuration": "0" * 64}]
    for change in others:
        with pytest.raises(BudgetError):
            any_ledger.reserve(asked("other", **change), LIMIT)
    any_ledger.reserve(asked_elsewhere("another"), LIMIT)  # another name of other records has a budget of its own


COUNTING = DiscreteGaussianDpEvent(0.6, 1000, 0.3)


def counted(run: str = "r", **changes: Any) -> Request:
    """Of a run that holds records out."""
    return asked(run, **{"held_out": COUNTING, "evaluations": 5, **changes})


def test_trained_and_held_out_records_are_charged_apart(any_ledger: Ledger) -> None:
    """What was committed is never less than what was released, and a run costs the larger of the two."""
    held = any_ledger.reserve(counted(), LIMIT)
    book = any_ledger.book()
    trained, counts = (History({step: many}) for step, many in ((STEP, 40), (COUNTING, 5)))
    alone = epsilon_pld(trained, 1e-5), epsilon_pld(counts, 1e-5)
    assert epsilon_pld(book.history("reviews"), 1e-5) == max(alone)
    for steps, evaluations in ((3, 1), (3, 0), (0, 1)):
        with held.taking(steps, evaluations) as before:
            assert before == any_ledger.book().charges["reviews", "r"].used - steps
    charge = any_ledger.book().charges["reviews", "r"]
    assert (charge.used, charge.evaluated) == (6, 2)
    used = History({STEP: 6}), History({COUNTING: 2})
    assert epsilon_pld(charge.released, 1e-5) == max(epsilon_pld(one, 1e-5) for one in used)
    with pytest.raises(BudgetError, match="spent 2 evaluations, asked 4, limit 5, remaining 3"), held.taking(0, 4):
        pass
    with pytest.raises(BudgetError, match="spent 6 steps, asked 35"), held.taking(35, 1):
        pass
    assert any_ledger.book().charges["reviews", "r"] == charge
    with pytest.raises(BudgetError, match="returns with another evaluations"):
        any_ledger.reserve(counted(evaluations=6), LIMIT)


def test_a_run_without_held_out_records_cannot_count_any(any_ledger: Ledger) -> None:
    held = any_ledger.reserve(asked(), LIMIT)
    with pytest.raises(BudgetError, match="spent 0 evaluations, asked 1, limit 0"), held.taking(1, 1):
        pass


def test_further_runs_add_the_larger_part_of_each(any_ledger: Ledger) -> None:
    """Another run may hold other records out, so a record may be on another side of each: over runs the filter adds up
    what either side could have cost, and PLD takes the worst of all ways."""
    limit = Limit(30.0, 1e-5)
    any_ledger.reserve(counted(), limit)
    any_ledger.reserve(counted("other", held_out=DiscreteGaussianDpEvent(0.6, 1000, 0.9)), limit)
    book = any_ledger.book()
    history, order = book.history("reviews"), book.limits["reviews"].order
    assert order is not None
    wide = DiscreteGaussianDpEvent(0.6, 1000, 0.9)
    worst = [max(rdp_at(History({STEP: 40}), order), rdp_at(History({one: 5}), order)) for one in (COUNTING, wide)]
    assert rdp_at(history, order) == pytest.approx(sum(worst))
    ways = [
        History({STEP: 80}),
        History({STEP: 40, wide: 5}),
        History({STEP: 40, COUNTING: 5}),
        History({COUNTING: 5, wide: 5}),
    ]
    assert epsilon_pld(history, 1e-5) == max(epsilon_pld(one, 1e-5) for one in ways)
    both = History({STEP: 80, COUNTING: 5, wide: 5})
    assert epsilon_pld(history, 1e-5) < epsilon_pld(both, 1e-5)
    many = History({step: 40 * count for step, count in history.items()})
    assert sides(many) == [History({step: 40 * count for step, count in both.items()})]


def test_what_is_held_out_is_audited_exported_and_verified(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "site", "st-mary")
    with ledger.reserve(counted(), LIMIT).taking(2, 1):
        pass
    ledger.reserve(counted("gone"), Limit(40.0, 1e-5)).abort()
    found = audit(tmp_path / "site" / DATABASE)
    assert found.holds, found.findings
    run, aborted = found.datasets[0]["runs"]
    assert (run["used"], run["evaluated"], run["evaluations"], aborted["aborted"]) == (2, 1, 5, True)
    assert run["event"]["type"] == "apart"
    account = export(ledger)
    assert (
        verify_account(account, ledger.key.public, "account")["datasets"][0]["epsilon"]
        == account["datasets"][0]["epsilon"]
    )
    by = found.datasets[0]["epsilon"]
    assert by["opacus_prv"] == pytest.approx(by["pld"], rel=0.01)
    assert by["rdp"] >= by["pld"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trained": None, "held-out": None}, "neither"),
        ({"held-out": {"type": "non-private"}}, "only self-composed"),
        ({"trained": {"type": "self-composed", "count": 3, "event": {"type": "non-private"}}}, "without noise"),
        ({"held-out": {"type": "apart", "trained": None, "held-out": None}}, "neither|only self-composed"),
    ],
)
def test_an_event_that_spends_nothing_or_everything_is_refused(change, said) -> None:
    good = to_json(counted().event)
    assert from_json(good) == counted().event
    assert to_json(from_json(good)) == good
    with pytest.raises(PrivacyError, match=said):
        check(from_json({**good, **change}))
    for sensitivity in (0.0, -0.5, 1.5, float("nan"), "1"):
        held = json.loads(json.dumps(good["held-out"]))
        held["event"]["sensitivity"] = sensitivity
        with pytest.raises(PrivacyError):
            check(from_json({**good, "held-out": held}))


def test_a_resumed_run_finds_its_reservation_and_pays_once(any_ledger: Ledger) -> None:
    with any_ledger.reserve(asked(), LIMIT).taking(3):
        pass
    again = any_ledger.reserve(asked(), LIMIT)
    assert again.charge.used == 3
    others: list[dict[str, Any]] = [
        {"steps": 41},
        {"step": step_event(0.03, DiscreteGaussianDpEvent(0.59, 1000))},
        {"unit": "client"},
        {"delta": 1e-6},
        {"content": "d" * 64},
        {"configuration": "0" * 64},
        {"model": "other"},
        {"commitment": "a" * 64},
    ]
    before = any_ledger.book().head
    for change in others:
        key = next(iter(change))
        name = {"step": "mechanism", "delta": "δ"}.get(key, key)
        with pytest.raises(BudgetError, match=f"run r returns with another {name} than .*takes what it declared first"):
            any_ledger.reserve(asked(**change), LIMIT)
    with pytest.raises(BudgetError, match="run r has reserved on 'reviews'"):
        any_ledger.reserve(asked_elsewhere("r"), LIMIT)
    assert any_ledger.book().head == before


def test_steps_beyond_the_reservation_are_refused_before_data_is_touched(any_ledger: Ledger) -> None:
    reservation = any_ledger.reserve(asked(steps=2), LIMIT)
    with reservation.taking(2) as before:
        assert before == 0
    with (
        pytest.raises(BudgetError, match=r"spent 2 steps, asked 1, limit 2, remaining 0"),
        reservation.taking(1),
    ):
        pytest.fail("data was touched")


def test_two_holders_of_one_reservation_cannot_release_more_than_it(ledger: Ledger) -> None:
    """A step is used up before it is taken: the other holder touches nothing."""
    first, second = (
        ledger.reserve(asked(steps=1), LIMIT),
        Ledger.open(ledger.folder or Path()).reserve(asked(steps=1), LIMIT),
    )
    with second.taking(1), pytest.raises(BudgetError, match="spent 1 steps, asked 1"), first.taking(1):
        pytest.fail("data was touched")


def test_a_failure_is_charged(any_ledger: Ledger) -> None:
    reservation = any_ledger.reserve(asked(), LIMIT)
    with pytest.raises(ZeroDivisionError), reservation.taking(4):
        raise ZeroDivisionError
    assert reservation.charge.used == 4


def test_a_refund_only_where_provably_no_data_was_read(any_ledger: Ledger) -> None:
    reservation = any_ledger.reserve(asked(), LIMIT)
    reservation.abort()
    assert epsilon_rdp(any_ledger.book().history("reviews"), 1e-5) == 0
    used = any_ledger.reserve(asked(), LIMIT)
    with used.taking(1):
        pass
    with pytest.raises(LedgerError, match="nothing is refunded"):
        used.abort()
    with pytest.raises(LedgerError, match="nothing is refunded"):  # a crash may lie between: nobody can know
        any_ledger.reserve(asked(), LIMIT).abort()


def test_releases_without_noise_need_a_data_set_without_limit(any_ledger: Ledger) -> None:
    bare = asked(step=NonPrivateDpEvent())
    with pytest.raises(BudgetError, match=r"no noise, so its ε is infinite; limit 8\.5"):
        any_ledger.reserve(bare, LIMIT)
    any_ledger.reserve(bare, Limit(None, 1e-5))
    with pytest.raises(BudgetError, match="an earlier run has no noise"):
        any_ledger.reserve(asked("next"), LIMIT)


@pytest.mark.parametrize("limit", [LIMIT, Limit(None, 1e-5)])
def test_a_larger_delta_than_the_data_sets_is_refused_limited_or_not(any_ledger: Ledger, limit: Limit) -> None:
    with pytest.raises(BudgetError, match=r"asked δ = 0\.001, limit 1e-05"):
        any_ledger.reserve(asked(delta=1e-3), limit)
    assert any_ledger.book().head.seq == 0
    any_ledger.reserve(asked("bare", step=NonPrivateDpEvent(), delta=1e-3), Limit(None, 1e-5))  # claims no δ


@pytest.mark.parametrize("z", [0.0, -1.0, float("nan"), float("inf")])
def test_spends_that_are_not_positive_and_finite_are_refused(any_ledger: Ledger, z: float) -> None:
    with pytest.raises(PrivacyError):
        any_ledger.reserve(asked(step=step_event(0.03, DiscreteGaussianDpEvent(z, 1000))), LIMIT)
    with pytest.raises(PrivacyError):
        any_ledger.reserve(asked(steps=0), LIMIT)
    assert any_ledger.book().head.seq == 0


@pytest.mark.parametrize("limit", [LIMIT, Limit(None, 1e-5)])
@pytest.mark.parametrize(("first", "then"), [("example", "person"), ("person", "example"), ("client", "person")])
def test_units_are_not_mixed_on_one_data_set_limited_or_not(any_ledger: Ledger, limit: Limit, first, then) -> None:
    small = step_event(0.01, DiscreteGaussianDpEvent(2.0, 1000))
    any_ledger.reserve(asked("bare", step=NonPrivateDpEvent(), unit="client"), Limit(None, 1e-5)).abort()
    any_ledger.reserve(asked(step=small, unit=first), limit)
    with pytest.raises(BudgetError, match=f"charged per {first} so far, asked per {then}; ε of two units do not add"):
        any_ledger.reserve(asked("second", step=small, unit=then), limit)


def test_an_audit_finds_units_that_were_mixed(ledger: Ledger, tmp_path: Path, monkeypatch) -> None:
    ledger.reserve(asked(), Limit(None, 1e-5))
    monkeypatch.setattr("confide.common.ledger.ledger.admit", lambda *_: 4.0)
    ledger.reserve(asked("second", unit="person"), Limit(None, 1e-5))
    assert "charged per example and per person" in audit(tmp_path / "site" / DATABASE).findings[0]


def test_the_first_run_is_admitted_by_pld_and_later_ones_by_the_filter_over_all(any_ledger: Ledger) -> None:
    """Calibrated to ε = 8 at (0.05, 30), z = 0.586: 8.0 by PLD, 9.5 and more at any order of the filter."""
    run = step_event(0.05, DiscreteGaussianDpEvent(0.586, 1000))
    limit = Limit(8.01, 1e-5)
    any_ledger.reserve(asked(step=run, steps=30), limit)
    small = asked("second", step=step_event(0.001, DiscreteGaussianDpEvent(5.0, 1000)), steps=1)
    with pytest.raises(
        BudgetError, match=r"spent ε = (9|10)\.\d+, asked .*as the only run the earlier one has ε = 7\.99"
    ):
        any_ledger.reserve(small, limit)
    any_ledger.reserve(small, Limit(12.0, 1e-5))  # an operator who gives more gets the filter's guarantee
    other = Ledger.in_memory("x", SiteKey.new())
    with pytest.raises(BudgetError, match=r"spent ε = 0, asked 7\.99\d*, limit 7\.9, remaining 7\.9 .*PLD"):
        other.reserve(asked(step=run, steps=30), Limit(7.9, 1e-5))
    assert other.book().head.seq == 0


def test_a_reservation_that_was_given_back_leaves_the_next_run_the_first(any_ledger: Ledger) -> None:
    run = asked(step=step_event(0.05, DiscreteGaussianDpEvent(0.586, 1000)), steps=30)
    any_ledger.reserve(run, Limit(8.01, 1e-5)).abort()
    any_ledger.reserve(replace(run, run="second"), Limit(8.01, 1e-5))


@pytest.mark.parametrize("committed", [False, True])
def test_after_a_crash_the_next_run_is_a_later_one(ledger: Ledger, tmp_path: Path, committed: bool) -> None:
    """Between RESERVE and COMMIT, or after: nobody can know whether data were read, so the filter counts both."""
    run = asked(step=step_event(0.05, DiscreteGaussianDpEvent(0.586, 1000)), steps=30)
    reservation = ledger.reserve(run, Limit(8.01, 1e-5))
    if committed:
        with reservation.taking(1):
            pass
    again = Ledger.open(tmp_path / "site")  # a new process
    with pytest.raises(BudgetError, match="Rényi filter"):
        again.reserve(replace(run, run="second"), Limit(8.01, 1e-5))
    assert again.reserve(run, Limit(8.01, 1e-5)).charge.used == committed
    facts = audit(tmp_path / "site" / DATABASE).datasets[0]
    assert facts["accountant"] == "PLD"
    assert facts["epsilon_spent"] == pytest.approx(8.0, abs=0.01)
    assert facts["remaining"] == 0


def test_the_audit_says_by_which_accountant(ledger: Ledger, tmp_path: Path) -> None:
    small = step_event(0.01, DiscreteGaussianDpEvent(2.0, 1000))
    ledger.reserve(asked(step=small), LIMIT)
    ledger.reserve(asked("second", step=small), LIMIT)
    facts = audit(tmp_path / "site" / DATABASE).datasets[0]
    assert facts["accountant"] == "Rényi filter"
    assert facts["epsilon_spent"] == facts["epsilon_filter"] > facts["epsilon"]["rdp"] - 1e-9
    assert facts["epsilon"]["pld"] < facts["epsilon"]["rdp"]


def test_the_filters_order_is_fixed_by_the_first_request(any_ledger: Ledger) -> None:
    small = asked(step=step_event(0.01, DiscreteGaussianDpEvent(2.0, 1000)), steps=10)
    any_ledger.reserve(small, LIMIT)
    order = any_ledger.book().limits["reviews"].order
    wide = step_event(0.2, DiscreteGaussianDpEvent(6.0, 1000))
    any_ledger.reserve(replace(small, run="second", step=wide), Limit(20.0, 1e-5))
    assert any_ledger.book().limits["reviews"].order == order
    declared = Ledger.in_memory("x", SiteKey.new())
    declared.reserve(small, Limit(8.5, 1e-5, order=4.02))
    assert declared.book().limits["reviews"].order == pytest.approx(4.0)


def test_the_order_is_fixed_before_there_is_a_limit(any_ledger: Ledger) -> None:
    """A limit that comes later cannot choose the order by what was released: every later request is held to it."""
    small = asked(step=step_event(0.01, DiscreteGaussianDpEvent(2.0, 1000)), steps=10)
    unlimited = Limit(None, 1e-5)
    any_ledger.reserve(small, unlimited)
    order = any_ledger.book().limits["reviews"].order
    own = history_of([repeated(small.step, 10)])
    assert order == filter_order(own, epsilon_rdp(own, 1e-5), 1e-5)
    any_ledger.reserve(replace(small, run="bare", step=NonPrivateDpEvent()), unlimited)
    assert any_ledger.book().limits["reviews"].order == order
    again = Ledger.in_memory("x", SiteKey.new())
    again.reserve(small, unlimited)
    wide = replace(small, run="second", step=step_event(0.2, DiscreteGaussianDpEvent(6.0, 1000)))
    again.reserve(wide, Limit(20.0, 1e-5, order=4.0))
    assert again.book().limits["reviews"].order == order != 4.0
    assert again.book().limits["reviews"].epsilon == 20.0


def test_releases_without_noise_have_no_order(any_ledger: Ledger) -> None:
    any_ledger.reserve(asked(step=NonPrivateDpEvent()), Limit(None, 1e-5, order=4.0))
    assert any_ledger.book().limits["reviews"].order is None
    any_ledger.reserve(asked("second"), Limit(None, 1e-5, order=4.0))  # the first private one: site.toml's wish
    assert any_ledger.book().limits["reviews"].order == 4.0


def test_an_order_that_an_earlier_version_left_open_follows_from_the_first_private_run(
    any_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = asked(step=step_event(0.01, DiscreteGaussianDpEvent(2.0, 1000)), steps=10)
    with monkeypatch.context() as old:
        old.setattr("confide.common.ledger.ledger.admit", lambda *_: None)
        any_ledger.reserve(small, Limit(None, 1e-5))
    wide = step_event(0.2, DiscreteGaussianDpEvent(6.0, 1000))
    any_ledger.reserve(replace(small, run="second", step=wide), Limit(20.0, 1e-5, order=4.0))
    own = history_of([repeated(small.step, 10)])
    assert any_ledger.book().limits["reviews"].order == filter_order(own, epsilon_rdp(own, 1e-5), 1e-5)


def test_one_content_under_two_names_is_refused(any_ledger: Ledger) -> None:
    any_ledger.reserve(asked(), LIMIT)
    before = any_ledger.book().head
    for limit in (LIMIT, Limit(None, 1e-5)):
        with pytest.raises(
            BudgetError, match=r"'letters': holds the records that were charged as 'reviews'.*same_as = \"reviews\""
        ):
            any_ledger.reserve(asked("other", dataset="letters"), limit)
    assert any_ledger.book().head == before


def test_a_content_that_was_given_back_is_free(any_ledger: Ledger) -> None:
    any_ledger.reserve(asked(), LIMIT).abort()
    any_ledger.reserve(asked("other", dataset="letters"), LIMIT)


def test_what_was_charged_under_a_name_before_it_was_the_same_counts(any_ledger: Ledger) -> None:
    any_ledger.reserve(asked(dataset="letters"), LIMIT)
    with pytest.raises(BudgetError, match=r"'reviews': spent ε = 7\.\d+, asked"):
        any_ledger.reserve(asked("other"), LIMIT, same=["letters"])
    with pytest.raises(BudgetError, match="run r has reserved on 'letters'"):
        any_ledger.reserve(asked(), LIMIT, same=["letters"])
    any_ledger.reserve(asked("other"), Limit(30.0, 1e-5), same=["letters"])


def test_an_audit_notes_one_content_under_two_names(ledger: Ledger, tmp_path: Path, monkeypatch) -> None:
    """As ledgers of earlier versions may have it."""
    ledger.reserve(asked(), LIMIT)
    assert not audit(tmp_path / "site" / DATABASE).notes
    monkeypatch.setattr("confide.common.ledger.ledger.admit", lambda *_: 4.0)
    ledger.reserve(asked("other", dataset="letters"), LIMIT)
    assert (
        "data sets letters, reviews were charged for the same records" in audit(tmp_path / "site" / DATABASE).notes[0]
    )


def test_an_audit_shows_the_filter_before_there_is_a_limit(ledger: Ledger, tmp_path: Path) -> None:
    ledger.reserve(asked(), Limit(None, 1e-5))
    facts = audit(tmp_path / "site" / DATABASE).datasets[0]
    assert facts["epsilon_filter"] == pytest.approx(7.199, abs=0.01)
    assert facts["remaining"] is None


def test_ledgers_are_never_replaced(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="a ledger is there already"):
        Ledger.create(tmp_path / "site", "st-mary")
    kept = tmp_path / "kept.json"
    Ledger.create(tmp_path / "two", "st-john", kept).reserve(asked(), LIMIT)
    assert read_json(kept)["seq"] == 1
    with pytest.raises(LedgerError, match="is the receipt of a ledger already"):
        Ledger.create(tmp_path / "three", "st-john", kept)
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("name", [DATABASE, RECEIPT, KEY])
def test_a_missing_part_is_not_made_anew(ledger: Ledger, tmp_path: Path, name: str) -> None:
    (tmp_path / "site" / name).unlink()
    with pytest.raises(LedgerError, match=f"{name}: missing"):
        Ledger.open(tmp_path / "site")


def test_the_key_is_secret(ledger: Ledger, tmp_path: Path) -> None:
    key = tmp_path / "site" / KEY
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o640)
    with pytest.raises(LedgerError, match="allowed: mode 0600"):
        Ledger.open(tmp_path / "site")
    key.chmod(0o600)
    key.write_text("not a key")
    with pytest.raises(LedgerError, match="not a private key"):
        Ledger.open(tmp_path / "site")


def test_a_crash_between_entry_and_receipt_is_mended(ledger: Ledger, tmp_path: Path) -> None:
    receipt = tmp_path / "site" / RECEIPT
    old = receipt.read_bytes()
    ledger.reserve(asked(), LIMIT)
    receipt.write_bytes(old)
    outcome = audit(tmp_path / "site" / DATABASE)
    assert outcome.holds
    assert "one entry behind" in outcome.notes[0]
    assert Ledger.open(tmp_path / "site").book().head.seq == 1
    assert not audit(tmp_path / "site" / DATABASE).notes


def test_a_receipt_two_entries_behind_is_an_old_copy(ledger: Ledger, tmp_path: Path) -> None:
    receipt = tmp_path / "site" / RECEIPT
    old = receipt.read_bytes()
    with ledger.reserve(asked(), LIMIT).taking(1):
        pass
    receipt.write_bytes(old)
    with pytest.raises(LedgerError, match="the receipt is an old copy"):
        Ledger.open(tmp_path / "site")


def test_an_open_ledger_notices_that_its_file_was_rolled_back(ledger: Ledger, tmp_path: Path) -> None:
    database = tmp_path / "site" / DATABASE
    shutil.copyfile(database, tmp_path / "old.db")
    ledger.reserve(asked(), LIMIT)
    shutil.copyfile(tmp_path / "old.db", database)
    with pytest.raises(LedgerError, match=r"rolled back; it is not used until a person has looked"):
        ledger.reserve(asked("second"), LIMIT)


def test_a_fork_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    """The same key wrote another history: a copy that went on by itself, put in the place of the first."""
    shutil.copytree(tmp_path / "site", tmp_path / "fork")
    ledger.reserve(asked("one"), LIMIT)
    Ledger.open(tmp_path / "fork").reserve(asked("two"), LIMIT)
    shutil.copyfile(tmp_path / "fork" / DATABASE, tmp_path / "site" / DATABASE)
    with pytest.raises(LedgerError, match="a fork"):
        Ledger.open(tmp_path / "site")


def test_a_head_of_bytes_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "site" / DATABASE)) as database, database:
        database.execute("UPDATE head SET hash = ?", (b"\xff",))
    with pytest.raises(LedgerError, match="the head is not as confide wrote it"):
        Ledger.open(tmp_path / "site")


def test_audits_need_the_receipt_and_the_registered_key(ledger: Ledger, tmp_path: Path) -> None:
    ledger.reserve(asked(), LIMIT)
    database = tmp_path / "site" / DATABASE
    assert audit(database).holds
    other = tmp_path / "other.key"
    other.write_text(SiteKey.new().public + "\n")
    assert "expected" in audit(database, public_key=other).findings[0]
    (tmp_path / "site" / RECEIPT).unlink()
    assert "cannot be read" in audit(database).findings[0]


def test_an_audit_reports_what_was_overspent(ledger: Ledger, tmp_path: Path, monkeypatch) -> None:
    """A site that raised its limit and lowered it again: the last limit does not cover what was spent."""
    ledger.reserve(asked(), Limit(30.0, 1e-5))
    monkeypatch.setattr("confide.common.ledger.ledger.admit", lambda book, *_: book.limits["reviews"].order)
    ledger.reserve(asked("second"), Limit(8.5, 1e-5))
    outcome = audit(tmp_path / "site" / DATABASE)
    assert not outcome.holds
    assert "is above the limit 8.5" in outcome.findings[0]


def test_an_account_is_verified_with_the_public_key_alone(ledger: Ledger) -> None:
    with ledger.reserve(asked(), LIMIT).taking(4):
        pass
    account = json.loads(json.dumps(export(ledger)))
    content = verify_account(account, ledger.key.public, "account")
    facts = content["datasets"][0]
    assert facts["epsilon"]["rdp"] == pytest.approx(epsilon_rdp(ledger.book().history("reviews"), 1e-5))
    assert facts["runs"][0]["used"] == 4
    assert "content" not in json.dumps(account)
    account["datasets"][0]["epsilon"]["rdp"] = 1.0
    with pytest.raises(LedgerError, match="the signature does not hold"):
        verify_account(account, ledger.key.public, "account")
    with pytest.raises(LedgerError, match="signed by key"):
        verify_account(account, SiteKey.new().public, "account")
    lie = {key: value for key, value in account.items() if key not in ("signature", "public_key", "format")}
    with pytest.raises(LedgerError, match=r"states rdp ε = 1\.0, the events give"):
        verify_account(signed_document(ledger.key, "account", lie), ledger.key.public, "account")
    with pytest.raises(LedgerError, match="not a document of format"):
        verify_account([], ledger.key.public, "account")


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epsilon_spent", 0.1),
        ("accountant", "another"),
        ("epsilon_filter", 0.1),
        ("remaining", 40.0),
        ("runs.epsilon_used", 0.1),
        ("runs.epsilon_reserved", 0.1),
        ("runs.steps", 3),
        ("runs.used", 10**6),
        ("limit.epsilon", 1.0),
    ],
)
def test_every_figure_of_an_account_is_computed_again(ledger: Ledger, key: str, value: object, runs: int) -> None:
    for number in range(runs):
        with ledger.reserve(asked(f"run-{number}"), Limit(40.0, 1e-5)).taking(4):
            pass
    account = json.loads(json.dumps(export(ledger)))
    verify_account(account, ledger.key.public, "account")
    content = {name: item for name, item in account.items() if name not in ("signature", "public_key", "format")}
    place, _, name = key.rpartition(".")
    facts = content["datasets"][0]
    facts = facts["runs"][-1] if place == "runs" else facts[place] if place else facts
    assert facts[name] != value
    facts[name] = value
    with pytest.raises(LedgerError, match=r"account: data set 'reviews'.*(states|above the limit)"):
        verify_account(signed_document(ledger.key, "account", content), ledger.key.public, "account")


def test_a_signature_serves_one_purpose(ledger: Ledger) -> None:
    document = signed_document(ledger.key, "head", {"x": 1})
    assert check_document(document, "head", ledger.key.public, "d")["x"] == 1
    with pytest.raises(LedgerError, match="not a document of format"):
        check_document(document, "account", ledger.key.public, "d")
    signature = ledger.key.sign("chain", {"x": 1})
    assert verify(ledger.key.public, "chain", {"x": 1}, signature)
    assert not verify(ledger.key.public, "head", {"x": 1}, signature)
    assert not verify("zz", "head", {"x": 1}, signature)


def test_public_keys_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_public_key(path)
    path.write_text("abc")
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        read_public_key(path)


def test_ledgers_are_found_by_file_site_and_folder(ledger: Ledger, tmp_path: Path) -> None:
    expected = [tmp_path / "site" / DATABASE]
    assert find_ledgers(tmp_path) == find_ledgers(tmp_path / "site") == find_ledgers(expected[0]) == expected
    with pytest.raises(LedgerError, match=r"no ledger\.db there"):
        find_ledgers(tmp_path / "nowhere")


def test_the_head_says_where_the_chain_ends(ledger: Ledger) -> None:
    ledger.reserve(asked(), LIMIT)
    head = ledger.book().head
    assert ledger.hash_at(1) == head.hash
    assert ledger.hash_at(2) is None
    assert ledger.hash_at(0) == "0" * 64
    assert head == Head(1, head.hash)


def test_entries_hold_what_the_privacy_page_names(ledger: Ledger, tmp_path: Path) -> None:
    ledger.reserve(asked(), LIMIT)
    with closing(sqlite3.connect(tmp_path / "site" / DATABASE)) as database:
        entry = json.loads(database.execute("SELECT body FROM entries").fetchone()[0])
    assert entry.keys() >= {
        "seq",
        "previous",
        "dataset",
        "content",
        "unit",
        "relation",
        "event",
        "delta",
        "run",
        "model",
        "configuration",
        "version",
        "kind",
        "time",
    }


@pytest.mark.slow
def test_a_killed_process_leaves_a_ledger_that_holds() -> None:
    assert stress.crash(4, seed=1) > 0


def test_processes_race_for_one_budget() -> None:
    assert len(stress.race(2)) == 2


def test_every_edit_of_the_file_is_seen() -> None:
    assert sum(stress.tamper(80, seed=1).values()) == 80


def test_a_long_ledger_is_measured() -> None:
    assert stress.timing(100)["entries"] == 100


def test_an_auditor_without_rights_finds_nothing(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that may not be read is no finding about the ledger."""

    def closed(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("confide.common.ledger.verify.read_json", closed)
    with pytest.raises(LedgerError, match="may not open it, so nothing was verified"):
        audit(tmp_path / "site" / DATABASE)

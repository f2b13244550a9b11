"""The server's memory of the sites' ledgers: what a site cannot see of itself."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from confide.benchmarks.ledger import request
from confide.common import wire
from confide.common.errors import ConfigError, LedgerError, WireError
from confide.common.ledger.chain import SiteKey
from confide.common.ledger.ledger import Head, Ledger, Limit
from confide.server.ledger_heads import Heads

LIMIT = Limit(8.0, 1e-5)


def hello(ledger: Ledger) -> dict:
    return {"name": ledger.site, wire.PUBLIC_KEY: ledger.key.public, **wire.head_facts(ledger.book().head)}


def answers(ledger: Ledger):
    def ask(question: dict) -> dict:
        seq = question["seq"]
        facts = wire.ledger_facts(ledger.site, question["nonce"], seq, ledger.hash_at(seq), ledger.book().head)
        if wire.SINCE in question:
            facts[wire.SINCE] = wire.digest_of(ledger.hashes_at(question[wire.SINCE]))
        return {**facts, "signature": ledger.key.sign("hello", facts)}

    return ask


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "site", "st-mary")


def test_a_ledger_that_goes_on_is_welcome(ledger: Ledger, tmp_path: Path) -> None:
    heads = Heads(tmp_path / "server.json")
    heads.check("st-mary", hello(ledger), answers(ledger))
    ledger.reserve(request("a"), LIMIT)
    heads.saw("st-mary", ledger.book().head)
    heads.save()
    again = Heads(tmp_path / "server.json")
    assert again.last("st-mary") == ledger.book().head
    again.saw("st-mary", Head(0, "0" * 64))  # an older one of the same ledger does not count
    again.check("st-mary", hello(ledger), answers(ledger))
    assert again.last("st-mary") == ledger.book().head


def test_a_whole_folder_restored_from_a_backup_is_seen(ledger: Ledger, tmp_path: Path) -> None:
    """Database and receipt together are old and agree: only the server can know."""
    shutil.copytree(tmp_path / "site", tmp_path / "backup")
    heads = Heads(None)
    ledger.reserve(request("a"), LIMIT)
    heads.check("st-mary", hello(ledger), answers(ledger))
    old = Ledger.open(tmp_path / "backup")
    with pytest.raises(LedgerError, match="does not hold entry 1 as it was seen: rolled back, or a fork"):
        heads.check("st-mary", hello(old), answers(old))
    old.reserve(request("b"), LIMIT)  # as long again, another history
    with pytest.raises(LedgerError, match="rolled back, or a fork"):
        heads.check("st-mary", hello(old), answers(old))


@pytest.mark.parametrize("entries", [1, 3])
def test_a_ledger_that_is_restored_in_the_middle_of_a_run_is_seen(tmp_path: Path, entries: int) -> None:
    """It has passed what was seen by the next check, and what came between was charged, and is forgotten."""
    run = replace(request("a"), steps=40)
    ledger = Ledger.create(tmp_path / "site", "st-mary")
    heads = Heads(tmp_path / "server.json")
    heads.check("st-mary", hello(ledger), answers(ledger))

    def play(ledger: Ledger, rounds: int) -> None:
        reservation = ledger.reserve(run, LIMIT)
        for _ in range(rounds):
            for _ in range(entries):  # of one round
                with reservation.taking(1):
                    pass
            heads.saw("st-mary", ledger.book().head)
        heads.save()

    play(ledger, 2)
    shutil.copytree(tmp_path / "site", tmp_path / "backup")
    play(ledger, 1)
    restored = Ledger.open(tmp_path / "backup")
    play(restored, 4)
    for memory in (heads, Heads(tmp_path / "server.json")):
        with pytest.raises(LedgerError, match="every entry that came with an update: rolled back, or a fork"):
            memory.check("st-mary", hello(restored), answers(restored))


def test_what_is_remembered_of_a_long_run_is_bounded(ledger: Ledger) -> None:
    heads = Heads(None)
    heads.check("st-mary", hello(ledger), answers(ledger))
    for seq in range(1, 3 * wire.MOST_SINCE):
        heads.saw("st-mary", Head(seq, f"{seq:064x}"))
    last = 3 * wire.MOST_SINCE - 1
    assert heads.last("st-mary") == Head(last, f"{last:064x}")
    asked: list[dict] = []
    with pytest.raises(LedgerError):
        heads.check("st-mary", hello(ledger), lambda question: asked.append(question) or answers(ledger)(question))
    assert wire.MOST_SINCE // 3 < len(asked[0][wire.SINCE]) <= wire.MOST_SINCE


def test_another_key_no_ledger_and_no_answer_are_refused(ledger: Ledger, tmp_path: Path) -> None:
    heads = Heads(None)
    heads.check("st-mary", hello(ledger), answers(ledger))
    with pytest.raises(LedgerError, match="shows another key than before"):
        heads.check("st-mary", {**hello(ledger), wire.PUBLIC_KEY: SiteKey.new().public}, answers(ledger))
    with pytest.raises(LedgerError, match="now shows none"):
        heads.check("st-mary", {"name": "st-mary"}, answers(ledger))

    def silent(question: dict) -> dict:
        raise LedgerError("st-mary: no")

    with pytest.raises(LedgerError, match="no"):
        heads.check("st-mary", hello(ledger), silent)


def test_forged_answers_are_refused(ledger: Ledger) -> None:
    def forged(question: dict) -> dict:
        return {**answers(ledger)(question), "hash": "f" * 64}

    with pytest.raises(LedgerError, match="the signature on its ledger's head does not hold"):
        Heads(None).check("st-mary", hello(ledger), forged)
    recorded = answers(ledger)({"seq": 0, "nonce": "old"})
    with pytest.raises(LedgerError, match="answered another question"):
        Heads(None).check("st-mary", hello(ledger), lambda _: recorded)
    heads = Heads(None)
    ledger.reserve(request("a"), LIMIT)
    heads.check("st-mary", hello(ledger), answers(ledger))
    with pytest.raises(LedgerError, match="rolled back"):
        heads.check("st-mary", {**hello(ledger), wire.SEQ: 0}, answers(ledger))


def test_a_memory_that_cannot_be_read_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text("{")
    with pytest.raises(ConfigError, match="restore it from a backup"):
        Heads(tmp_path / "server.json")


def test_heads_that_are_none_are_refused() -> None:
    assert wire.read_head({}) is None
    with pytest.raises(WireError):
        wire.read_head({wire.SEQ: -1, wire.HASH: "0" * 64})
    with pytest.raises(WireError):
        wire.read_head({wire.SEQ: 1, wire.HASH: "0"})

"""The server's memory of the sites' ledgers: what a site cannot see of itself."""

import shutil
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
    again.saw("st-mary", Head(0, "0" * 64))  # an older one does not count
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

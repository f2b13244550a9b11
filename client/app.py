"""The Flower ClientApp: thin, imports no torch; hands each message to the worker.

A failure answers with an error, one line without any content of a record; it never raises through Flower, whose log
would carry the exception's text.
"""

import traceback
from collections.abc import Callable
from typing import cast

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from .. import __version__
from ..common import wire
from ..common.errors import BudgetError, ConfideError, LedgerError, PolicyError
from .site import Site, SiteAccount, simulated_site

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Who is here, which version it runs, and where its ledger stands; no data is touched."""

    def answer() -> RecordDict:
        site = _site(context)
        facts = {"name": site.name, wire.VERSION: __version__}
        if site.ledger.durable:
            facts[wire.PUBLIC_KEY] = site.ledger.key.public
        return RecordDict({wire.SITE: ConfigRecord({**facts, **wire.head_facts(site.head())})})

    return _answered(message, answer)


@app.query("ledger")
def ledger(message: Message, context: Context) -> Message:
    """Shows that the ledger continues the one that the server has seen: the hash of the entry it asks about, signed."""

    def answer() -> RecordDict:
        site = _site(context)
        asked = message.content.config_records[wire.CONFIG]
        seq, nonce = int(cast(int, asked["seq"])), str(asked["nonce"])
        facts = wire.ledger_facts(site.name, nonce, seq, site.ledger.hash_at(seq), site.ledger.head())
        return RecordDict({wire.SITE: ConfigRecord({**facts, "signature": site.ledger.key.sign("hello", facts)})})

    return _answered(message, answer)


@app.query("reveal")
def reveal(message: Message, context: Context) -> Message:
    """After an audited run: the seed of the coins that decided which canaries were in."""

    def answer() -> RecordDict:
        from .worker import worker_for

        site = _site(context)
        seed = site.coin_seed(worker_for(dict(context.run_config)).config)
        return RecordDict({wire.SITE: ConfigRecord({"name": site.name, "seed": seed})})

    return _answered(message, answer)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round at this site."""
    account: SiteAccount | None = None
    before = 0

    def answer() -> RecordDict:
        nonlocal account, before
        task, asked_before = wire.decode_task(message.content)
        from .worker import worker_for  # torch loads here, not where Flower imports the app

        worker = worker_for(dict(context.run_config))
        account = worker.account(_site(context), _partition(context), asked_before)
        before = account.steps
        return wire.encode_update(worker.train(_partition(context), task, account), worker.config.server.wire)

    return _answered(message, answer, lambda: account is not None and account.steps > before)


def _answered(
    message: Message, answer: Callable[[], RecordDict], charged: Callable[[], bool] = lambda: False
) -> Message:
    """The reply, or an error whose code says whether the run was charged, and whether it is of use to ask again."""
    declined = False
    try:
        return Message(answer(), reply_to=message)
    except ConfideError as failure:
        declined = isinstance(failure, BudgetError | PolicyError | LedgerError)
        reason = str(failure)
    except Exception as failure:
        # the text of a foreign exception may quote a record: only its kind and place are told
        place = traceback.extract_tb(failure.__traceback__)[-1]
        reason = f"{type(failure).__name__} in {place.filename.rsplit('/', 1)[-1]}, line {place.lineno}"
    if charged():
        return Message(Error(wire.FAILED, reason), reply_to=message)
    return Message(Error(wire.DECLINED if declined else wire.REFUSED, reason), reply_to=message)


def _site(context: Context) -> Site:
    return simulated_site(dict(context.run_config), _partition(context))


def _partition(context: Context) -> int:
    return int(cast(int, context.node_config["partition-id"]))

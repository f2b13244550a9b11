"""The Flower ClientApp: thin, imports no torch; hands each message to the worker.

A failure answers with an error, one line without any content of a record; it never raises through Flower, whose log
would carry the exception's text.
"""

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from .. import __version__
from ..common import wire
from ..common.errors import BudgetError, ConfideError, KeysLostError, LedgerError, PolicyError
from ..common.secagg.facts import from_site
from .site import Site, SiteAccount, simulated_site

if TYPE_CHECKING:
    from ..common.secagg.protocol import Site as SecureSite

app = ClientApp()
_SECURE = "secure-sum"
"""where the site's state of secure sums is kept between messages: Flower's node state, which stays at the site"""


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


@app.query("keys")
def keys(message: Message, context: Context) -> Message:
    """Set-up of secure sums, first stage: fresh keys for many rounds, signed by the site."""

    def answer() -> RecordDict:
        from . import secagg
        from .worker import worker_for

        worker = worker_for(dict(context.run_config))
        secure, facts = secagg.publish(worker, _site(context), message.content.config_records[wire.CONFIG])
        _keep(context, secure)
        return RecordDict({wire.SITE: ConfigRecord(facts)})

    return _answered(message, answer)


@app.query("shares")
def shares(message: Message, context: Context) -> Message:
    """Second stage: everybody's keys are checked, and the secrets shared out, sealed for each neighbour."""
    return _stage(message, context, lambda secagg: secagg.deal)


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """After the masked inputs: the shares that open the sum, once, for one set of survivors."""
    return _stage(message, context, lambda secagg: secagg.unmask)


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
        secure = None
        if worker.config.secure:
            from . import secagg

            secure = _kept(context)
            if task.dealt is not None and not secure.ready:
                secure.accept(task.dealt)
            secure.expect(task.round)  # before anything is charged
            secagg.claim(secure, _site(context), "mask", task.round)
        account = worker.account(_site(context), _partition(context), asked_before)
        before = account.steps
        try:
            update = worker.train(_partition(context), task, account, secure)
        finally:
            if secure is not None:
                _keep(context, secure)
        return wire.encode_update(update, worker.config.server.wire)

    return _answered(message, answer, lambda: account is not None and account.steps > before)


def _answered(
    message: Message, answer: Callable[[], RecordDict], charged: Callable[[], bool] = lambda: False
) -> Message:
    """The reply, or an error whose code says whether the run was charged, and whether it is of use to ask again."""
    code = wire.REFUSED
    try:
        return Message(answer(), reply_to=message)
    except ConfideError as failure:
        if isinstance(failure, BudgetError | PolicyError | LedgerError):
            code = wire.DECLINED
        elif isinstance(failure, KeysLostError):
            code = wire.KEYS_LOST
        reason = str(failure)
    except Exception as failure:
        # the text of a foreign exception may quote a record: only its kind and place are told
        place = traceback.extract_tb(failure.__traceback__)[-1]
        reason = f"{type(failure).__name__} in {place.filename.rsplit('/', 1)[-1]}, line {place.lineno}"
    return Message(Error(wire.FAILED if charged() else code, reason), reply_to=message)


def _stage(message: Message, context: Context, step: Callable[[Any], Callable[..., dict]]) -> Message:
    """One of the stages that go on with the state that an earlier one left. step: picks it from `client.secagg`."""

    def answer() -> RecordDict:
        from . import secagg

        secure = _kept(context)
        facts = step(secagg)(secure, _site(context), message.content.config_records[wire.CONFIG])
        _keep(context, secure)
        return RecordDict({wire.SITE: ConfigRecord(facts)})

    return _answered(message, answer)


def _kept(context: Context) -> "SecureSite":
    from . import secagg
    from .worker import worker_for

    return secagg.restored(worker_for(dict(context.run_config)), context.state.config_records.get(_SECURE, {}))


def _keep(context: Context, secure: "SecureSite") -> None:
    context.state[_SECURE] = ConfigRecord(from_site(secure))


def _site(context: Context) -> Site:
    return simulated_site(dict(context.run_config), _partition(context))


def _partition(context: Context) -> int:
    return int(cast(int, context.node_config["partition-id"]))

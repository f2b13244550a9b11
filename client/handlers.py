"""What a site answers to each kind of message; runs where the model is: in a simulation's process, or in the resident
worker of a real site.

A failure answers with an error, one line without any content of a record; it never raises through Flower, whose log
would carry the exception's text.
"""

import hashlib
import logging
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict

from .. import __version__
from ..common import wire
from ..common.errors import (
    BudgetError,
    ConfideError,
    KeysLostError,
    LedgerError,
    PolicyError,
    PrivacyError,
    RecordsError,
    WireError,
    contain,
)
from ..common.secagg.facts import from_site
from ..common.types import Update
from .site import Site, SiteAccount

if TYPE_CHECKING:
    from ..common.secagg.protocol import SecureSite
    from .worker import Worker

log = logging.getLogger("confide.worker")
_TOLD = (BudgetError, PolicyError, PrivacyError, WireError)
"""failures of a real site whose text names nothing of its own beside limits; of others only the kind is told"""
_SECURE = "secure-sum"
"""where the site's state of secure sums is kept between messages: memory of this site"""


class Host(Protocol):
    """The site that a message is for, as this process holds it."""

    state: RecordDict
    """kept between the messages of a run"""
    number: int
    """which of the worker's sites it is"""
    discreet: bool
    """whether the names of files and columns are kept from the server"""

    @property
    def site(self) -> Site: ...

    def worker(self) -> "Worker":
        """Model and data, loaded at the first call. Raises PolicyError before anything is read that is not allowed."""
        ...

    def recall(self, key: str) -> RecordDict | None:
        """What was answered to this very question before, if it is still known."""
        ...

    def remember(self, key: str, reply: RecordDict) -> None:
        """Keeps an answer, so that a server that lost it gets the same again, and nothing is charged twice."""
        ...


def handle(message: Message, host: Host) -> Message:
    """The reply to one message."""
    kind = message.metadata.message_type
    handler = _HANDLERS.get(kind)
    if handler is None:
        return _failure(message, wire.REFUSED, f"a message of kind '{kind[:40]}'; this site answers {len(_HANDLERS)}")
    charges = _Charges()
    try:
        return Message(handler(message.content, host, charges), reply_to=message)
    except BaseException as failure:
        contain(failure)
        return _answered(message, host, charges, failure)


def _answered(message: Message, host: Host, charges: "_Charges", failure: BaseException) -> Message:
    """An error as it is told to the server. What fails after a run was admitted may fail because of what the records
    are: a real site then says nothing but that it failed."""
    kind = message.metadata.message_type
    if host.discreet and charges.made:
        log.error("%s: %s", kind, failure if isinstance(failure, ConfideError) else type(failure).__name__)
        return _failure(message, wire.FAILED, "the site could not answer; its worker.log says why")
    if isinstance(failure, ConfideError):
        code = wire.REFUSED
        if isinstance(failure, BudgetError | PolicyError | LedgerError):
            code = wire.DECLINED
        elif isinstance(failure, KeysLostError):
            code = wire.KEYS_LOST
        reason = str(failure)
        if host.discreet and (isinstance(failure, RecordsError) or not isinstance(failure, _TOLD)):
            log.error("%s: %s", kind, failure)  # names files and columns of the site: not for the server
            reason = f"{type(failure).__name__} at this site; its worker.log says why"
            code = wire.DECLINED
        return _failure(message, wire.FAILED if charges.made else code, reason)
    # the text of a foreign exception may quote a record: only its kind and place are told
    place = traceback.extract_tb(failure.__traceback__)[-1]
    reason = f"{type(failure).__name__} in {place.filename.rsplit('/', 1)[-1]}, line {place.lineno}"
    return _failure(message, wire.FAILED if charges.made else wire.REFUSED, reason)


def _failure(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)


class _Charges:
    """Whether a message has charged the run, however it ended."""

    def __init__(self) -> None:
        self._account: SiteAccount | None = None
        self._before = 0, 0

    def begin(self, account: SiteAccount) -> None:
        self._account, self._before = account, (account.steps, account.evaluations)

    @property
    def made(self) -> bool:
        account = self._account
        return account is not None and (account.steps, account.evaluations) != self._before


def _hello(content: RecordDict, host: Host, charges: _Charges) -> RecordDict:
    """Who is here, which version it runs, and where its ledger stands; no data is touched."""
    site = host.site
    facts = {"name": site.name, wire.VERSION: __version__}
    if site.ledger.durable:
        facts[wire.PUBLIC_KEY] = site.ledger.key.public
    return _facts({**facts, **wire.head_facts(site.head())})


def _ledger(content: RecordDict, host: Host, charges: _Charges) -> RecordDict:
    """Shows that the ledger continues the one that the server has seen: the hash of the entry it asks about, and one of
    those of the entries that came with updates since, signed."""
    site, asked = host.site, _asked(content)
    seq, nonce = int(cast(int, asked["seq"])), str(asked["nonce"])
    since = [int(one) for one in cast(list[int], asked.get(wire.SINCE, []))]
    if len(since) > wire.MOST_SINCE:
        raise WireError(f"a question about {len(since)} entries of a ledger; at most {wire.MOST_SINCE}")
    last, *others = site.ledger.hashes_at([seq, *since])
    facts = wire.ledger_facts(site.name, nonce, seq, last, site.ledger.head())
    if since:
        facts[wire.SINCE] = wire.digest_of(others)
    return _facts({**facts, "signature": site.ledger.key.sign("hello", facts)})


def _reveal(content: RecordDict, host: Host, charges: _Charges) -> RecordDict:
    """After an audited run: the seed of the coins that decided which canaries were in. Raises PolicyError otherwise."""
    site, config = host.site, host.worker().config
    if not config.audit.planted:
        raise PolicyError(f"site {site.name}: this run has no canaries, so there are no coins to show")
    return _facts({"name": site.name, "seed": site.coin_seed(config)})


def _holds(content: RecordDict, host: Host, charges: _Charges) -> RecordDict:
    """To a server that was restarted: which set-up of secure sums this site still holds its part of."""
    kept = host.state.config_records.get(_SECURE)
    return _facts({"roster": "" if kept is None else cast(bytes, kept["roster"]).hex()})


def _keys(content: RecordDict, host: Host, charges: _Charges) -> RecordDict:
    """Set-up of secure sums, first stage: fresh keys for many rounds, signed by the site."""
    from . import secagg

    secure, facts = secagg.publish(host.worker(), host.site, _asked(content))
    _keep(host, secure)
    return _facts(facts)


def _shares(content: RecordDict, host: Host, charges: _Charges) -> RecordDict:
    """Second stage: everybody's keys are checked, and the secrets shared out, sealed for each neighbour."""
    from . import secagg

    secure = _kept(host)
    facts = secagg.deal(secure, host.site, _asked(content))
    _keep(host, secure)
    return _facts(facts)


def _unmask(content: RecordDict, host: Host, charges: _Charges) -> RecordDict:
    """After the masked inputs: the shares that open the sum, for one set of survivors, whoever asks again."""
    from . import secagg

    secure, asked = _kept(host), _asked(content)
    key = _key("unmask", secure.roster, repr(sorted(asked.items())).encode())
    if (known := host.recall(key)) is not None:
        return known
    reply = _facts(secagg.unmask(secure, host.worker(), host.site, asked))
    _keep(host, secure)
    host.remember(key, reply)
    return reply


def _train(content: RecordDict, host: Host, charges: _Charges) -> RecordDict:
    """One round at this site."""
    task, asked_before = wire.decode_task(content)
    from . import secagg  # torch loads here, not where Flower imports the app

    worker = host.worker()
    config, secure = worker.config, None
    if not 1 <= task.round <= config.last_round:
        raise WireError(f"round {task.round} received; this run declares rounds 1 to {config.last_round}")
    if (task.evaluate and not config.evaluation.sites) or not (task.evaluate or config.trains_in(task.round)):
        raise WireError(f"round {task.round} {'with' if task.evaluate else 'without'} an evaluation: not as declared")
    worker.check(task)
    if config.secure:
        secure = _kept(host)
        if task.dealt is not None and not secure.ready:
            secure.accept(task.dealt)
            _keep(host, secure)
    key = _key("train", config.digest().encode(), b"" if secure is None else secure.roster, wire.task_digest(task))
    if (known := host.recall(key)) is not None:
        return known
    if secure is not None:
        secure.expect(task.round)  # before anything is charged
        secagg.claim(secure, host.site, "mask", task.round)
    site = host.site
    site.admit_clip(config, worker.plan, task.clip)
    account = worker.account(site, host.number, asked_before, task.evaluated)
    charges.begin(account)

    def keep(update: Update) -> RecordDict:
        reply = wire.encode_update(update, config.server.upload_dtype)
        host.remember(key, reply)
        return reply

    try:
        update = worker.train(host.number, task, account, secure, keep if host.discreet else None)
    finally:
        if secure is not None:
            _keep(host, secure)
    return keep(update)


Handler = Callable[[RecordDict, Host, _Charges], RecordDict]
_QUERIES: dict[str, Handler] = {
    "hello": _hello,
    "ledger": _ledger,
    "reveal": _reveal,
    "holds": _holds,
    "keys": _keys,
    "shares": _shares,
    "unmask": _unmask,
}
ACTIONS = tuple(_QUERIES)
"""what a site may be asked beside training"""
_HANDLERS: dict[str, Handler] = {
    MessageType.TRAIN: _train,
    **{f"{MessageType.QUERY}.{name}": handler for name, handler in _QUERIES.items()},
}


def _key(kind: str, *parts: bytes) -> str:
    return kind + hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _facts(facts: dict[str, Any]) -> RecordDict:
    return RecordDict({wire.SITE: ConfigRecord(facts)})


def _asked(content: RecordDict) -> ConfigRecord:
    """Raises WireError for a question without its facts."""
    try:
        return content.config_records[wire.CONFIG]
    except KeyError:
        raise WireError("the question holds no facts") from None


def _kept(host: Host) -> "SecureSite":
    from . import secagg

    return secagg.restored(host.worker(), host.state.config_records.get(_SECURE, {}))


def _keep(host: Host, secure: "SecureSite") -> None:
    host.state[_SECURE] = ConfigRecord(from_site(secure))

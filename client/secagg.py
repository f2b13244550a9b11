"""A site's side of secure sums: what it answers to the server's stages, and the state that it keeps between them."""

from collections.abc import Mapping
from typing import Any

from ..common.errors import KeysLostError, SecureSumError
from ..common.privacy.plan import secure_session
from ..common.secagg import facts
from ..common.secagg.keys import Session
from ..common.secagg.protocol import SecureSite
from .site import Site
from .worker import Worker

FIRST_ROUND = "first-round"
CLAIMS = "secure-sums"
"""folder beside the ledger: what was masked and opened, without any content"""


def publish(worker: Worker, site: Site, asked: Mapping[str, Any]) -> tuple[SecureSite, facts.Facts]:
    """Begins a set-up: fresh keys, signed. What an earlier set-up left is forgotten with the state."""
    secure, advert = SecureSite.advertise(_session(worker, asked), site.name, site.ledger.key)
    return secure, facts.from_advert(advert)


def deal(secure: SecureSite, site: Site, asked: Mapping[str, Any]) -> facts.Facts:
    """Checks all sites' keys against the identities that this site knows, and shares its secrets out."""
    return facts.from_sealed(secure.deal(facts.to_adverts(asked), site.peers))


def unmask(secure: SecureSite, worker: Worker, site: Site, asked: Mapping[str, Any]) -> facts.Facts:
    """The answer for the survivors that the server names, with the seed of the noise that they do not need."""
    number, survivors = asked.get("round"), asked.get("survivors")
    if not isinstance(number, int) or not isinstance(survivors, list):
        raise SecureSumError("secure sum: asked to unmask without a round and its survivors")
    if worker.plan is None:
        raise SecureSumError("secure sum: asked to unmask in a run without privacy")
    answer = secure.open(number, [str(name) for name in survivors], worker.plan.pieces.released)
    claim(secure, site, "open", number)
    return facts.from_answer(answer)


def claim(secure: SecureSite, site: Site, step: str, number: int) -> None:
    """Makes sure that a step of a round is done once, whatever copies of the state are about.

    A server that sends one task twice at the same time could find two processes with the same state. An empty file
    beside the ledger, made by the first, stops the second. Raises SecureSumError for the second.
    """
    if site.ledger.folder is None:  # a simulation's ledger in memory: one process, one copy
        return
    folder = site.ledger.folder / CLAIMS
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        (folder / f"{secure.roster.hex()[:32]}-{number}-{step}").touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        raise SecureSumError(f"secure sum: asked for {step} of round {number} a second time") from None


def restored(worker: Worker, state: Mapping[str, Any]) -> SecureSite:
    """The state of a set-up as the last message left it. Raises SecureSumError when there is none."""
    if not state:
        raise KeysLostError("secure sum: this site holds no keys (restarted?); it takes part after the next set-up")
    return facts.to_site(_session(worker, state), state)


def _session(worker: Worker, asked: Mapping[str, Any]) -> Session:
    first = asked.get(FIRST_ROUND)
    rounds = worker.config.last_round
    if not isinstance(first, int) or not 1 <= first <= rounds or worker.plan is None or not worker.config.secure:
        raise SecureSumError(f"secure sum: no set-up for round {first} of {rounds} in this run")
    return secure_session(worker.config, worker.plan, first)

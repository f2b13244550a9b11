"""What the server remembers of the sites' ledgers: a ledger restored from an old copy is seen here, when nobody at the
site could see it any more.

Each site's public key is taken at first sight and pinned. A site whose ledger does not continue what was seen, or whose
key is another, takes no part.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..common import wire
from ..common.errors import ConfigError, LedgerError
from ..common.ledger.chain import GENESIS, Head, verify, write_json

Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""Sends a site a question of facts and returns its facts; raises LedgerError with the reason when there is none."""


class Heads:
    """The last head and the key of every site, in one JSON file; in memory without a path."""

    def __init__(self, path: Path | None, registered: Mapping[str, str] | None = None) -> None:
        """Raises ConfigError for a file that cannot be read: what was seen is not forgotten silently.

        registered: name → public key of the sites that may take part; None: any, each key pinned at first sight.
        """
        self._path, self._registered = path, registered
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            try:
                self._known = json.loads(path.read_text(encoding="utf-8"))["sites"]
            except (OSError, ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"{path}: not readable as the server's memory of the sites' ledgers; restore it from a backup"
                ) from None

    @property
    def registered(self) -> Mapping[str, str] | None:
        return self._registered

    def last(self, site: str) -> Head | None:
        """The furthest head that was seen."""
        return max(self._all(site), key=lambda head: head.seq, default=None)

    def _all(self, site: str) -> list[Head]:
        """The head at the last check, and those that came with updates since."""
        known = self._known.get(site)
        if known is None:
            return []
        seen = [(known["seq"], known["hash"]), *known.get(wire.SINCE, ())]
        return [Head(int(seq), str(hash_)) for seq, hash_ in seen]

    def check(self, site: str, hello: Mapping[str, Any], ask: Ask) -> None:
        """Has a site show that its ledger continues the one seen last, and remembers it.

        hello: how the site introduced itself. ask: a question to its ledger.
        Raises LedgerError with the reason why it must not take part.
        """
        head, known = wire.read_head(hello), self._known.get(site)
        if self._registered is not None:
            if site not in self._registered:
                raise LedgerError(f"a site calls itself '{site[:64]}', which is not registered")
            if head is None or hello.get(wire.PUBLIC_KEY) != self._registered[site]:
                raise LedgerError(f"{site} does not show the key that was registered for it")
            if known is not None and known["public_key"] != self._registered[site]:
                known = None  # registered anew by the operator, with a new ledger
                del self._known[site]
        if head is None:
            if known is not None:
                raise LedgerError(f"{site} had a ledger at entry {known['seq']} and now shows none")
            return
        public = str(hello[wire.PUBLIC_KEY])
        if known is not None and known["public_key"] != public:
            raise LedgerError(f"{site} shows another key than before; its ledger was replaced")
        last = self.last(site) or Head(0, GENESIS)
        _challenge(site, public, last, [head for head in self._all(site) if head != last], ask)
        if head.seq < last.seq:
            raise LedgerError(f"{site}: its ledger ends at entry {head.seq}, {last.seq} was seen: rolled back")
        self._known[site] = {"public_key": public, "seq": head.seq, "hash": head.hash}
        self.save()

    def saw(self, site: str, head: Head | None) -> None:
        """A head that came with an update. All are remembered until the next check, at which the ledger must hold each:
        one that is rolled back in the middle of a run may have passed the last of them by then."""
        known = self._known.get(site)
        if head is None or known is None:
            return
        since, entry = known.setdefault(wire.SINCE, []), [head.seq, head.hash]
        if entry == (since[-1] if since else [known["seq"], known["hash"]]):
            return
        since.append(entry)
        if len(since) >= wire.MOST_SINCE:
            del since[::2]

    def save(self) -> None:
        if self._path is not None:
            write_json(self._path, {"sites": self._known})


def _challenge(site: str, public: str, last: Head, since: list[Head], ask: Ask) -> None:
    nonce = secrets.token_hex(16)
    question: dict[str, Any] = {"seq": last.seq, "nonce": nonce}
    if since:
        question[wire.SINCE] = [head.seq for head in since]
    answer = dict(ask(question))
    signature = str(answer.pop("signature", ""))
    if (answer.get("name"), answer.get("nonce"), answer.get("seq")) != (site, nonce, last.seq):
        raise LedgerError(f"{site}: answered another question than was asked")
    if not verify(public, "hello", answer, signature):
        raise LedgerError(f"{site}: the signature on its ledger's head does not hold")
    if answer.get("hash") != last.hash:
        raise LedgerError(f"{site}: its ledger does not hold entry {last.seq} as it was seen: rolled back, or a fork")
    if since and answer.get(wire.SINCE) != wire.digest_of([head.hash for head in since]):
        raise LedgerError(
            f"{site}: its ledger does not hold every entry that came with an update: rolled back, or a fork"
        )

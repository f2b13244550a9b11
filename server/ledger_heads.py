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

    def last(self, site: str) -> Head | None:
        known = self._known.get(site)
        return None if known is None else Head(int(known["seq"]), str(known["hash"]))

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
        _challenge(site, public, last, ask)
        if head.seq < last.seq:
            raise LedgerError(f"{site}: its ledger ends at entry {head.seq}, {last.seq} was seen: rolled back")
        self._known[site] = {"public_key": public, "seq": head.seq, "hash": head.hash}
        self.save()

    def saw(self, site: str, head: Head | None) -> None:
        """A head that came with an update; older ones are ignored."""
        known = self._known.get(site)
        if head is not None and known is not None and head.seq > int(known["seq"]):
            known |= {"seq": head.seq, "hash": head.hash}

    def save(self) -> None:
        if self._path is not None:
            write_json(self._path, {"sites": self._known})


def _challenge(site: str, public: str, last: Head, ask: Ask) -> None:
    nonce = secrets.token_hex(16)
    answer = dict(ask({"seq": last.seq, "nonce": nonce}))
    signature = str(answer.pop("signature", ""))
    if (answer.get("name"), answer.get("nonce"), answer.get("seq")) != (site, nonce, last.seq):
        raise LedgerError(f"{site}: answered another question than was asked")
    if not verify(public, "hello", answer, signature):
        raise LedgerError(f"{site}: the signature on its ledger's head does not hold")
    if answer.get("hash") != last.hash:
        raise LedgerError(f"{site}: its ledger does not hold entry {last.seq} as it was seen: rolled back, or a fork")

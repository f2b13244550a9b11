"""Which records are held out of training: a function of each record alone, by a keyed hash.

Of a person it is a function of who they are, so that all their records are on one side. Labels do not count, so equal
texts are on the same side whatever they are said to be: a copy of a record that is trained on measures nothing.
"""

import hashlib
import hmac

import numpy as np

from ..config.run import RunConfig
from ..types import Rows
from .conversations import transcript
from .record_keys import plain

_WHOLE = 2.0**64


def simulated_holdout_secret(config: RunConfig, site: str) -> bytes:
    """Of a simulated site: the same for all runs with the seed. A real site has one beside its ledger."""
    return hashlib.sha256(f"confide held out {config.run.seed} {site}".encode()).digest()


def held_out(rows: Rows, secret: bytes, share: float) -> np.ndarray:
    """(N,) bool: whether each row is held out. secret: of the site, for this data set."""
    found = np.zeros(len(rows), dtype=bool)
    for i, whose in enumerate(_whose(rows)):
        place = int.from_bytes(hmac.digest(secret, whose, "sha256")[:8], "big")
        found[i] = place < share * _WHOLE
    return found


def _whose(rows: Rows) -> list[bytes]:
    """Of each row what says whose record it is, as `record_keys.rows_digest` takes it: case and blanks do not count."""
    if rows.person is not None:
        return [b"person" + str(one).encode("utf-8", "surrogatepass") for one in rows.person]
    texts = rows.text if rows.turns is None else [transcript(turns) for turns in rows.turns]
    found = []
    for i, text in enumerate(texts):
        others = [part[i] for part in (rows.response, rows.rejected, rows.pair) if part is not None]
        parts = [plain(one.encode("utf-8", "surrogatepass")) for one in (text, *others)]
        parts.append(b"" if rows.images is None else rows.images[i].tobytes())
        found.append(b"record" + b"".join(len(part).to_bytes(8, "little") + part for part in parts))
    return found

"""Which registered site a request is from, by its headers alone: before a byte of its body is held."""

from base64 import b64decode
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from ...common.errors import DeploymentError
from .deployment import SITES, node_bytes, registered

_NAMES = (FLEET_HTTP_PUBLIC_KEY_HEADER, TIMESTAMP_HEADER, FLEET_HTTP_SIGNATURE_HEADER)


class Registry:
    """The node keys of sites.json, as it is now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: tuple[int, int] | None = None
        self._keys: dict[bytes, str] = {}

    def sender(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """The node key of the registered site that signed these headers; None for anybody else.

        headers: names in lower case. What Flower's SuperLink checks again, once it has the whole request.
        """
        found = {name.decode("latin-1"): value for name, value in headers}
        try:
            key, moment, signature = (found[name] for name in _NAMES)
            public = b64decode(key, validate=True)
            if public not in self._known() or not _recent(moment.decode("ascii")):
                return None
            signed = verify_signature(bytes_to_public_key(public), moment, b64decode(signature, validate=True))
        except (KeyError, ValueError, TypeError):
            return None
        return public if signed else None

    def _known(self) -> dict[bytes, str]:
        """A file that cannot be read admits whom the last one named."""
        try:
            state = (self._folder / SITES).stat()
            if (state.st_mtime_ns, state.st_size) != self._seen:
                self._keys = {node_bytes(site.node): name for name, site in registered(self._folder).items()}
                self._seen = (state.st_mtime_ns, state.st_size)
        except (OSError, ValueError, DeploymentError):
            pass
        return self._keys


def _recent(moment: str) -> bool:
    signed = datetime.fromisoformat(moment)
    return -SYSTEM_TIME_TOLERANCE < (now() - signed).total_seconds() < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE

"""Entries in a hash chain, the site's key, and signed receipts: what makes an account verifiable by others.

hash = SHA-256 over the canonical JSON of an entry, which holds the hash before it. Signatures are Ed25519 over
canonical JSON with a purpose inside, so that no signature can stand in for another.
"""

import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import ConfigError, LedgerError
from ..whole import whole_file

GENESIS = "0" * 64
"""what the first entry names as the hash before it"""


@dataclass(frozen=True)
class Head:
    """The last entry of a chain; (0, GENESIS) for an empty one."""

    seq: int
    hash: str


def canonical(content: Any) -> bytes:
    """One byte string a value: sorted keys, no spaces. Raises ValueError for NaN and infinity."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class SiteKey:
    """A site's Ed25519 key, and what is derived from it."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def new(cls) -> "SiteKey":
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "SiteKey":
        """seed: 32 bytes. For simulated sites, whose processes must agree on a key."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> "SiteKey":
        """Raises LedgerError for a file that holds no Ed25519 key, or that others may read."""
        try:
            if path.stat().st_mode & 0o077:
                raise LedgerError(f"{path}: others may read this key; allowed: mode 0600; chmod 600 {path}")
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise LedgerError(f"{path}: the site's key cannot be read: {error.strerror}") from None
        except ValueError:
            raise LedgerError(f"{path}: not a private key in PEM form") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise LedgerError(f"{path}: not an Ed25519 key")
        return cls(key)

    def save(self, path: Path) -> None:
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())

    @property
    def public(self) -> str:
        """32 bytes as hexadecimal digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, purpose: str, content: dict[str, Any]) -> str:
        return self._private.sign(_signed(purpose, content)).hex()

    def derive(self, purpose: str, content: bytes) -> bytes:
        """32 bytes that only the holder of the key can compute: HMAC-SHA-256."""
        return hmac.digest(self._private.private_bytes_raw(), purpose.encode() + b"\0" + content, "sha256")


def verify(public: str, purpose: str, content: dict[str, Any], signature: str) -> bool:
    """Whether the holder of `public` (hexadecimal) signed this content for this purpose."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(signature), _signed(purpose, content))
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed(purpose: str, content: dict[str, Any]) -> bytes:
    return canonical({"purpose": f"confide {purpose} 1", "content": content})


def signed_document(key: SiteKey, purpose: str, content: dict[str, Any]) -> dict[str, Any]:
    """content, public key and signature in one JSON object."""
    held = {"format": f"confide-{purpose}-1", **content, "public_key": key.public}
    return {**held, "signature": key.sign(purpose, held)}


def check_document(document: Any, purpose: str, public: str | None, source: str) -> dict[str, Any]:
    """The content of a signed document.

    public: the key that must have signed; None: the one it names. Raises LedgerError.
    """
    kind = f"confide-{purpose}-1"
    if not isinstance(document, dict) or document.get("format") != kind:
        raise LedgerError(f"{source}: not a document of format {kind}")
    content = {key: value for key, value in document.items() if key != "signature"}
    named = str(document.get("public_key"))
    if public is not None and named != public:
        raise LedgerError(f"{source}: signed by key {named[:16]}…, expected {public[:16]}…")
    if not verify(named, purpose, content, str(document.get("signature"))):
        raise LedgerError(f"{source}: the signature does not hold; the document was changed")
    return content


def read_json(path: Path) -> Any:
    """Raises LedgerError when it is not there or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise LedgerError(f"{path}: not JSON") from None


def write_json(path: Path, content: Any) -> None:
    """Durable, whole or not at all."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in it outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_public_key(path: Path) -> str:
    """The public key in a file: 64 hexadecimal digits. Raises ConfigError."""
    try:
        text = path.read_text(encoding="ascii").strip()
        if len(bytes.fromhex(text)) == 32:
            return text.lower()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        pass
    raise ConfigError(f"{path}: not a public key; expected 64 hexadecimal digits, as in a site's public.key")

"""Keys of one set-up: a channel to every other site, and two secrets for each round.

A site's advert carries its public halves under its registered Ed25519 identity. Every derived key names its purpose
and everything it depends on, so none can stand in for another.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ..errors import SecureSumError
from ..ledger.chain import SiteKey, canonical, verify
from . import shamir
from .params import Parameters

PURPOSE = "secure sum keys"
_PUBLIC, _COMMITMENT = 32, 16
_KEYS_OF_ROUND = _PUBLIC + _COMMITMENT


@dataclass(frozen=True)
class Session:
    """One set-up: what it is for. Sites and server derive it from the run's configuration, and sign its digest."""

    run: str
    first_round: int
    rounds: int
    """rounds it serves, from the first on"""
    parameters: Parameters
    length: int
    """coordinates of a vector"""
    bits: int
    """w: sums are modulo 2^w"""
    declaration: str
    """digest of the run's configuration and the pieces of a share of the noise: all must have been told the same, and
    computed the same"""

    def digest(self) -> bytes:
        p = self.parameters
        numbers = [self.first_round, self.rounds, p.sites, p.survivors, p.colluders, self.length, self.bits]
        return hashlib.sha256(canonical([self.run, *numbers, self.declaration])).digest()

    def position(self, number: int) -> int:
        """0 … rounds − 1. Raises SecureSumError for a round that it does not serve."""
        if not 0 <= number - self.first_round < self.rounds:
            raise SecureSumError(f"secure sum: round {number} is not of this set-up")
        return number - self.first_round


@dataclass(frozen=True, repr=False)
class RoundSecrets:
    """A site's two secrets of one round, of which at most one is ever opened."""

    own: int
    """field element behind the self mask; opened when the site's input counts"""
    pairwise: int
    """field element behind its pairwise masks; opened when its input is missing"""

    @classmethod
    def new(cls) -> "RoundSecrets":
        return cls(shamir.random_element(), shamir.random_element())

    @classmethod
    def from_bytes(cls, content: bytes) -> "RoundSecrets":
        return cls(shamir.from_bytes(content[: shamir.SIZE]), shamir.from_bytes(content[shamir.SIZE :]))

    def to_bytes(self) -> bytes:
        return shamir.to_bytes(self.own) + shamir.to_bytes(self.pairwise)


SECRETS_SIZE = 2 * shamir.SIZE


def pair_key(pairwise: int) -> X25519PrivateKey:
    """The X25519 key of one round that a pairwise secret stands for."""
    return X25519PrivateKey.from_private_bytes(
        hashlib.sha256(b"confide round key\0" + shamir.to_bytes(pairwise)).digest()
    )


def commitment(own: int) -> bytes:
    """Shows that an opened self-mask secret is the advertised one."""
    return hashlib.sha256(b"confide self mask\0" + shamir.to_bytes(own)).digest()[:_COMMITMENT]


@dataclass(frozen=True)
class Advert:
    """What a site publishes in a set-up."""

    facts: dict[str, Any]
    """session, name, identity, channel key and the digest of `keys`: what is signed"""
    keys: bytes
    """for each round a public key and a commitment"""
    signature: str

    @classmethod
    def sign(
        cls, session: Session, name: str, identity: SiteKey, channel: X25519PrivateKey, secrets: list[RoundSecrets]
    ) -> "Advert":
        keys = b"".join(pair_key(s.pairwise).public_key().public_bytes_raw() + commitment(s.own) for s in secrets)
        facts = {
            "session": session.digest().hex(),
            "name": name,
            "identity": identity.public,
            "channel": channel.public_key().public_bytes_raw().hex(),
            "keys": hashlib.sha256(keys).hexdigest(),
        }
        return cls(facts, keys, identity.sign(PURPOSE, facts))

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def channel(self) -> bytes:
        return bytes.fromhex(str(self.facts["channel"]))

    def public_key(self, position: int) -> bytes:
        start = position * _KEYS_OF_ROUND
        return self.keys[start : start + _PUBLIC]

    def commitment(self, position: int) -> bytes:
        start = position * _KEYS_OF_ROUND + _PUBLIC
        return self.keys[start : start + _COMMITMENT]

    def check(self, session: Session) -> None:
        """Raises SecureSumError unless it is whole, of this session, and signed by the identity that it names."""
        facts = self.facts
        if set(facts) != {"session", "name", "identity", "channel", "keys"}:
            raise SecureSumError("secure sum: an advert lacks a part")
        who = f"secure sum: the keys of {facts['name']}"
        if facts["session"] != session.digest().hex():
            raise SecureSumError(f"{who} belong to another set-up, or to another configuration")
        if len(self.keys) != session.rounds * _KEYS_OF_ROUND:
            raise SecureSumError(f"{who} are not those of {session.rounds} rounds")
        if hashlib.sha256(self.keys).hexdigest() != facts["keys"]:
            raise SecureSumError(f"{who} are not the ones that were signed")
        if not verify(str(facts["identity"]), PURPOSE, facts, self.signature):
            raise SecureSumError(f"{who} are not signed by the identity that they name")


def check_roster(session: Session, adverts: list[Advert], registered: Mapping[str, str]) -> bytes:
    """The roster's digest, if every advert holds and is signed by the identity registered under its name.

    registered: name → public key in hexadecimal digits, from the site's own configuration, never from the server.
    Raises SecureSumError.
    """
    names = [advert.name for advert in adverts]
    if names != sorted(set(names)):
        raise SecureSumError("secure sum: the list of sites is not in order, or names one twice")
    p = session.parameters
    if not p.survivors <= len(adverts) <= p.sites:
        raise SecureSumError(
            f"secure sum: {len(adverts)} sites in the list; allowed: {p.survivors} (server.min_survivors) to {p.sites}"
        )
    roster = hashlib.sha256(session.digest())
    for advert in adverts:
        known = registered.get(advert.name)
        if known is None:
            raise SecureSumError(f"secure sum: '{advert.name}' is not a registered site; add it to [peers] if it is")
        if advert.facts.get("identity") != known:
            raise SecureSumError(f"secure sum: the keys of {advert.name} are not signed by its registered identity")
        advert.check(session)
        roster.update(canonical(advert.facts))
    return roster.digest()


def agreed(private: X25519PrivateKey, public: bytes) -> bytes:
    """X25519, or SecureSumError for a public key that gives no secret (RFC 7748, section 6.1)."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise SecureSumError("secure sum: a public key that gives no secret") from None


def derive(key: bytes, purpose: str, *context: bytes) -> bytes:
    """32 bytes for one purpose: HMAC-SHA-256 over length-prefixed parts."""
    return hmac.digest(key, _parts(purpose, context), "sha256")


def derive_element(key: bytes, purpose: str, *context: bytes) -> int:
    """A field element for one purpose, uniform up to 2⁻²⁵⁶: HMAC-SHA-512 reduced."""
    return int.from_bytes(hmac.digest(key, _parts(purpose, context), "sha512"), "little") % shamir.PRIME


def _parts(purpose: str, context: tuple[bytes, ...]) -> bytes:
    return b"".join(len(part).to_bytes(4, "little") + part for part in (b"confide " + purpose.encode(), *context))


def pair_seed(shared: bytes, roster: bytes, number: int, one: str, other: str) -> bytes:
    """Key of the pairwise mask of two sites in one round, the same from both ends."""
    first, second = sorted((one, other))
    return derive(shared, "pairwise mask", roster, number.to_bytes(8, "little"), first.encode(), second.encode())


def self_seed(own: int, roster: bytes, number: int, name: str) -> bytes:
    return derive(shamir.to_bytes(own), "self mask", roster, number.to_bytes(8, "little"), name.encode())


def seal(key: bytes, content: bytes, bound_to: bytes) -> bytes:
    """ChaCha20-Poly1305; the key is used for this message alone, so the nonce is constant."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), content, bound_to)


def unseal(key: bytes, sealed: bytes, bound_to: bytes, what: str) -> bytes:
    """Raises SecureSumError when it was sealed by another key or for another place."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, bound_to)
    except InvalidTag:
        raise SecureSumError(f"secure sum: {what} does not open") from None

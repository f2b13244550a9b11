"""The protocol's messages and a site's state ⇄ flat facts: text, numbers, bytes and lists of them.

Facts are what Flower's records carry. Whatever comes in is checked for form; SecureSumError says what is wrong with it.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import SecureSumError
from .keys import Advert, Session
from .protocol import Answer, SecureSite

Facts = dict[str, Any]


def from_advert(advert: Advert) -> Facts:
    return {**{f"fact-{key}": value for key, value in advert.facts.items()}, "keys": advert.keys} | {
        "signature": advert.signature
    }


def to_advert(facts: Mapping[str, Any]) -> Advert:
    signed = {key.removeprefix("fact-"): str(value) for key, value in facts.items() if key.startswith("fact-")}
    if "name" not in signed:
        raise SecureSumError("secure sum: an advert lacks a part")
    return Advert(signed, _bytes(facts, "keys"), str(facts.get("signature", "")))


_ADVERT = ("session", "name", "identity", "channel")


def from_adverts(adverts: list[Advert]) -> Facts:
    """Column by column."""
    columns: Facts = {name: [str(advert.facts[name]) for advert in adverts] for name in _ADVERT}
    columns["key-digests"] = [str(advert.facts["keys"]) for advert in adverts]
    columns["keys"] = [advert.keys for advert in adverts]
    columns["signatures"] = [advert.signature for advert in adverts]
    return columns


def to_adverts(facts: Mapping[str, Any]) -> list[Advert]:
    columns = [_list(facts, name, str) for name in (*_ADVERT, "key-digests", "signatures")]
    keys = _list(facts, "keys", bytes)
    if len({len(keys), *map(len, columns)}) != 1:
        raise SecureSumError("secure sum: the list of adverts is not whole")
    return [
        Advert(dict(zip((*_ADVERT, "keys"), row[:-1], strict=True)), key, row[-1])
        for *row, key in zip(*columns, keys, strict=True)
    ]


def from_sealed(sealed: Mapping[str, bytes]) -> Facts:
    """What is dealt to, or comes from, several sites; names sorted."""
    return {"names": sorted(sealed), "sealed": [sealed[name] for name in sorted(sealed)]}


def to_sealed(facts: Mapping[str, Any]) -> dict[str, bytes]:
    names, sealed = _list(facts, "names", str), _list(facts, "sealed", bytes)
    if len(names) != len(sealed):
        raise SecureSumError("secure sum: dealt shares without an addressee")
    return dict(zip(names, sealed, strict=True))


def from_answer(answer: Answer) -> Facts:
    return {
        "names": sorted(answer.locks),
        "locks": b"".join(answer.locks[name] for name in sorted(answer.locks)),
        "pads": b"".join(answer.pads[name] for name in sorted(answer.pads)),
        "sealed": answer.sealed,
    }


def to_answer(facts: Mapping[str, Any]) -> Answer:
    names = _list(facts, "names", str)
    locks, pads = _bytes(facts, "locks"), _bytes(facts, "pads")
    if len(locks) != 32 * len(names) or len(pads) != len(locks):
        raise SecureSumError("secure sum: an answer lacks a part")
    parts = {name: slice(32 * i, 32 * (i + 1)) for i, name in enumerate(names)}
    return Answer(
        _bytes(facts, "sealed"),
        {name: locks[part] for name, part in parts.items()},
        {name: pads[part] for name, part in parts.items()},
    )


def from_site(site: SecureSite) -> Facts:
    """A site's whole state, secrets included: kept at the site, between its messages."""
    return {
        "session": site.session.digest(),
        "first-round": site.session.first_round,
        "name": site.name,
        "channel": site.channel,
        "secrets": bytes(site.secrets),
        "roster": site.roster,
        "ready": site.ready,
        "masked": site.masked,
        "opened": site.opened,
        "excess": site.excess,
        "root-names": sorted(site.roots),
        "roots": [site.roots[name] for name in sorted(site.roots)],
        "held-names": sorted(site.held),
        "held": [bytes(site.held[name]) for name in sorted(site.held)],
        **{f"advert-{key}": value for key, value in from_adverts(site.adverts).items()},
    }


def to_site(session: Session, facts: Mapping[str, Any]) -> SecureSite:
    """Raises SecureSumError for the state of another set-up."""
    if facts["session"] != session.digest():
        raise SecureSumError("secure sum: this site's state belongs to another set-up")
    adverts = {key.removeprefix("advert-"): value for key, value in facts.items() if key.startswith("advert-")}
    return SecureSite(
        session,
        facts["name"],
        facts["channel"],
        bytearray(facts["secrets"]),
        to_adverts(adverts),
        facts["roster"],
        dict(zip(facts["root-names"], facts["roots"], strict=True)),
        {name: bytearray(content) for name, content in zip(facts["held-names"], facts["held"], strict=True)},
        facts["ready"],
        facts["masked"],
        facts["opened"],
        facts["excess"],
    )


def size(facts: Mapping[str, Any]) -> int:
    """Bytes that the facts take on the wire, but for framing."""
    return sum(len(key) + _size(value) for key, value in facts.items())


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(_size(item) for item in value)
    return len(value) if isinstance(value, bytes | str) else len(str(value))


def _bytes(facts: Mapping[str, Any], name: str) -> bytes:
    value = facts.get(name)
    if not isinstance(value, bytes):
        raise SecureSumError(f"secure sum: a message lacks '{name}'")
    return value


def _list(facts: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    value = facts.get(name)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise SecureSumError(f"secure sum: a message lacks the list '{name}'")
    return value

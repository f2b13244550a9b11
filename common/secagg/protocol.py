"""The two parties of a secure sum, as state that is moved by function calls: no network, no clock.

A `SecureSite`: set-up, once for many rounds, by `advertise` → `deal` → `accept`; each round `mask`, then `open`.
The server's side: `Roster`, then a `Sum` a round. docs/explanation/secure-sums.md has the argument.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ..errors import KeysLostError, SecureSumError
from ..ledger.chain import SiteKey, canonical
from . import shamir
from .keys import (
    SECRETS_SIZE,
    Advert,
    RoundSecrets,
    Session,
    agreed,
    check_roster,
    commitment,
    derive,
    derive_element,
    pair_key,
    pair_seed,
    seal,
    self_seed,
    unseal,
)
from .masks import from_words, keystream, pack, reduced, to_words, unpack, word_type

_RELEASED = 32
"""bytes"""


class Graph:
    """Who exchanges masks and shares with whom: all with all, or a Harary graph on a permutation of the names."""

    def __init__(self, names: Sequence[str], neighbours: int, roster: bytes) -> None:
        ring = sorted(names, key=lambda name: hashlib.sha256(roster + name.encode()).digest())
        self._ring, self._place = ring, {name: i for i, name in enumerate(ring)}
        self._reach = neighbours // 2
        self._complete = neighbours >= len(ring) - 1

    def of(self, name: str) -> list[str]:
        """The neighbours of a site, sorted."""
        if self._complete:
            return sorted(other for other in self._ring if other != name)
        place, n = self._place[name], len(self._ring)
        steps = [*range(-self._reach, 0), *range(1, self._reach + 1)]
        return sorted(self._ring[(place + step) % n] for step in steps)


def _view(roster: bytes, number: int, survivors: Sequence[str]) -> bytes:
    """Digest of everything that two sites must agree on before either's shares can be read."""
    return hashlib.sha256(roster + number.to_bytes(8, "little") + canonical(sorted(survivors))).digest()


@dataclass(frozen=True, repr=False)
class Answer:
    """What a site gives in the unmasking exchange. Nobody can read it unless `survivors` many sites saw one view."""

    sealed: bytes
    """its shares, and what it releases of its noise, under a key that is shared out in `locks`"""
    locks: dict[str, bytes]
    """by holder: a share of that key, under the pad that the holder gives if it saw the same view"""
    pads: dict[str, bytes]
    """by owner: the pad of the owner's lock"""


@dataclass(repr=False)  # its fields are secrets
class SecureSite:
    """One site's part; everything secret of a round is erased once the round can no longer use it."""

    session: Session
    name: str
    channel: bytes
    """X25519 private key"""
    secrets: bytearray
    """its own two secrets for each round"""
    adverts: list[Advert] = field(default_factory=list)
    roster: bytes = b""
    roots: dict[str, bytes] = field(default_factory=dict)
    """by name: what the channel with that site is derived from; its own included"""
    held: dict[str, bytearray] = field(default_factory=dict)
    """by name: the shares of that site's secrets, for each round"""
    ready: bool = False
    """whether it holds the shares of all its neighbours"""
    masked: int = 0
    """the last round whose input was masked"""
    opened: int = 0
    """the last round that was answered for"""
    excess: bytes = b""
    """of the round that is masked: what the noise can be released by that the survivors do not need"""

    @classmethod
    def advertise(cls, session: Session, name: str, identity: SiteKey) -> "tuple[SecureSite, Advert]":
        """Fresh secrets, and what the others may know of them."""
        channel = X25519PrivateKey.generate()
        secrets = [RoundSecrets.new() for _ in range(session.rounds)]
        site = cls(session, name, channel.private_bytes_raw(), bytearray(b"".join(s.to_bytes() for s in secrets)))
        return site, Advert.sign(session, name, identity, channel, secrets)

    def deal(self, adverts: list[Advert], registered: Mapping[str, str]) -> dict[str, bytes]:
        """Shares of every round's secrets for each neighbour, sealed for it alone.

        adverts: of all sites, sorted by name. registered: name → identity, from this site's own configuration.
        Raises SecureSumError when a key is not its registered owner's, or too few sites are left.
        """
        if self.adverts:
            raise SecureSumError("secure sum: the shares of this set-up have been dealt")
        roster = check_roster(self.session, adverts, registered)
        own = X25519PrivateKey.from_private_bytes(self.channel)
        mine = next((advert for advert in adverts if advert.name == self.name), None)
        if mine is None or mine.channel != own.public_key().public_bytes_raw():
            raise SecureSumError("secure sum: the list holds other keys than this site published")
        self.adverts, self.roster = adverts, roster
        for advert in adverts:
            shared = self.channel if advert is mine else agreed(own, advert.channel)
            first, second = sorted((self.name, advert.name))
            self.roots[advert.name] = derive(shared, "channel", roster, first.encode(), second.encode())
        holders = [self.name, *self._graph.of(self.name)]
        points = [self._points[name] for name in holders]
        dealt = {name: bytearray() for name in holders}
        for position in range(self.session.rounds):
            for secret in vars(self._secrets(position)).values():
                for name, value in zip(holders, shamir.share(secret, self._needed, points), strict=True):
                    dealt[name] += shamir.to_bytes(value)
        self.held[self.name] = dealt.pop(self.name)
        return {name: seal(self._share_key(self.name, name), bytes(shares), roster) for name, shares in dealt.items()}

    def accept(self, sealed: Mapping[str, bytes]) -> None:
        """Takes the shares that all neighbours dealt; their mask secrets could not be opened without.

        Raises SecureSumError for shares that are missing, replayed or not for this site.
        """
        if not self.adverts or self.ready:
            raise SecureSumError("secure sum: shares came before the keys, or twice")
        held: dict[str, bytearray] = {}
        for name in self._graph.of(self.name):
            what = f"what {name} is said to have dealt"
            content = unseal(self._share_key(name, self.name), sealed.get(name, b""), self.roster, what)
            if len(content) != self.session.rounds * SECRETS_SIZE:
                raise SecureSumError(f"secure sum: {what} has another length")
            held[name] = bytearray(content)
        self.held |= held
        self.ready = True

    def expect(self, number: int) -> int:
        """The place of a round that can be masked now.

        Raises SecureSumError for a round that was masked before or is past: a second input under one mask would show
        the difference of the two.
        """
        if not self.ready:
            raise KeysLostError("secure sum: this site holds no shares; it takes part again after the next set-up")
        if number <= self.masked:
            raise SecureSumError(f"secure sum: the input of round {self.masked} was masked; asked again for {number}")
        return self.session.position(number)

    def mask(self, number: int, values: np.ndarray, excess: bytes = b"") -> bytes:
        """One round's input, masked and packed. Raises as `expect`.

        values: (length,) int64. excess: kept for `open`.
        """
        position = self.expect(number)
        if values.shape != (self.session.length,):
            raise SecureSumError(f"secure sum: {values.shape} numbers; agreed were {self.session.length}")
        self._erase(number - 1)
        self.masked, self.excess = number, excess
        length, bits = self.session.length, self.session.bits
        secrets = self._secrets(position)
        words = to_words(values, bits) + keystream(self_seed(secrets.own, self.roster, number, self.name), length, bits)
        key = pair_key(secrets.pairwise)
        for name in self._graph.of(self.name):
            shared = agreed(key, self._advert_of[name].public_key(position))
            mask = keystream(pair_seed(shared, self.roster, number, self.name, name), length, bits)
            words = words + mask if self.name < name else words - mask
        return pack(reduced(words, bits), bits)

    def open(self, number: int, survivors: Sequence[str], spare: Callable[[bytes, int], bytes] | None = None) -> Answer:
        """The shares that unmask the sum over `survivors`, readable only if enough sites were told the same.

        For a site that survived the share of its self mask, for one that did not the share of its pairwise key: never
        both, and once a round. spare: what of `excess` is released with so many sites absent. Raises SecureSumError.
        """
        position, p = self.session.position(number), self.session.parameters
        if number != self.masked or number <= self.opened:
            raise SecureSumError(f"secure sum: round {number} is not open for unmasking at this site")
        alive = set(survivors)
        if len(alive) != len(survivors) or not alive.issubset(self._points) or self.name not in alive:
            raise SecureSumError("secure sum: the survivors are not among the sites of this set-up, or miss this one")
        if len(alive) < p.survivors:
            raise SecureSumError(f"secure sum: {len(alive)} survivors, server.min_survivors is {p.survivors}")
        self.opened = number
        view = _view(self.roster, number, survivors)
        shares = b""
        for name in sorted(self.held):
            start = position * SECRETS_SIZE + (0 if name in alive else shamir.SIZE)
            shares += self.held[name][start : start + shamir.SIZE]
        if spare is not None:
            shares += spare(self.excess, p.sites - len(alive))
        self.excess = b""
        key = shamir.random_element()
        holders = sorted(alive)
        locks = {}
        parts = shamir.share(key, p.survivors, [self._points[name] for name in holders])
        for name, part in zip(holders, parts, strict=True):
            locks[name] = shamir.to_bytes((part + self._pad(view, self.name, name)) % shamir.PRIME)
        pads = {name: shamir.to_bytes(self._pad(view, name, self.name)) for name in holders}
        self._erase(number)
        return Answer(seal(shamir.to_bytes(key), shares, view), locks, pads)

    def _pad(self, view: bytes, owner: str, holder: str) -> int:
        other = holder if owner == self.name else owner
        return derive_element(self.roots[other], "agreement", view, owner.encode(), holder.encode())

    def _share_key(self, dealer: str, receiver: str) -> bytes:
        other = receiver if dealer == self.name else dealer
        return derive(self.roots[other], "shares", dealer.encode(), receiver.encode())

    def _secrets(self, position: int) -> RoundSecrets:
        return RoundSecrets.from_bytes(bytes(self.secrets[position * SECRETS_SIZE : (position + 1) * SECRETS_SIZE]))

    def _erase(self, number: int) -> None:
        """Everything of rounds up to `number`."""
        end = max(0, number - self.session.first_round + 1) * SECRETS_SIZE
        for content in (self.secrets, *self.held.values()):
            content[:end] = bytes(min(end, len(content)))

    @cached_property
    def _graph(self) -> Graph:
        return _graph_of(self.session, self.adverts, self.roster)

    @cached_property
    def _points(self) -> dict[str, int]:
        return _points_of(self.adverts)

    @cached_property
    def _advert_of(self) -> dict[str, Advert]:
        return {advert.name: advert for advert in self.adverts}

    @property
    def _needed(self) -> int:
        return self.session.parameters.shares_needed(len(self.adverts))


def _graph_of(session: Session, adverts: list[Advert], roster: bytes) -> Graph:
    return Graph([advert.name for advert in adverts], session.parameters.neighbours(len(adverts)), roster)


def _points_of(adverts: list[Advert]) -> dict[str, int]:
    """Where a site's shares lie: its place in the list, from 1."""
    return {advert.name: place for place, advert in enumerate(adverts, start=1)}


class Roster:
    """The server's side of a set-up: it passes on what it cannot read."""

    def __init__(self, session: Session, adverts: list[Advert]) -> None:
        """adverts: sorted by name. Raises SecureSumError when too few sites answered, or one of them wrongly."""
        named = {advert.name: str(advert.facts.get("identity")) for advert in adverts}
        self.session, self.adverts = session, adverts
        self.digest = check_roster(session, adverts, named)
        self.graph = _graph_of(session, adverts, self.digest)
        self.points = _points_of(adverts)
        self._dealt: dict[str, Mapping[str, bytes]] = {}

    @property
    def missing(self) -> list[str]:
        """Sites that have not dealt their shares; the set-up must be done again without them."""
        return [name for name in self.points if name not in self._dealt]

    def dealt(self, name: str, sealed: Mapping[str, bytes]) -> None:
        self._dealt[name] = sealed

    def from_dealer(self, name: str) -> Mapping[str, bytes]:
        """What a site dealt to its neighbours; empty before it did."""
        return self._dealt.get(name, {})

    def shares_for(self, name: str) -> dict[str, bytes]:
        """What the neighbours of a site dealt to it, by name."""
        return {other: self._dealt[other].get(name, b"") for other in self.graph.of(name)}


class Sum:
    """The server's side of one round; inputs are added up as they come and forgotten."""

    def __init__(self, roster: Roster, number: int) -> None:
        self._roster, self._number = roster, number
        self._position = roster.session.position(number)
        self._total = np.zeros(roster.session.length, word_type(roster.session.bits))
        self.survivors: list[str] = []
        self.released: dict[str, bytes] = {}
        """once it is opened: what sites released of their noise, by name"""

    def add(self, name: str, packed: bytes) -> None:
        """One site's masked input. Raises SecureSumError for one that is not of this round's sites, or another size."""
        session = self._roster.session
        if name not in self._roster.points or name in self.survivors:
            raise SecureSumError(f"secure sum: an input of {name}, which is not expected")
        try:
            words = unpack(packed, session.length, session.bits)
        except ValueError as error:
            raise SecureSumError(f"secure sum: {name}: {error}") from None
        self._total += words
        self.survivors = sorted([*self.survivors, name])

    def enough(self) -> bool:
        return len(self.survivors) >= self._roster.session.parameters.survivors

    def finish(self, answers: Mapping[str, Answer]) -> np.ndarray:
        """The sum over the survivors, (length,) int64.

        answers: by site. Raises SecureSumError when too few answered, or not all were told the same.
        """
        session, roster, alive = self._roster.session, self._roster, set(self.survivors)
        bits, length = session.bits, session.length
        threshold = session.parameters.survivors
        answers = {name: answer for name, answer in sorted(answers.items()) if name in alive}
        if len(answers) < threshold or not self.enough():
            raise SecureSumError(
                f"round {self._number} is void: {len(self.survivors)} sites sent inputs and {len(answers)} opened it, "
                f"but server.min_survivors is {threshold}; nothing was revealed"
            )
        revealed = self._reveal(answers)
        needed = session.parameters.shares_needed(len(roster.adverts))
        total = self._total
        adverts = {advert.name: advert for advert in roster.adverts}
        for name in roster.points:
            secret = self._secret(name, revealed, needed)
            if name in alive:
                if commitment(secret) != adverts[name].commitment(self._position):
                    raise SecureSumError(f"round {self._number} is void: the shares of {name}'s self mask are not its")
                total = total - keystream(self_seed(secret, roster.digest, self._number, name), length, bits)
                continue
            key = pair_key(secret)
            if key.public_key().public_bytes_raw() != adverts[name].public_key(self._position):
                raise SecureSumError(f"round {self._number} is void: the shares of {name}'s pairwise key are not its")
            for other in roster.graph.of(name):
                if other in alive:
                    shared = agreed(key, adverts[other].public_key(self._position))
                    mask = keystream(pair_seed(shared, roster.digest, self._number, name, other), length, bits)
                    total = total - mask if other < name else total + mask
        return from_words(total, bits)

    def _reveal(self, answers: Mapping[str, Answer]) -> dict[str, dict[str, int]]:
        """Share of each site's secret by holder."""
        roster = self._roster
        view = _view(roster.digest, self._number, self.survivors)
        holders = list(answers)[: roster.session.parameters.survivors]
        lambdas = shamir.weights([roster.points[name] for name in holders])
        revealed: dict[str, dict[str, int]] = {name: {} for name in roster.points}
        for owner, answer in answers.items():
            try:
                parts = [
                    (shamir.from_bytes(answer.locks[name]) - shamir.from_bytes(answers[name].pads[owner]))
                    for name in holders
                ]
            except (KeyError, ValueError):
                raise SecureSumError(f"round {self._number} is void: an answer lacks a part") from None
            key = shamir.to_bytes(shamir.combine(lambdas, parts))
            what = f"the answer of {owner} (the sites were told different survivors, or one is faulty): it"
            content = unseal(key, answer.sealed, view, what)
            of = sorted([owner, *roster.graph.of(owner)])
            end = len(of) * shamir.SIZE
            if len(content) not in (end, end + _RELEASED):
                raise SecureSumError(f"round {self._number} is void: {owner} opened another number of shares")
            self.released[owner] = content[end:]
            for i, name in enumerate(of):
                revealed[name][owner] = shamir.from_bytes(content[i * shamir.SIZE : (i + 1) * shamir.SIZE])
        return revealed

    def _secret(self, name: str, revealed: Mapping[str, Mapping[str, int]], needed: int) -> int:
        holders = sorted(revealed[name])[:needed]
        if len(holders) < needed:
            raise SecureSumError(f"round {self._number} is void: {len(holders)} shares of {name}, {needed} are needed")
        lambdas = shamir.weights([self._roster.points[holder] for holder in holders])
        return shamir.combine(lambdas, [revealed[name][holder] for holder in holders])

"""Secure sums: exact with dropouts at every stage, silent below the threshold, and deaf to a lying server."""

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from confide.common.errors import KeysLostError, SecureSumError
from confide.common.ledger.chain import SiteKey
from confide.common.secagg import facts, masks, shamir
from confide.common.secagg.keys import SECRETS_SIZE, Advert, Session, agreed, pair_key, pair_seed
from confide.common.secagg.params import Parameters
from confide.common.secagg.protocol import Graph, Roster, SecureSite, Sum

_Z = 5.0  # false alarm below 6e-7


class Federation:
    """n sites, their identities, and a server that may lie."""

    def __init__(self, sites: int, dropouts: int = 0, colluders: int = 0, bits: int = 24, rounds: int = 2) -> None:
        parameters = Parameters(sites, sites - dropouts, colluders)
        self.session = Session("run", 1, rounds, parameters, 40, bits, "declared")
        self.names = [f"site-{i:03d}" for i in range(sites)]
        self.identities = {name: SiteKey.new() for name in self.names}
        self.registered = {name: key.public for name, key in self.identities.items()}
        made = {name: SecureSite.advertise(self.session, name, self.identities[name]) for name in self.names}
        self.sites = {name: site for name, (site, _) in made.items()}
        self.adverts = [made[name][1] for name in self.names]

    def ready(self) -> "Federation":
        self.roster = Roster(self.session, self.adverts)
        for name, site in self.sites.items():
            self.roster.dealt(name, site.deal(self.adverts, self.registered))
        for name, site in self.sites.items():
            site.accept(self.roster.shares_for(name))
        return self

    def inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        limit = 2 ** (self.session.bits - 1) // len(self.names)
        rng = np.random.default_rng(seed)
        return {name: rng.integers(-limit, limit, self.session.length) for name in self.names}

    def masked(self, number: int, values: dict[str, np.ndarray], missing: set[str] = frozenset()) -> Sum:  # pyright: ignore[reportArgumentType]
        total = Sum(self.roster, number)
        for name, site in self.sites.items():
            if name not in missing:
                total.add(name, site.mask(number, values[name]))
        return total

    def opened(self, number: int, total: Sum, silent: set[str] = frozenset()) -> np.ndarray:  # pyright: ignore[reportArgumentType]
        answers = {n: self.sites[n].open(number, total.survivors) for n in total.survivors if n not in silent}
        return total.finish(answers)


@pytest.mark.parametrize(
    ("sites", "dropouts", "colluders"),
    [(2, 0, 1), (3, 0, 1), (4, 1, 1), (8, 1, 1), (9, 3, 2), (20, 6, 3), (52, 5, 1), (60, 18, 2)],
)
def test_sums_are_exact_with_dropouts_at_both_stages(sites: int, dropouts: int, colluders: int) -> None:
    federation = Federation(sites, dropouts, colluders, rounds=3).ready()
    rng = np.random.default_rng(sites)
    for number in (1, 2, 3):
        gone = list(rng.choice(federation.names, dropouts, replace=False))
        before = set(gone[: rng.integers(0, dropouts + 1)])
        values = federation.inputs(number)
        total = federation.masked(number, values, before)
        expected = sum(values[name] for name in federation.names if name not in before)
        np.testing.assert_array_equal(federation.opened(number, total, set(gone)), expected)


def test_a_round_below_the_threshold_reveals_nothing() -> None:
    federation = Federation(8, 2, 1).ready()
    values = federation.inputs()
    total = federation.masked(1, values, {"site-000", "site-001", "site-002"})
    assert not total.enough()
    with pytest.raises(SecureSumError, match=r"5 survivors, server\.min_survivors is 6"):
        federation.sites["site-007"].open(1, total.survivors)
    with pytest.raises(SecureSumError, match="is void: 5 sites sent inputs and 0 opened it"):
        total.finish({})
    # enough inputs, but too few that help to open them
    total = federation.masked(2, values)
    answers = {name: federation.sites[name].open(2, total.survivors) for name in total.survivors[:5]}
    with pytest.raises(SecureSumError, match="8 sites sent inputs and 5 opened it"):
        total.finish(answers)


def test_one_masked_input_says_nothing() -> None:
    """Zeros come out uniform: mean and lag correlation, false alarm below 1e-6 each."""
    session = replace(Federation(2).session, length=200_000, bits=20)
    identities = {name: SiteKey.new() for name in ("a", "b")}
    made = {name: SecureSite.advertise(session, name, key) for name, key in identities.items()}
    adverts = [made["a"][1], made["b"][1]]
    registered = {name: key.public for name, key in identities.items()}
    dealt = {name: site.deal(adverts, registered) for name, (site, _) in made.items()}
    site = made["a"][0]
    site.accept({"b": dealt["b"]["a"]})
    words = masks.unpack(site.mask(1, np.zeros(200_000, np.int64)), 200_000, 20) / 2**20
    deviation = 12**-0.5 / 200_000**0.5
    assert abs(words.mean() - 0.5) < _Z * deviation
    assert abs(np.corrcoef(words[:-1], words[1:])[0, 1]) < _Z / 200_000**0.5


def test_what_opens_a_dropped_site_opens_no_other_round() -> None:
    federation = Federation(5, 1, 1).ready()
    values = federation.inputs()
    total = federation.masked(1, values, {"site-000"})
    opened: list[int] = []
    secret_of = total._secret

    def spy(name, revealed, needed):
        secret = secret_of(name, revealed, needed)
        if name == "site-000":
            opened.append(secret)
        return secret

    total._secret = spy
    federation.opened(1, total)
    victim = federation.adverts[0]
    assert pair_key(opened[0]).public_key().public_bytes_raw() == victim.public_key(0)
    # round 2: the same site takes part; the key that was opened is not behind any of its masks
    assert victim.public_key(0) != victim.public_key(1)
    zeros = {name: np.zeros(federation.session.length, np.int64) for name in federation.names}
    packed = federation.sites["site-000"].mask(2, zeros["site-000"])
    words = masks.unpack(packed, federation.session.length, federation.session.bits)
    for other in federation.adverts[1:]:
        shared = agreed(pair_key(opened[0]), other.public_key(1))
        seed = pair_seed(shared, federation.roster.digest, 2, "site-000", other.name)
        words = words - masks.keystream(seed, federation.session.length, federation.session.bits)
    assert masks.reduced(words, federation.session.bits).any()


def test_secrets_die_with_their_round() -> None:
    federation = Federation(4, 1, 1).ready()
    site = federation.sites["site-001"]
    total = federation.masked(1, federation.inputs())
    assert any(site.secrets[:SECRETS_SIZE])
    federation.opened(1, total)
    assert not any(site.secrets[:SECRETS_SIZE])
    assert not any(any(held[:SECRETS_SIZE]) for held in site.held.values())
    assert all(any(held[SECRETS_SIZE:]) for held in site.held.values())
    # a round that was never opened dies when the next one is masked
    site.mask(2, np.zeros(40, np.int64))
    with pytest.raises(SecureSumError, match="round 1 is not open"):
        site.open(1, federation.names)


# ── a server that lies ──────────────────────────────────────────────────────────────────────────────────────────────


def test_swapped_keys_are_refused() -> None:
    federation = Federation(4, 1, 1)
    attacker = SiteKey.new()
    forged = SecureSite.advertise(federation.session, "site-002", attacker)[1]
    adverts = [*federation.adverts[:2], forged, federation.adverts[3]]
    with pytest.raises(SecureSumError, match="keys of site-002 are not signed by its registered identity"):
        federation.sites["site-000"].deal(adverts, federation.registered)
    # the registered identity under another's channel key: the signature does not hold
    real = federation.adverts[2]
    facts_ = {**real.facts, "channel": X25519PrivateKey.generate().public_key().public_bytes_raw().hex()}
    adverts[2] = Advert(facts_, real.keys, real.signature)
    with pytest.raises(SecureSumError, match="not signed by the identity"):
        federation.sites["site-000"].deal(adverts, federation.registered)
    # one round's key exchanged
    adverts[2] = Advert(real.facts, bytes(48) + real.keys[48:], real.signature)
    with pytest.raises(SecureSumError, match="not the ones that were signed"):
        federation.sites["site-000"].deal(adverts, federation.registered)
    # nothing was dealt, so nothing of the site can be opened
    assert federation.sites["site-000"].held == {}
    with pytest.raises(KeysLostError):
        federation.sites["site-000"].mask(1, np.zeros(40, np.int64))


def test_a_site_that_nobody_registered_is_refused() -> None:
    federation = Federation(4, 1, 1)
    del federation.registered["site-003"]
    with pytest.raises(SecureSumError, match="'site-003' is not a registered site"):
        federation.sites["site-000"].deal(federation.adverts, federation.registered)


def test_a_list_that_leaves_its_reader_out_or_names_one_twice_is_refused() -> None:
    federation = Federation(4, 1, 1)
    with pytest.raises(SecureSumError, match="other keys than this site published"):
        federation.sites["site-000"].deal(federation.adverts[1:], federation.registered)
    with pytest.raises(SecureSumError, match="names one twice"):
        federation.sites["site-000"].deal([*federation.adverts[:3], federation.adverts[2]], federation.registered)


def test_keys_of_another_set_up_are_refused() -> None:
    federation = Federation(4, 1, 1)
    other = replace(federation.session, first_round=2)
    old = SecureSite.advertise(other, "site-002", federation.identities["site-002"])[1]
    adverts = [*federation.adverts[:2], old, federation.adverts[3]]
    with pytest.raises(SecureSumError, match="belong to another set-up"):
        federation.sites["site-000"].deal(adverts, federation.registered)


def test_a_cohort_of_one_is_refused() -> None:
    with pytest.raises(SecureSumError, match="1 sites hides nothing"):
        Parameters(1, 1, 0)
    federation = Federation(6, 1, 1)
    with pytest.raises(SecureSumError, match="1 sites in the list; allowed: 5"):
        federation.sites["site-000"].deal(federation.adverts[:1], federation.registered)
    federation = Federation(6, 1, 1).ready()
    federation.masked(1, federation.inputs())
    with pytest.raises(SecureSumError, match="1 survivors"):
        federation.sites["site-000"].open(1, ["site-000"])


def test_a_live_site_said_to_have_dropped_stays_hidden() -> None:
    """Its pairwise masks fall, its self mask does not: no share of it is given."""
    federation = Federation(5, 1, 1).ready()
    values = federation.inputs()
    zeros = {**values, "site-000": np.zeros(40, np.int64)}
    total = Sum(federation.roster, 1)
    packed = {name: site.mask(1, zeros[name]) for name, site in federation.sites.items()}
    for name in federation.names[1:]:
        total.add(name, packed[name])
    answers = {name: federation.sites[name].open(1, total.survivors) for name in total.survivors}
    np.testing.assert_array_equal(total.finish(answers), sum(values[n] for n in federation.names[1:]))
    key = pair_key(total._secret("site-000", total._reveal(answers), 4 - 1))
    words = masks.unpack(packed["site-000"], 40, federation.session.bits)
    for other in federation.adverts[1:]:
        seed = pair_seed(agreed(key, other.public_key(0)), federation.roster.digest, 1, "site-000", other.name)
        words = words - masks.keystream(seed, 40, federation.session.bits)  # site-000 sorts first: it added them
    assert masks.reduced(words, federation.session.bits).any()  # it was zeros: what is left is the self mask
    # and the one that was said to have dropped does not answer for a list without itself
    with pytest.raises(SecureSumError, match="miss this one"):
        federation.sites["site-000"].open(1, total.survivors)


def test_two_survivor_sets_open_neither() -> None:
    """The server tells half of the sites that A dropped, the other half that B did: it gets no shares of either."""
    federation = Federation(8, 2, 1).ready()
    total = federation.masked(1, federation.inputs())
    first = [name for name in federation.names if name != "site-000"]
    second = [name for name in federation.names if name != "site-001"]
    told = {name: first if i % 2 else second for i, name in enumerate(federation.names)}
    told["site-000"], told["site-001"] = second, first
    answers = {name: federation.sites[name].open(1, told[name]) for name in federation.names}
    for claimed in (federation.names, first, second):
        total.survivors = list(claimed)
        with pytest.raises(SecureSumError, match=r"is void|does not open"):
            total.finish({name: answers[name] for name in claimed})
    with pytest.raises(SecureSumError, match="round 1 is not open"):
        federation.sites["site-003"].open(1, second)  # a second answer


def test_replayed_shares_are_refused() -> None:
    earlier, federation = Federation(4, 1, 1).ready(), Federation(4, 1, 1)
    federation.roster = Roster(federation.session, federation.adverts)
    for name, site in federation.sites.items():
        federation.roster.dealt(name, site.deal(federation.adverts, federation.registered))
    site = federation.sites["site-000"]
    good = federation.roster.shares_for("site-000")
    for bad in (
        earlier.roster.shares_for("site-000"),  # of another set-up
        {**good, "site-001": good["site-002"]},  # of another dealer
        {**good, "site-001": federation.roster.shares_for("site-002")["site-001"]},  # for another site
        {name: sealed for name, sealed in good.items() if name != "site-003"},  # one withheld
    ):
        with pytest.raises(SecureSumError, match="does not open"):
            site.accept(bad)
        assert not site.ready
    site.accept(good)
    with pytest.raises(SecureSumError, match="twice"):
        site.accept(good)
    with pytest.raises(SecureSumError, match="have been dealt"):
        site.deal(federation.adverts, federation.registered)


def test_a_round_is_masked_once() -> None:
    federation = Federation(4, 1, 1, rounds=3).ready()
    site = federation.sites["site-000"]
    site.mask(2, np.zeros(40, np.int64))
    for number in (2, 1):
        with pytest.raises(SecureSumError, match="asked again"):
            site.mask(number, np.ones(40, np.int64))
    with pytest.raises(SecureSumError, match="round 4 is not of this set-up"):
        site.mask(4, np.zeros(40, np.int64))


def test_a_faulty_answer_voids_the_round() -> None:
    federation = Federation(4, 1, 1).ready()
    total = federation.masked(1, federation.inputs())
    answers = {name: federation.sites[name].open(1, total.survivors) for name in total.survivors}
    broken = replace(answers["site-001"], pads=dict.fromkeys(total.survivors, bytes(32)))
    with pytest.raises(SecureSumError, match="does not open"):
        total.finish({**answers, "site-001": broken})
    with pytest.raises(SecureSumError, match="lacks a part"):
        total.finish({**answers, "site-001": replace(broken, pads={})})
    with pytest.raises(SecureSumError, match="an input of"):
        total.add("site-000", b"")
    with pytest.raises(SecureSumError, match="bytes received"):
        Sum(federation.roster, 2).add("site-000", b"short")


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("sites", "dropouts", "colluders"), [(60, 6, 1), (100, 30, 10), (200, 20, 20)])
def test_whoever_vanishes_the_others_stay_connected(sites: int, dropouts: int, colluders: int) -> None:
    """The worst removal cuts out runs of the ring; k > d + c leaves no such cut."""
    parameters = Parameters(sites, sites - dropouts, colluders)
    k = parameters.neighbours(sites)
    assert dropouts + colluders < k < sites - 1
    assert colluders < parameters.shares_needed(sites) <= k - dropouts
    names = [f"s{i}" for i in range(sites)]
    graph = Graph(names, k, b"roster")
    assert all(len(graph.of(name)) == k for name in names)
    assert all(name in graph.of(other) for name in names[:5] for other in graph.of(name))
    rng = np.random.default_rng(1)
    removed_count = dropouts + colluders
    for trial in range(40):
        if trial % 2:  # two runs beside each other on the ring
            start, gap = rng.integers(sites), int(rng.integers(1, sites // 2))
            half = removed_count // 2
            cut = {(start + i) % sites for i in range(half)} | {
                (start + half + gap + i) % sites for i in range(removed_count - half)
            }
            removed = {graph._ring[i] for i in cut}
        else:
            removed = set(rng.choice(names, removed_count, replace=False))
        left = [name for name in names if name not in removed]
        seen, queue = {left[0]}, [left[0]]
        while queue:
            fresh = set(graph.of(queue.pop())) - removed - seen
            seen |= fresh
            queue += fresh
        assert len(seen) == len(left)


@pytest.mark.parametrize(
    ("n", "t", "c", "text"),
    [(8, 1, 0, "survivors 1"), (8, 9, 0, "survivors 9"), (8, 4, 0, "two survivor sets"), (8, 5, 5, "colluders 5")],
)
def test_parameters_that_cannot_hold(n: int, t: int, c: int, text: str) -> None:
    with pytest.raises(SecureSumError, match=text):
        Parameters(n, t, c)


def test_the_chance_of_a_void_round_is_stated() -> None:
    assert Parameters(10, 9, 0).void_probability(0.1) == pytest.approx(1 - 0.9**10 - 10 * 0.1 * 0.9**9)


def test_shamir_needs_all_its_shares() -> None:
    secret = shamir.random_element()
    points = [3, 5, 8, 13]
    shares = shamir.share(secret, 3, points)
    for chosen in ([0, 1, 2], [1, 2, 3], [3, 0, 2]):
        lambdas = shamir.weights([points[i] for i in chosen])
        assert shamir.combine(lambdas, [shares[i] for i in chosen]) == secret
    assert shamir.combine(shamir.weights(points[:2]), shares[:2]) != secret
    with pytest.raises(ValueError, match="not an element"):
        shamir.from_bytes(b"\xff" * 32)


def test_masks_are_chacha20() -> None:
    """RFC 8439, appendix A.1, test vector 1: the keystream of the zero key."""
    words = masks.keystream(bytes(32), 4, 32)
    assert words.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"


@pytest.mark.parametrize("bits", [1, 7, 20, 31, 32, 33, 50, 62])
def test_packing_is_tight_and_inverts(bits: int) -> None:
    rng = np.random.default_rng(bits)
    values = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), 1001)
    packed = masks.pack(masks.to_words(values, bits), bits)
    assert len(packed) == -(-1001 * bits // 8)
    np.testing.assert_array_equal(masks.from_words(masks.unpack(packed, 1001, bits), bits), values)


def test_the_width_keeps_sums_from_wrapping() -> None:
    bits = masks.bits_needed(8000, 0.05, 2.0**16, 60_000.0, 75_000)
    most = 8000 * 0.05 + 7.5 * (8000 * 0.05) ** 0.5  # records drawn, but for 1e-12
    assert 2 ** (bits - 1) > 1.5 * (most * 2**16 + 8 * 60_000)
    assert bits <= 30
    with pytest.raises(ValueError, match="63 bits"):
        masks.word_type(63)


def test_states_and_messages_survive_the_wire() -> None:
    federation = Federation(4, 1, 1)
    adverts = facts.to_adverts(facts.from_adverts(federation.adverts))
    assert adverts == federation.adverts
    assert facts.to_advert(facts.from_advert(adverts[0])) == adverts[0]

    def reborn(name: str) -> SecureSite:
        return facts.to_site(federation.session, facts.from_site(federation.sites[name]))

    federation.roster = Roster(federation.session, adverts)
    for name in federation.names:
        federation.sites[name] = reborn(name)
        sealed = federation.sites[name].deal(adverts, federation.registered)
        federation.roster.dealt(name, facts.to_sealed(facts.from_sealed(sealed)))
    for name in federation.names:
        federation.sites[name] = reborn(name)
        federation.sites[name].accept(federation.roster.shares_for(name))
        federation.sites[name] = reborn(name)
    values = federation.inputs()
    total = federation.masked(1, values)
    answers = {}
    for name in federation.names:
        answers[name] = facts.to_answer(facts.from_answer(reborn(name).open(1, total.survivors)))
    np.testing.assert_array_equal(total.finish(answers), sum(values.values()))
    with pytest.raises(SecureSumError, match="another set-up"):
        facts.to_site(replace(federation.session, first_round=2), facts.from_site(federation.sites["site-000"]))
    for broken in ({}, {"names": ["a"], "locks": b"", "pads": b""}, {"names": ["a"], "locks": bytes(32), "pads": b""}):
        with pytest.raises(SecureSumError):
            facts.to_answer(broken)
    for reader in (facts.to_adverts, facts.to_advert, facts.to_sealed):
        with pytest.raises(SecureSumError):
            reader({"fact-name": "a", "names": ["a"], "sealed": []})


def test_a_public_key_without_a_secret_is_refused() -> None:
    with pytest.raises(SecureSumError, match="gives no secret"):
        agreed(X25519PrivateKey.generate(), bytes(32))

"""Noise that is not needed comes off, and none that is: shares in pieces, through secure sums with dropouts.

Statistical tests have false-alarm rates below 1e-6.
"""

import numpy as np
import pytest
from scipy import stats

from confide.common.errors import PrivacyError, SecureSumError
from confide.common.ledger.chain import SiteKey
from confide.common.privacy.discrete_gaussian import words_of
from confide.common.privacy.noise import LEAST_SHARE, secure_generator
from confide.common.privacy.pieces import Pieces
from confide.common.secagg import facts, masks
from confide.common.secagg.keys import Session
from confide.common.secagg.params import Parameters
from confide.common.secagg.protocol import Answer, Roster, SecureSite, Sum

VARIANCE = 4e8
_SIZES = [(2, 2, 0), (3, 2, 0), (8, 7, 1), (8, 6, 2), (20, 14, 3), (50, 30, 5), (500, 450, 1), (10, 10, 1)]


@pytest.mark.parametrize(("n", "t", "c"), _SIZES)
def test_whoever_is_absent_the_honest_rest_makes_up_the_noise(n: int, t: int, c: int) -> None:
    pieces = Pieces.of(VARIANCE, t - c, n - c)
    assert pieces.absent[-1] == n - t
    assert sum(pieces.variances) == pytest.approx(VARIANCE / (t - c))
    assert all(variance >= LEAST_SHARE**2 for variance in pieces.variances)
    assert len(pieces.variances) <= 4
    for absent in range(n - t + 1):
        honest = n - absent - c
        assert honest * pieces.kept(absent) >= VARIANCE * (1 - 1e-12)
        if absent in pieces.absent:
            assert honest * pieces.kept(absent) == pytest.approx(VARIANCE)
    for absent in (-1, n - t + 1):
        with pytest.raises(PrivacyError, match="its shares allow for 0 to"):
            pieces.kept(absent)


def test_pieces_that_would_be_too_narrow_join_the_next() -> None:
    wide, narrow = Pieces.of(1e9, 450, 500), Pieces.of(5.1e6, 450, 500)
    assert wide.absent == (0, 1, 7, 50) or len(wide.absent) > len(narrow.absent)
    assert narrow.absent[-1] == 50
    assert sum(narrow.variances) == pytest.approx(5.1e6 / 450)
    with pytest.raises(PrivacyError, match="grid steps wide"):
        Pieces.of(100.0, 450, 500)


@pytest.mark.parametrize("absent", range(7))
def test_what_comes_off_is_what_was_added_to_the_last_step(absent: int) -> None:
    pieces = Pieces.of(VARIANCE, 13, 19)
    whole, base = np.arange(70_000), np.arange(70_000)
    seed = pieces.add(whole, words_of(np.random.default_rng(1)))
    released = pieces.released(seed, absent)
    pieces.remove(whole, released, absent)
    kept = Pieces(pieces.absent[: pieces.needed(absent)], pieces.variances[: pieces.needed(absent)])
    only = kept.add(base, words_of(np.random.default_rng(1)))  # the same first piece
    if len(kept.variances) == 1:
        np.testing.assert_array_equal(whole, base)
    assert only != seed
    noise = whole - np.arange(70_000)
    assert abs(noise.var() / pieces.kept(absent) - 1) < 5.2 * np.sqrt(2 / len(noise))


def test_what_is_released_says_nothing_of_what_stays() -> None:
    """From a released seed only later ones follow; a piece that stays is drawn under a key that is not among them."""
    from confide.common.privacy.pieces import _chain, _piece_key

    pieces = Pieces.of(VARIANCE, 13, 19)
    seed = b"s" * 32
    chain = _chain(seed)
    keys = [_piece_key(next(chain)) for _ in pieces.variances[1:]]
    for absent in range(7):
        released, needed = pieces.released(seed, absent), pieces.needed(absent)
        if not released:
            assert needed == len(pieces.variances)
            continue
        reach = _chain(released)
        reachable = [_piece_key(next(reach)) for _ in range(20)]
        assert reachable[: len(keys) - needed + 1] == keys[needed - 1 :]
        assert not set(reachable) & set(keys[: needed - 1])
        assert released not in keys


def test_without_noise_nothing_is_released() -> None:
    """An audit's control adds none; taking pieces off would add it."""
    assert Pieces.of(VARIANCE, 6, 8).released(b"", 0) == b""
    values = np.arange(10)
    Pieces.of(VARIANCE, 6, 8).remove(values, b"", 0)
    np.testing.assert_array_equal(values, np.arange(10))


def test_a_seed_of_another_length_is_refused() -> None:
    with pytest.raises(PrivacyError, match="a seed of 5 bytes; allowed: 32"):
        Pieces.of(VARIANCE, 6, 8).remove(np.arange(10), b"short", 0)


class Noised:
    """n sites that add noise in pieces to inputs of their own, and a server that takes off what it may."""

    def __init__(self, n: int, t: int, c: int, length: int = 64, rounds: int = 1) -> None:
        self.pieces = Pieces.of(VARIANCE, t - c, n - c)
        self.n, self.length = n, length
        self.session = Session("run", 1, rounds, Parameters(n, t, c), length, 40, "declared")
        self.names = [f"site-{i:03d}" for i in range(n)]
        identities = {name: SiteKey.new() for name in self.names}
        made = {name: SecureSite.advertise(self.session, name, identities[name]) for name in self.names}
        self.sites = {name: site for name, (site, _) in made.items()}
        adverts = [made[name][1] for name in self.names]
        self.roster = Roster(self.session, adverts)
        registered = {name: key.public for name, key in identities.items()}
        for name, site in self.sites.items():
            self.roster.dealt(name, site.deal(adverts, registered))
        for name, site in self.sites.items():
            site.accept(self.roster.shares_for(name))
        self.inputs = {name: np.full(length, 1000 * i) for i, name in enumerate(self.names)}
        self.packed: dict[str, bytes] = {}
        self.seeds: dict[str, bytes] = {}
        self.first: dict[str, np.ndarray] = {}

    def mask(self, number: int, sending: list[str]) -> Sum:
        total = Sum(self.roster, number)
        for name in sending:
            noisy = self.inputs[name].copy()
            seed = self.pieces.add(noisy, words_of(secure_generator()))
            self.seeds[name], self.first[name] = seed, noisy - self.inputs[name]
            self.packed[name] = self.sites[name].mask(number, noisy, seed)
            total.add(name, self.packed[name])
        return total

    def open(self, name: str, number: int, survivors: list[str]) -> Answer:
        return self.sites[name].open(number, survivors, self.pieces.released)

    def finish(self, total: Sum, answers: dict[str, Answer]) -> np.ndarray:
        opened = total.finish(answers)
        for seed in total.released.values():
            self.pieces.remove(opened, seed, self.n - len(total.survivors))
        return opened


def test_sums_over_a_thousand_schedules_of_dropouts_are_exact_and_noised_as_declared() -> None:
    """Who is away before masking and between the exchanges is drawn at random; the noise that is left is the shares
    of what each site had to keep, to the last integer, and its variance passes a chi-square test."""
    n, t, c, length, rounds = 6, 4, 1, 16, 250
    rng = np.random.default_rng(0)
    standard: list[np.ndarray] = []
    for _ in range(4):  # set-ups of 250 rounds
        federation = Noised(n, t, c, length, rounds)
        pieces = federation.pieces
        for number in range(1, rounds + 1):
            order = list(rng.permutation(federation.names))
            gone = int(rng.integers(0, n - t + 1))
            before = int(rng.integers(0, gone + 1))
            sending = sorted(order[before:])
            answering = order[gone:]
            total = federation.mask(number, sending)
            answers = {name: federation.open(name, number, total.survivors) for name in answering}
            found = federation.finish(total, answers)
            expected = np.sum([federation.inputs[name] + federation.first[name] for name in sending], axis=0)
            for name in answering:
                pieces.remove(expected, pieces.released(federation.seeds[name], before), before)
            np.testing.assert_array_equal(found, expected)
            silent = len(sending) - len(answering)
            variance = len(answering) * pieces.kept(before) + silent * sum(pieces.variances)
            assert (len(sending) - c) * pieces.kept(before) >= VARIANCE * (1 - 1e-12)
            standard.append((found - sum(federation.inputs[name] for name in sending)) / variance**0.5)
    squares = float((np.concatenate(standard) ** 2).sum())
    freedom = 1000 * length
    assert 2 * min(stats.chi2.cdf(squares, freedom), stats.chi2.sf(squares, freedom)) > 1e-6


def test_a_site_that_drops_between_the_exchanges_keeps_its_noise() -> None:
    federation = Noised(8, 7, 1, length=30_000)
    total = federation.mask(1, federation.names)
    answers = {name: federation.open(name, 1, total.survivors) for name in federation.names[:-1]}
    noise = federation.finish(total, answers) - sum(federation.inputs.values())
    assert federation.names[-1] not in total.released
    expected = 7 * federation.pieces.kept(0) + sum(federation.pieces.variances)
    assert abs(noise.var() / expected - 1) < 5.2 * np.sqrt(2 / len(noise))


def test_a_server_that_lies_about_survivors_gets_no_seed() -> None:
    """It tells some that nobody is away, so that they give away what they would have to keep, and counts seven."""
    federation = Noised(8, 7, 1)
    seven = federation.names[:-1]
    total = federation.mask(1, seven)
    for told_all in range(1, 7):
        federation = Noised(8, 7, 1)
        total = federation.mask(1, seven)
        answers = {
            name: federation.open(name, 1, federation.names if i < told_all else seven) for i, name in enumerate(seven)
        }
        with pytest.raises(SecureSumError):
            total.finish(answers)
        assert not total.released


def test_a_server_that_tells_everybody_of_a_site_that_sent_nothing_cannot_read_the_sum() -> None:
    """All then release what is spare with nobody away; but the sum of those who sent stays under masks towards the one
    that did not: its pairwise key is opened in no view."""
    federation = Noised(8, 7, 1, length=4000)
    seven = federation.names[:-1]
    total = federation.mask(1, seven)
    answers = {name: federation.open(name, 1, federation.names) for name in seven}
    with pytest.raises(SecureSumError):
        total.finish(answers)  # as the honest code has it: the views differ
    total.survivors = list(federation.names)  # a server that goes on all the same
    opened = total.finish(answers)
    words = masks.to_words(opened, 40).astype(np.float64) / 2**40
    assert stats.kstest(words, "uniform").pvalue > 1e-6


def test_a_late_input_completes_only_the_sum_that_all_were_told_of() -> None:
    federation = Noised(8, 7, 1, length=4000)
    seven = federation.names[:-1]
    total = federation.mask(1, seven)
    answers = {name: federation.open(name, 1, federation.names) for name in seven}
    late = federation.mask(1, federation.names[-1:])
    assert late.survivors == federation.names[-1:]
    total.add(federation.names[-1], federation.packed[federation.names[-1]])
    noise = federation.finish(total, answers) - sum(federation.inputs.values())
    honest = 7 * federation.pieces.kept(0)
    assert honest == pytest.approx(VARIANCE)
    expected = honest + sum(federation.pieces.variances)  # the late site has not released
    assert abs(noise.var() / expected - 1) < 5.2 * np.sqrt(2 / len(noise))


def test_a_seed_is_released_once_and_travels_with_the_sites_state() -> None:
    federation = Noised(4, 3, 1)
    total = federation.mask(1, federation.names)
    site = facts.to_site(federation.session, facts.from_site(federation.sites["site-000"]))
    assert site.excess == federation.seeds["site-000"]
    site.open(1, total.survivors, federation.pieces.released)
    assert site.excess == b""
    with pytest.raises(SecureSumError, match="is not open for unmasking"):
        site.open(1, total.survivors, federation.pieces.released)


def test_an_answer_with_a_part_too_many_voids_the_round() -> None:
    federation = Noised(4, 3, 1)
    total = federation.mask(1, federation.names)
    answers = {name: federation.open(name, 1, total.survivors) for name in federation.names}
    assert federation.finish(total, answers) is not None
    federation = Noised(4, 3, 1)
    total = federation.mask(1, federation.names)
    answers = {
        name: federation.sites[name].open(1, total.survivors, lambda seed, absent: b"longer than a seed " * 4)
        for name in federation.names
    }
    with pytest.raises(SecureSumError, match="opened another number of shares"):
        total.finish(answers)

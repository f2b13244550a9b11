"""The server's side of secure sums: a set-up that serves many rounds, and two exchanges a round.

It passes on what it cannot read and learns one sum a round. Flower is behind `Exchange`.
"""

import base64
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.config.run import RunConfig
from ..common.errors import PrivacyError, RoundError, SecureSumError
from ..common.privacy.mechanism import PrivacyPlan
from ..common.privacy.plan import secure_session
from ..common.secagg import facts
from ..common.secagg.keys import Advert, Session
from ..common.secagg.protocol import Answer, Roster, Sum
from ..common.types import Update


@dataclass(frozen=True)
class Answered:
    """What came of one question to each of several sites, by site."""

    answers: dict[str, dict[str, Any]]
    failed: dict[str, str]
    """why there is no answer, of every site that gave none"""
    away: frozenset[str] = frozenset()
    """those of the failed that could not be reached, and may come back"""


Exchange = Callable[[str, Mapping[str, facts.Facts]], Answered]
"""Sends each site its question of one kind."""

_ATTEMPTS = 3
"""set-ups in a row before a run is given up: each leaves out the sites that failed in the one before"""

_PATIENCE_SECONDS, _PAUSE_SECONDS = 900.0, 5.0
"""how long a set-up waits for sites that cannot be reached, and how often it tries"""

_LONGEST_PAUSE = 16


class _SitesAwayError(RoundError):
    """Too few sites, some of which did not answer and may come back."""


class SecureSums:
    """The set-up in use and the sum of the round in progress."""

    def __init__(self, config: RunConfig, plan: PrivacyPlan, exchange: Exchange) -> None:
        self._config, self._plan, self._exchange = config, plan, exchange
        self._roster: Roster | None = None
        self._sum: Sum | None = None
        self._undelivered: set[str] = set()
        self._stale = False
        self.variance = 0.0
        """of the noise in the last sum, in grid steps²"""
        self._away: set[str] = set()
        """sites that could not be reached in the set-up in use"""
        self._pause, self._ask_again = 1, 0
        """rounds until sites that are away are asked again, should they seem to be back; and the first such round"""
        self.bytes_up = self.bytes_down = 0

    def prepare(self, number: int, sites: Iterable[str], reachable: Collection[str]) -> bool:
        """Makes sure that a set-up serves this round and these sites. Returns whether it is a new one.

        reachable: sites that seem to be there; one that was away in the last set-up brings about another. Raises
        RoundError when too few take part.
        """
        sites = sorted(sites)
        self.bytes_up = self.bytes_down = 0
        served = self._roster is not None and self._serves(self._roster, number)
        back = number >= self._ask_again and not self._away.isdisjoint(reachable)
        new = not served or self._stale or back
        if new:
            self._roster = None
            self._set_up_with_patience(number, sites)
            self._away -= set(self.sites)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE) if self._away else 1
            self._ask_again = number + self._pause
        if self._roster is not None:
            self._sum = Sum(self._roster, number)
        return new

    def _set_up_with_patience(self, number: int, everybody: list[str]) -> None:
        """Several attempts; while too few sites can be reached, it waits for them to come back.

        Raises RoundError when too few are willing, or too few have come back in time.
        """
        sites, reason, attempts = everybody, "", 0
        self._away = set()
        until = time.monotonic() + _PATIENCE_SECONDS
        while self._roster is None and attempts < _ATTEMPTS:
            try:
                sites, reason = self._set_up(number, sites)
                attempts += 1
            except _SitesAwayError:
                if time.monotonic() > until:
                    raise
                sites = everybody
                time.sleep(_PAUSE_SECONDS)
        if self._roster is None:
            raise RoundError(f"no set-up of secure sums in {_ATTEMPTS} attempts: {reason}")

    def _serves(self, roster: Roster, number: int) -> bool:
        return roster.session.first_round <= number < roster.session.first_round + roster.session.rounds

    def _set_up(self, number: int, sites: list[str]) -> tuple[list[str], str]:
        """One attempt; the sites that are left for another, and why it is needed."""
        self._stale = False
        session = secure_session(self._config, self._plan, number)
        question: facts.Facts = {"first-round": number}
        told = self._ask("keys", dict.fromkeys(sites, question))
        failed, away = dict(told.failed), set(told.away)
        self._away |= told.away
        adverts: list[Advert] = []
        for name in sorted(told.answers):
            try:
                adverts.append(_checked(facts.to_advert(told.answers[name]), session, name))
            except SecureSumError as error:
                failed[name] = str(error)
        try:
            roster = Roster(session, adverts)
            columns = facts.from_adverts(roster.adverts)
            dealt = self._ask("shares", dict.fromkeys(roster.points, columns))
            failed, away = dict(dealt.failed), set(dealt.away)
            self._away |= dealt.away
        except SecureSumError as error:
            raise _too_few(str(error), failed, away) from None
        left: list[str] = []
        for name, answer in sorted(dealt.answers.items()):
            try:
                roster.dealt(name, facts.to_sealed(answer))
                left.append(name)
            except SecureSumError as error:
                failed[name] = str(error)
        if roster.missing:
            first = roster.missing[0]
            reason = f"{first} dealt no shares: {failed.get(first, '')}"
            if len(left) < session.parameters.survivors:
                told_left = f"{len(left)} sites are left for secure sums, {session.parameters.survivors} are needed"
                raise _too_few(f"{told_left}; {reason}", {}, away)
            return left, reason
        self._roster, self._undelivered = roster, set(roster.points)
        return left, ""

    def _ask(self, stage: str, questions: Mapping[str, facts.Facts]) -> Answered:
        self.bytes_down += sum(facts.size(question) for question in questions.values())
        told = self._exchange(stage, questions)
        self.bytes_up += sum(facts.size(answer) for answer in told.answers.values())
        return told

    def state(self) -> dict[str, Any] | None:
        """The set-up in use, as JSON: what a restarted server needs to go on with it. No secret of a site is in it."""
        roster = self._roster
        if roster is None:
            return None
        dealt = {name: facts.from_sealed(roster.from_dealer(name)) for name in roster.points}
        content = {"adverts": facts.from_adverts(roster.adverts), "dealt": dealt}
        return {"first": roster.session.first_round, "roster": roster.digest.hex(), **_to_text(content)}

    def restore(self, state: Mapping[str, Any], sites: Iterable[str]) -> bool:
        """Goes on with the set-up of `state`, if enough of the sites still hold their part of it."""
        content = _to_bytes(state)
        roster = Roster(secure_session(self._config, self._plan, state["first"]), facts.to_adverts(content["adverts"]))
        sites = list(sites)
        told = self._exchange("holds", {name: {} for name in sites if name in roster.points})
        held = [name for name, answer in told.answers.items() if answer.get("roster") == state["roster"]]
        if len(held) < roster.session.parameters.survivors or roster.digest.hex() != state["roster"]:
            return False
        for name, sealed in content["dealt"].items():
            roster.dealt(name, facts.to_sealed(sealed))
        self._roster, self._undelivered = roster, set(roster.points)
        self._away = set(sites) - set(roster.points)
        return True

    @property
    def sites(self) -> list[str]:
        """The sites of the set-up in use."""
        return [] if self._roster is None else list(self._roster.points)

    def task(self, site: str) -> facts.Facts:
        """What goes with a site's task: after a set-up, the shares that its neighbours dealt to it."""
        if self._roster is None or site not in self._undelivered:
            return {}
        given = facts.from_sealed(self._roster.shares_for(site))
        self.bytes_down += facts.size(given)
        return given

    def add(self, site: str, update: Update) -> None:
        """A site's masked input. Raises SecureSumError for one that cannot be."""
        self._open_sum.add(site, update.masked or b"")
        self._undelivered.discard(site)

    def lost(self) -> None:
        """Sites have lost their keys, or too few are left: the next round begins with a new set-up."""
        self._stale = True

    def finish(self, number: int) -> tuple[np.ndarray, dict[str, str]]:
        """The sum of the round, (d,) int64, and the survivors that did not help to open it, with reasons.

        Raises SecureSumError when the round is void; nothing is revealed then.
        """
        total = self._open_sum
        answers: dict[str, Answer] = {}
        failed: dict[str, str] = {}
        if total.enough():
            question = {"round": number, "survivors": total.survivors}
            told = self._ask("unmask", dict.fromkeys(total.survivors, question))
            failed = dict(told.failed)
            for name, reply in told.answers.items():
                try:
                    answers[name] = facts.to_answer(reply)
                except SecureSumError as error:
                    failed[name] = str(error)
        opened, pieces = total.finish(answers), self._plan.pieces
        absent = self._config.secure_parameters.sites - len(total.survivors)
        self.variance = len(total.survivors) * sum(pieces.variances)
        for name, seed in sorted(total.released.items()):
            try:
                pieces.remove(opened, seed, absent)
            except PrivacyError as error:
                failed[name] = str(error)
            else:
                self.variance -= (sum(pieces.variances) - pieces.kept(absent)) if seed else 0.0
        return opened, failed

    @property
    def _open_sum(self) -> Sum:
        if self._sum is None:
            raise SecureSumError("secure sum: no round has begun")
        return self._sum


def _too_few(what: str, failed: Mapping[str, str], away: set[str]) -> RoundError:
    first = next(iter(failed.values()), "")
    return (_SitesAwayError if away else RoundError)(f"{what}{f'; the first problem: {first}' if first else ''}")


def _checked(advert: Advert, session: Session, site: str) -> Advert:
    """Raises SecureSumError for keys that other sites would refuse: better one site is left out than all stop."""
    if advert.name != site:
        raise SecureSumError(f"secure sum: {site} published keys for '{advert.name}'")
    advert.check(session)
    return advert


def _to_text(content: Any) -> Any:
    """Bytes become {"b64": …}."""
    if isinstance(content, bytes):
        return {"b64": base64.b64encode(content).decode()}
    if isinstance(content, dict):
        return {key: _to_text(value) for key, value in content.items()}
    return [_to_text(value) for value in content] if isinstance(content, list) else content


def _to_bytes(content: Any) -> Any:
    if isinstance(content, dict):
        if content.keys() == {"b64"}:
            return base64.b64decode(content["b64"])
        return {key: _to_bytes(value) for key, value in content.items()}
    return [_to_bytes(value) for value in content] if isinstance(content, list) else content

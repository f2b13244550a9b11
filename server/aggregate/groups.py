"""Secure sums of small groups of sites: the server sees a sum a group, which a robust aggregation can compare.

It is a trade (Velicheti et al. 2021; Zhu et al. 2021): a group hides its sites in a smaller crowd, its noise has to be
complete, and one Byzantine site corrupts its group. A record is in one group, so ε is what it is for one sum.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ...common.config.run import RunConfig
from ...common.errors import RoundError, SecureSumError
from ...common.privacy.mechanism import PrivacyPlan
from ...common.secagg import facts
from ...common.types import Update
from ..secagg import Exchange, SecureSums


def grouped(sites: Iterable[str], groups: int, seed: int) -> dict[str, list[str]]:
    """Group → its sites, drawn evenly; a group is called after them. The same for a run and its resumption."""
    names = sorted(sites)
    order = np.random.default_rng([seed, 0x6809]).permutation(len(names))
    parts = [sorted(names[i] for i in order[number::groups]) for number in range(groups)]
    return {"+".join(part): part for part in parts if part}


class GroupedSums:
    """`SecureSums` once a group; a group without a set-up or a sum is missing from the round."""

    def __init__(self, config: RunConfig, plan: PrivacyPlan, exchange: Exchange, sites: Iterable[str]) -> None:
        self._groups = grouped(sites, config.server.groups or 1, config.run.seed)
        self._sums = {group: SecureSums(config, plan, exchange) for group in self._groups}
        self._of = {site: group for group, members in self._groups.items() for site in members}
        self._missing: dict[str, str] = {}
        """groups without a set-up for this round, with the reason"""
        self._least = 2 * config.byzantine + 1

    def prepare(self, number: int, sites: Iterable[str], reachable: Collection[str]) -> bool:
        """As `SecureSums.prepare`, group by group. Raises RoundError when too few groups are left."""
        wanted, new = set(sites), False
        self._missing = {}
        for group, members in self._groups.items():
            try:
                new |= self._sums[group].prepare(number, [site for site in members if site in wanted], reachable)
            except RoundError as error:
                self._missing[group] = str(error)
        if len(self._groups) - len(self._missing) < self._least:
            reason = next(iter(self._missing.values()), "")
            raise RoundError(
                f"{len(self._groups) - len(self._missing)} groups have a set-up of secure sums, {self._least} are "
                f"needed for {(self._least - 1) // 2} Byzantine sites; the first reason: {reason}"
            )
        return new

    @property
    def sites(self) -> list[str]:
        """The sites of the set-ups in use."""
        return [site for group, sums in self._sums.items() if group not in self._missing for site in sums.sites]

    @property
    def bytes_up(self) -> int:
        return sum(sums.bytes_up for sums in self._sums.values())

    @property
    def bytes_down(self) -> int:
        return sum(sums.bytes_down for sums in self._sums.values())

    def state(self) -> dict[str, Any] | None:
        """As JSON, for a server that restarts."""
        states = {group: sums.state() for group, sums in self._sums.items()}
        roster = "+".join(str(state["roster"]) for state in states.values() if state is not None)
        return {"roster": roster, "groups": states} if roster else None

    def restore(self, state: Mapping[str, Any], sites: Iterable[str]) -> bool:
        """Goes on with the set-ups of `state`, if enough groups still hold theirs."""
        there, states = set(sites), state.get("groups", {})
        held = [
            self._sums[group].restore(states[group], [site for site in members if site in there])
            for group, members in self._groups.items()
            if states.get(group) is not None
        ]
        return sum(held) >= self._least

    def task(self, site: str) -> facts.Facts:
        return self._sums[self._of[site]].task(site)

    def add(self, site: str, update: Update) -> None:
        """Raises SecureSumError for an input that cannot be."""
        self._sums[self._of[site]].add(site, update)

    def lost(self) -> None:
        for sums in self._sums.values():
            sums.lost()

    def finish(self, number: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Group → its sum, (d,) int64; and what failed on the way, by site or group, with reasons."""
        totals: dict[str, np.ndarray] = {}
        failed = dict(self._missing)
        for group, sums in self._sums.items():
            if group in self._missing:
                continue
            try:
                totals[group], reasons = sums.finish(number)
                failed |= reasons
            except SecureSumError as error:
                sums.lost()
                failed[group] = str(error)
        return totals, failed

"""Modes that release sums: how a round's inputs are added up, and what the sum means.

With secure aggregation the server sees sums only; without it (mode `client`, a trusted server) it clips again what
comes, adds the whole noise, and only then uses the sum.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ..common import wire
from ..common.config.run import RunConfig
from ..common.errors import RoundError, SecureSumError, WireError
from ..common.modes import mode_of
from ..common.privacy.mechanism import PrivacyPlan
from ..common.types import Update
from .aggregate.groups import GroupedSums
from .aggregate.strategy import StreamingStrategy
from .aggregate.summing import CentralSums
from .checkpoint import Checkpoint
from .handshake import ask
from .replies import Replies, reason_of
from .secagg import Answered, SecureSums

_STAGE_SECONDS = 300.0
"""for the stages of secure sums beside training, which take a site less than a second"""


@dataclass(frozen=True)
class Summing:
    """How a mode that releases sums adds up, and what the sum means."""

    config: RunConfig
    plan: PrivacyPlan
    secure: SecureSums | GroupedSums | None
    central: CentralSums

    def prepare(self, state: Checkpoint, number: int, cohort: dict[str, int], nodes: Iterable[int]) -> dict[str, int]:
        """Before a round: the sites that can take part in its sum. nodes: those that are there now."""
        if state.clip is None:
            state.clip = self.plan.clip
        self.central.begin(state.clip)
        if self.secure is None:
            return cohort
        there = set(nodes)
        if self.secure.prepare(number, cohort, [name for name, node in cohort.items() if node in there]):
            state.secure = self.secure.state()
        return {name: node for name, node in cohort.items() if name in self.secure.sites}

    def add_to_task(self, content: RecordDict, site: str, clip: float | None) -> None:
        if self.config.privacy.clip_quantile is not None and clip is not None:
            content.config_records[wire.CONFIG][wire.CLIP] = clip
        if self.secure is not None and (dealt := self.secure.task(site)):
            content[wire.DEALT] = ConfigRecord(dealt)

    def aggregate(
        self,
        state: Checkpoint,
        strategy: StreamingStrategy,
        number: int,
        replies: Replies,
        arriving: Iterator[tuple[str, Update, Message]],
        opened: Callable[[np.ndarray, Mapping[str, Update]], None],
        counted: Callable[[np.ndarray, float, list[str]], None],
    ) -> ArrayRecord | None:
        """The next adapter; None after a round that trains nothing. opened: is told of a sum. counted: of what held-out
        records count in it, of the variance of the noise there, and of the sites in it.

        Raises SecureSumError or RoundError when the round is void.
        """
        sums = self.central if self.secure is None else self.secure
        updates: dict[str, Update] = {}
        for site, update, _ in arriving:
            try:
                sums.add(site, update)
            except (SecureSumError, WireError) as error:
                replies.sites.remove(site)
                replies.failed.append({"site": site, "reason": str(error)})
                continue
            updates[site] = replace(update, masked=None, delta={})
        if self.secure is not None and replies.keys_lost:
            self.secure.lost()
        if len(updates) < self.config.server.min_clients:
            raise RoundError(f"{len(updates)} sites took part, server.min_clients is {self.config.server.min_clients}")
        total, failed = sums.finish(number)
        replies.failed += [{"site": site, "reason": f"unmasking: {reason}"} for site, reason in failed.items()]
        clip, mode = state.clip or self.plan.clip, mode_of(self.config)
        if isinstance(total, dict):
            groups = self.config.server.groups or 1  # a group has its share of the declared units
            changes = {group: mode.change(self.config, self.plan, part, clip)[0] for group, part in total.items()}
            return strategy.combined({group: groups * change for group, change in changes.items()})
        if self.secure is not None and not isinstance(self.secure, GroupedSums) and self.plan.held_out is not None:
            noise = self.plan.count_variance * self.secure.variance / self.plan.variance
            counted(self.plan.counts(total), noise, sorted(updates))
        if not self.config.trains_in(number):
            return None
        change, state.clip = mode.change(self.config, self.plan, total[: self.plan.trained], clip)
        opened(change, updates)
        return strategy.summed(change)


def summing_of(grid: Grid, config: RunConfig, plan: PrivacyPlan | None, sites: dict[str, int]) -> Summing | None:
    """None where updates are aggregated one by one."""
    if plan is None or not mode_of(config).summed(config):
        return None
    exchange = partial(_exchange, grid, sites, min(config.server.deadline, _STAGE_SECONDS))
    secure: SecureSums | GroupedSums | None = None
    if config.secure:
        grouped = config.server.groups is not None
        secure = GroupedSums(config, plan, exchange, sites) if grouped else SecureSums(config, plan, exchange)
    return Summing(config, plan, secure, CentralSums(plan))


def _exchange(
    grid: Grid, sites: dict[str, int], seconds: float, stage: str, questions: Mapping[str, dict[str, Any]]
) -> Answered:
    """One stage of secure sums, by the names of sites."""
    answers, failures = ask(grid, {sites[name]: facts for name, facts in questions.items()}, stage, seconds)
    failed = {
        name: reason_of(failures[sites[name]]) if sites[name] in failures else f"no answer within {seconds:g} s"
        for name in questions
        if sites[name] not in answers
    }
    away = {name for name in failed if sites[name] not in failures or wire.unreachable(failures[sites[name]])}
    return Answered(
        {name: answers[sites[name]] for name in questions if sites[name] in answers}, failed, frozenset(away)
    )

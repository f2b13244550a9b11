"""The loop over rounds, on any Flower Grid; a round is ask → collect → release → record.

Flower's own `Strategy.start` cannot resume and voids a round on one error reply, so the loop is ours; it calls
`configure_train` and `aggregate_train` of any Flower `Strategy`. Our own is `StreamingStrategy`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from ..common import wire
from ..common.config.run import RunConfig
from ..common.errors import RoundError, SecureSumError, WireError
from ..common.privacy.mechanism import PrivacyPlan
from ..common.types import Update
from .aggregate.strategy import (
    StreamingStrategy,
    aggregate_with_flower,
    make_strategy,
    restore_strategy,
    strategy_state,
)
from .at_sites import CountsOfRound, FigureRow, figure_row
from .callbacks import Callback
from .checkpoint import Checkpoint, Counts
from .grids import Cohort, Pace
from .plausible import require_plausible
from .replies import Replies, capped
from .sums import Summing, summing_of
from .waiting import sites_needed, wait_for_sites

_SILENT_ROUNDS = 3
"""in a row, after which a run stops rather than charge its sites for nothing"""


@dataclass(frozen=True)
class RoundResult:
    """One row of report.json's rounds[], before the evaluation."""

    round: int
    seconds: float
    bytes_up: int
    bytes_down: int
    sites: list[str]
    failed: list[dict[str, str]]
    train_loss: float | None
    """weighted mean over sites; mode `none` only, elsewhere it would be a release"""
    residual: float | None
    """`exact`: what the truncation to rank r lost, relative"""
    outliers: list[str] | None = None
    """robust aggregations: sites whose updates lay far from the aggregate"""
    left_out: list[str] | None = None
    """… and those left out because their updates so far lie apart"""
    capped: list[str] | None = None
    """sites that claimed too large a weight"""
    clip: float | None = None
    """the clip norm, where it adapts"""
    void: str | None = None
    """why the round changed nothing"""
    at_sites: FigureRow | None = None
    """what the sites' held-out records say of the model that the round began with, where they were asked"""


@dataclass(frozen=True)
class Loop:
    """What all rounds of a run share."""

    grid: Grid
    config: RunConfig
    state: Checkpoint
    """changed from round to round"""
    trained: list[str]
    """names of the arrays that sites send back"""
    strategy: Strategy
    summing: Summing | None
    """None where updates are aggregated one by one"""
    pace: Pace
    callback: Callback
    charged: Callable[[], None]
    """called before tasks go out: what `state.asked` charges must outlive a crash"""
    plan: PrivacyPlan | None
    """None in mode `none`"""

    def evaluates(self, number: int) -> bool:
        """Whether round `number` counts held-out records. The last evaluation is kept for the final model, also where
        one was asked for twice because the server was restarted; then the same question is asked again."""
        if not self.config.evaluated_in(number) or not self.config.trains_in(number):
            return self.config.evaluated_in(number)
        asked = max(self.state.evaluated.values(), default=0)
        return self.plan is None or asked < self.config.evaluations - 1 or asked > len(self.state.evaluations)


class Round:
    """One round: `ask` → `collect` → `release` → `record`, in this order."""

    def __init__(self, loop: Loop, number: int, cohort: dict[str, int]) -> None:
        """number: from 1 on. cohort: site → node of those that may be asked."""
        self._loop, self._number, self._started = loop, number, time.perf_counter()
        if loop.summing is not None:
            cohort = loop.summing.prepare(loop.state, number, cohort, loop.grid.get_node_ids())
        self._cohort = cohort
        self._clip, self._void = loop.state.clip, None
        self._steps = loop.config.steps_per_round if loop.config.trains_in(number) else 0
        self._counts = CountsOfRound(loop.config, loop.plan) if loop.evaluates(number) else None
        self._view = Cohort(loop.grid, list(cohort.values()))

    def ask(self) -> list[Message]:
        """The round's tasks, one a site, each with what its site has been asked for before; they count as charged."""
        loop, state = self._loop, self._loop.state
        site_of = {node: name for name, node in self._cohort.items()}
        arrays = wire.arrays_to_record(state.adapter)
        messages = list(loop.strategy.configure_train(self._number, arrays, wire.task_config(), self._view))
        messages.sort(key=lambda message: site_of[message.metadata.dst_node_id])  # a strategy may shuffle
        self._asked = {message.metadata.dst_node_id: site_of[message.metadata.dst_node_id] for message in messages}
        for message in messages:
            site = site_of[message.metadata.dst_node_id]
            message.content = self._told(message.content, state.asked.get(site, 0), state.evaluated.get(site, 0))
            if loop.summing is not None:
                loop.summing.add_to_task(message.content, site, self._clip)
            state.asked[site] = state.asked.get(site, 0) + self._steps
            if self._counts is not None:
                state.evaluated[site] = state.evaluated.get(site, 0) + 1
        self._bytes_down = sum(wire.byte_count(message.content) for message in messages)
        loop.charged()
        return messages

    def collect(self, messages: list[Message]) -> Iterator[tuple[str, Update, Message]]:
        """Sends the tasks; gives site, update and message of each good reply as it comes."""
        loop, asked = self._loop, len(messages)
        self._replies = Replies(
            dict(self._asked),
            None
            if loop.config.secure
            else {name: loop.state.adapter[name] for name in loop.trained * bool(self._steps)},
            lambda: loop.callback.replied(self._number, asked - len(self._replies.names), asked),
            loop.callback.received,
            loop.config.server.max_norm,
            partial(require_plausible, loop.config),
        )
        return self._replies.accept(_timed(self._view.send_and_receive(messages, timeout=loop.pace.seconds), loop.pace))

    def release(self, arriving: Iterator[tuple[str, Update, Message]]) -> None:
        """The next adapter, in `state.adapter`; a round with too few replies is void and changes nothing."""
        loop, state = self._loop, self._loop.state
        try:
            arrays = self._aggregate(arriving)
        except (SecureSumError, RoundError) as error:
            arrays, self._void = None, str(error)
            if loop.summing is None:
                self._void = f"round {self._number} is void: {error}"
            elif loop.summing.secure is not None:
                loop.summing.secure.lost()  # a set-up shows who is left, before anything more is charged
        replies = self._replies
        replies.close()
        for site in replies.refused:  # it said that it charged nothing
            state.asked[site] -= self._steps
            if self._counts is not None:
                state.evaluated[site] -= 1
        state.asked |= replies.steps  # the site's own account says it best
        state.declined |= replies.declined
        if self._counts is not None:
            state.evaluated |= replies.evaluations
            number, final = min(self._number - 1, loop.state.round), not self._steps
            why = self._void or next((one["reason"] for one in replies.failed), "")
            state.evaluations.append(self._counts.finished(number, why, final=final))
        if arrays is not None:
            state.adapter = wire.record_to_arrays(arrays, state.adapter)

    def _aggregate(self, arriving: Iterator[tuple[str, Update, Message]]) -> ArrayRecord | None:
        """Raises SecureSumError or RoundError when the round is void."""
        loop = self._loop
        if loop.summing is None and self._counts is not None:
            arriving = self._counting(arriving, self._counts)
        if loop.summing is None and not self._steps:
            for _ in arriving:
                pass
            return None
        if not isinstance(loop.strategy, StreamingStrategy):
            return aggregate_with_flower(loop.strategy, loop.config, loop.state.adapter, self._number, arriving)
        if loop.summing is None:
            return loop.strategy.aggregate((site, update) for site, update, _ in arriving)
        return loop.summing.aggregate(
            loop.state,
            loop.strategy,
            self._number,
            self._replies,
            arriving,
            loop.callback.summed,
            lambda *found: None if self._counts is None else self._counts.summed(*found),
        )

    def _counting(
        self, arriving: Iterator[tuple[str, Update, Message]], counts: CountsOfRound
    ) -> Iterator[tuple[str, Update, Message]]:
        """The same, once what they count has been noted; a site that counts otherwise than asked is left out of that
        alone."""
        for site, update, message in arriving:
            try:
                counts.add(site, update.counts)
            except WireError as error:
                self._replies.failed.append({"site": site, "reason": str(error)})
            yield site, update, message

    def _told(self, content: RecordDict, steps: int, evaluated: int) -> RecordDict:
        """The same arrays, and a config of its own: a strategy shares one record among all messages."""
        facts = {**content.config_records[wire.CONFIG], wire.STEPS_BEFORE: steps}
        if self._counts is not None:
            facts |= {wire.EVALUATE: True, wire.EVALUATED: evaluated}
        return RecordDict({**content, wire.CONFIG: ConfigRecord(facts)})

    def record(self) -> RoundResult:
        """What the round was."""
        loop, replies = self._loop, self._replies
        secure = None if loop.summing is None else loop.summing.secure
        ours = loop.strategy if isinstance(loop.strategy, StreamingStrategy) else None
        weight = sum(w for w, _ in replies.losses)
        return RoundResult(
            round=self._number,
            seconds=time.perf_counter() - self._started,
            bytes_up=replies.bytes_up + (secure.bytes_up if secure else 0),
            bytes_down=self._bytes_down + (secure.bytes_down if secure else 0),
            sites=sorted(replies.sites),
            failed=sorted(replies.failed, key=lambda failure: failure["site"]),
            train_loss=sum(w * loss for w, loss in replies.losses) / weight if weight else None,
            residual=ours.residual if ours else None,
            outliers=ours.outliers if ours else None,
            left_out=ours.left_out if ours else None,
            capped=capped(replies.weights),
            clip=self._clip if loop.config.privacy.clip_quantile is not None else None,
            void=self._void,
            at_sites=None if self._counts is None else figure_row(loop.config, loop.state.evaluations[-1]),
        )


def choose(config: RunConfig, sites: dict[str, int], number: int) -> dict[str, int]:
    """The cohort of round `number`: all sites, or `server.cohort` of them; the same on every engine."""
    if config.server.cohort is None or config.server.cohort >= len(sites):
        return sites
    rng = np.random.default_rng([config.run.seed, 0xC0, number])
    chosen = sorted(rng.permutation(len(sites))[: config.server.cohort])
    names = list(sites)
    return {names[i]: sites[names[i]] for i in chosen}


def run_rounds(
    grid: Grid,
    config: RunConfig,
    state: Checkpoint,
    *,
    plan: PrivacyPlan | None,
    trained: list[str],
    sites: dict[str, int],
    callback: Callback,
    charged: Callable[[], None],
    round_done: Callable[[RoundResult], None],
    queries: tuple[str, ...] = (),
    strategy: Strategy | None = None,
    evaluated: Callable[[], None] = lambda: None,
    absent: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Plays the rounds after `state.round`; where sites evaluate, they also measure the model that the run leaves.

    plan: of the run, None in mode `none`. trained, callback, charged: as in `Loop`. sites: as `handshake` gave them.
    round_done: called after each round, to evaluate and save. queries: public texts for the sites' teachers.
    strategy: the object that aggregates, where the run was given one. evaluated: called after the last evaluation at
    the sites, to save. absent: who does not take part, with the reason; stands with the first round that is played.
    A round with too few replies changes nothing and is recorded; while fewer sites are online than it needs, nobody is
    asked. A site that declines the run is not asked again;
    raises RoundError when too few are left.
    """
    strategy = make_strategy(config, {name: state.adapter[name] for name in trained}, queries, strategy)
    restore_strategy(strategy, state.strategy)
    state.declined = {}  # a resumed run asks everybody again
    summing = summing_of(grid, config, plan, sites)
    loop = Loop(grid, config, state, trained, strategy, summing, Pace(config.server.deadline), callback, charged, plan)
    everybody = sites

    def finish(result: RoundResult) -> None:
        state.round, state.strategy = result.round, strategy_state(strategy)
        round_done(result)

    if state.secure is not None and summing is not None and summing.secure is not None:
        under_way = max(state.asked.values(), default=0) > state.round * config.steps_per_round
        if not summing.secure.restore(state.secure, sites) and under_way:
            finish(_given_up(state, evaluates=loop.evaluates(state.round + 1)))
    silent = 0
    for number in range(state.round + 1, config.run.rounds + 1):
        if config.server.patience is not None and state.round - state.best_round >= config.server.patience:
            break
        chosen = choose(config, sites, number)
        wait_for_sites(grid, config, chosen, number, callback.waiting)
        current = Round(loop, number, chosen)
        current.release(current.collect(current.ask()))
        result = current.record()
        missing = [{"site": name, "reason": f"left out: {reason}"} for name, reason in (absent or {}).items()]
        absent = None
        finish(replace(result, failed=[*result.failed, *missing]))
        silent = 0 if result.sites else silent + 1
        sites = {name: node for name, node in sites.items() if name not in state.declined}
        if number < config.run.rounds:
            _require_sites(config, state, result, silent, len(sites))
    if config.evaluation.sites and not any(one.final for one in state.evaluations):
        state.adapter = state.best or state.adapter
        _measure(loop, everybody)
        evaluated()
    return state


def _measure(loop: Loop, sites: dict[str, int]) -> None:
    """One more round, in which no record is trained on: all sites count held-out records with the final model."""
    try:
        last = Round(loop, loop.config.last_round, sites)
        last.release(last.collect(last.ask()))
    except RoundError as error:  # too few sites for a sum; the run is over, and its model stands
        loop.state.evaluations.append(Counts(loop.state.round, True, None, 0.0, [], str(error)))


def _require_sites(config: RunConfig, state: Checkpoint, result: RoundResult, silent: int, left: int) -> None:
    """Raises RoundError where another round would only charge: nobody answers any more, or too few sites are left."""
    if silent == _SILENT_ROUNDS:
        reason = next((failure["reason"] for failure in result.failed), "no site was asked")
        raise RoundError(
            f"{silent} rounds in a row without an update of any site; the first reason: {reason}; --resume goes on"
        )
    if left < (least := sites_needed(config)):
        raise RoundError(
            f"{len(state.declined)} sites declined the run, {left} are left, "
            f"{'server.min_survivors' if config.secure else 'server.min_clients'} is {least}; the first reason: "
            f"{next(iter(state.declined.values()), '')}"
        )


def _given_up(state: Checkpoint, *, evaluates: bool) -> RoundResult:
    """After a restart: sites were asked for this round and charged it, and what they sent cannot be opened any more.

    To ask them again would charge them twice for one round, and with another noise.
    """
    number = state.round + 1
    void = f"round {number} is void: the server was restarted, and too few sites still hold the keys of its set-up"
    if evaluates:
        state.evaluations.append(Counts(state.round, False, None, 0.0, [], void))
    return RoundResult(number, 0.0, 0, 0, [], [], None, None, clip=state.clip, void=void)


def _timed(replies: Iterable[Message], pace: Pace) -> Iterator[Message]:
    """Notes how long each good answer took to come."""
    started = time.monotonic()
    for reply in replies:
        if not reply.has_error():
            pace.answered(time.monotonic() - started)
        yield reply


def result_row(result: RoundResult) -> dict[str, Any]:
    """The JSON row of a round."""
    return {key: value for key, value in asdict(result).items() if value is not None}

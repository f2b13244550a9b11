"""The loop over rounds, on any Flower Grid: ask, aggregate, checkpoint, evaluate.

Flower's own `Strategy.start` cannot resume and voids a round on one error reply, so the loop is ours; it calls
`configure_train` and `aggregate_train` of any Flower `Strategy`. Our own is `StreamingStrategy`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from ..common import wire
from ..common.config.run import RunConfig
from ..common.errors import LedgerError, RoundError, SecureSumError, WireError
from ..common.privacy.mechanism import PrivacyPlan
from ..common.types import Update
from .aggregate.groups import GroupedSums
from .aggregate.strategy import (
    StreamingStrategy,
    aggregate_with_flower,
    make_strategy,
    restore_strategy,
    strategy_state,
)
from .aggregate.summing import CentralSums, change_of
from .checkpoint import Checkpoint
from .grids import Cohort, Pace
from .ledger_heads import Heads
from .replies import Replies, capped, reason_of
from .secagg import Answered, SecureSums

_HELLO_SECONDS = 120.0
"""for sites to appear and answer before the first round"""
_AGAIN_SECONDS = 2.0
_SILENT_ROUNDS = 3
"""in a row, after which a run stops rather than charge its sites for nothing"""
_STAGE_SECONDS = 300.0
"""for the stages of secure sums beside training, which take a site less than a second"""


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


class Watch(Protocol):
    """Who is told what happens."""

    def asking(self, state: Checkpoint) -> None:
        """Before a round's tasks go out: what `state.asked` charges must outlive a crash."""
        ...

    def replied(self, number: int, done: int, asked: int) -> None:
        """A reply has come."""
        ...

    def received(self, site: str, update: Update) -> None:
        """An update was accepted, before it is aggregated."""
        ...

    def summed(self, change: np.ndarray, updates: dict[str, Update]) -> None:
        """A sum was opened. change: (d,) of the trained numbers; updates: the sites in it, without their inputs."""
        ...

    def round_done(self, result: RoundResult, state: Checkpoint) -> None:
        """A round is over; the state is to be saved."""
        ...


def greet(grid: Grid, config: RunConfig, heads: Heads) -> dict[str, int]:
    """Site name → node id of every site that answers in our version, by name, its ledger continuing the one seen last.

    Waits for the declared number of sites. Raises RoundError when too few are left.
    """
    wanted = config.data.partition.clients or config.server.min_clients
    until = time.monotonic() + _HELLO_SECONDS
    while len(list(grid.get_node_ids())) < wanted and time.monotonic() < until:
        time.sleep(0.1)
    sites: dict[str, int] = {}
    strangers: dict[int, str] = {}
    while True:
        nodes = [node for node in grid.get_node_ids() if node not in strangers and node not in sites.values()]
        answers, failures = ask(grid, {node: {} for node in nodes}, "hello", max(1.0, until - time.monotonic()))
        away = {node for node, error in failures.items() if wire.unreachable(error)}
        strangers |= {node: reason_of(error) for node, error in failures.items() if node not in away}
        for node, answer in answers.items():
            name = str(answer.get("name"))
            try:
                wire.check_version(str(answer.get(wire.VERSION)), "a site")
                heads.check(name, answer, partial(_ask_ledger, grid, name, node))
            except (WireError, LedgerError) as error:
                strangers[node] = str(error)
                continue
            if name in sites:
                raise RoundError(f"two nodes call themselves '{name}'; every site needs a name of its own")
            sites[name] = node
        if len(sites) >= wanted or not away or time.monotonic() > until:
            break
        time.sleep(_AGAIN_SECONDS)  # a node that the SuperLink lost sight of comes back, or is seen to be gone
    if len(sites) < config.server.min_clients:
        first = next(iter([*strangers.values(), *(reason_of(failures[node]) for node in away)]), "")
        reason = f"; the first problem: {first}" if first else ""
        raise RoundError(f"{len(sites)} sites answered, server.min_clients is {config.server.min_clients}{reason}")
    return dict(sorted(sites.items()))


def ask(
    grid: Grid, questions: Mapping[int, Mapping[str, Any]], action: str, seconds: float
) -> tuple[dict[int, dict[str, Any]], dict[int, Error]]:
    """The facts that sites answer a query with, and the errors of those that answered with one, by node."""
    messages = [
        Message(RecordDict({wire.CONFIG: ConfigRecord(dict(facts))}), node, f"{MessageType.QUERY}.{action}")
        for node, facts in questions.items()
    ]
    answers: dict[int, dict[str, Any]] = {}
    failures: dict[int, Error] = {}
    for reply in grid.send_and_receive(messages, timeout=seconds):
        if reply.has_error():
            failures[reply.metadata.src_node_id] = reply.error
        elif wire.SITE in reply.content.config_records:
            answers[reply.metadata.src_node_id] = dict(reply.content.config_records[wire.SITE])
        else:
            failures[reply.metadata.src_node_id] = Error(wire.REFUSED, "an answer without facts")
    return answers, failures


def _ask_ledger(grid: Grid, site: str, node: int, facts: dict[str, Any]) -> dict[str, Any]:
    answers, failures = ask(grid, {node: facts}, "ledger", _HELLO_SECONDS)
    if node not in answers:
        why = reason_of(failures[node]) if node in failures else "did not show its ledger in time"
        raise LedgerError(f"{site}: {why}")
    return answers[node]


def reveal(grid: Grid, sites: dict[str, int]) -> dict[str, dict[str, Any]]:
    """After an audited run: the sites' coins, by name; sites: as `greet` gave them."""
    answers, _ = ask(grid, {key: {} for key in sites.values()}, "reveal", _HELLO_SECONDS)
    return {name: answers[node] for name, node in sites.items() if node in answers}


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
    plan: PrivacyPlan | None,
    trained: list[str],
    watch: Watch,
    sites: dict[str, int],
    questions: tuple[str, ...] = (),
) -> Checkpoint:
    """Plays the rounds after `state.round`.

    plan: of the run, None in mode `none`. trained: names of the arrays that sites send back. sites: as `greet` gave
    them. questions: public texts for the sites' teachers.
    A round with too few replies changes nothing and is recorded. A site that declines the run is not asked again;
    raises RoundError when too few are left.
    """
    strategy = make_strategy(config, {name: state.adapter[name] for name in trained}, questions)
    restore_strategy(strategy, state.strategy)
    pace = Pace(config.server.deadline)
    state.declined = {}  # a resumed run asks everybody again
    summing = _summing(grid, config, plan, sites)
    if state.secure is not None and summing is not None and summing.secure is not None:
        under_way = max(state.asked.values(), default=0) > state.round * config.steps_per_round
        if not summing.secure.restore(state.secure, sites) and under_way:
            _give_up_round(state, strategy, watch)
    least = config.server.min_clients
    if config.secure:  # of each group, where there are groups, and of as many groups as bear the liars
        least = config.secure_parameters.survivors * (2 * config.liars + 1 if config.server.groups else 1)
    silent = 0
    for number in range(state.round + 1, config.run.rounds + 1):
        if config.server.patience is not None and state.round - state.best_round >= config.server.patience:
            break
        cohort = choose(config, sites, number)
        result = _one_round(grid, config, state, trained, strategy, summing, cohort, number, watch, pace)
        state.round, state.strategy = number, strategy_state(strategy)
        watch.round_done(result, state)
        silent = 0 if result.sites else silent + 1
        if silent == _SILENT_ROUNDS and number < config.run.rounds:
            reason = next((failure["reason"] for failure in result.failed), "no site was asked")
            raise RoundError(
                f"{silent} rounds in a row without an update of any site; the first reason: {reason}; --resume goes on"
            )
        sites = {name: node for name, node in sites.items() if name not in state.declined}
        if len(sites) < least and number < config.run.rounds:
            raise RoundError(
                f"{len(state.declined)} sites declined the run, {len(sites)} are left, "
                f"{'server.min_survivors' if config.secure else 'server.min_clients'} is {least}; the first reason: "
                f"{next(iter(state.declined.values()), '')}"
            )
    return state


def _give_up_round(state: Checkpoint, strategy: Strategy, watch: Watch) -> None:
    """After a restart: sites were asked for this round and charged it, and what they sent cannot be opened any more.

    To ask them again would charge them twice for one round, and with another noise.
    """
    number = state.round + 1
    void = f"round {number} is void: the server was restarted, and too few sites still hold the keys of its set-up"
    result = RoundResult(number, 0.0, 0, 0, [], [], None, None, clip=state.clip, void=void)
    state.round, state.strategy = number, strategy_state(strategy)
    watch.round_done(result, state)


@dataclass(frozen=True)
class _Summing:
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
        watch: Watch,
    ) -> ArrayRecord:
        """The next adapter. Raises SecureSumError or RoundError when the round is void."""
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
        opened, failed = sums.finish(number)
        replies.failed += [{"site": site, "reason": f"unmasking: {reason}"} for site, reason in failed.items()]
        clip = state.clip or self.plan.clip
        if isinstance(opened, dict):
            groups = self.config.server.groups or 1  # a group has its share of the declared units
            changes = {group: change_of(self.config, self.plan, total, clip)[0] for group, total in opened.items()}
            return strategy.combined({group: groups * change for group, change in changes.items()})
        total = opened
        change, state.clip = change_of(self.config, self.plan, total, clip)
        watch.summed(change, updates)
        return strategy.summed(change)


def _summing(grid: Grid, config: RunConfig, plan: PrivacyPlan | None, sites: dict[str, int]) -> _Summing | None:
    if plan is None or config.privacy.mode == "local":
        return None
    exchange = partial(_exchange, grid, sites, min(config.server.deadline, _STAGE_SECONDS))
    secure: SecureSums | GroupedSums | None = None
    if config.secure:
        grouped = config.server.groups is not None
        secure = GroupedSums(config, plan, exchange, sites) if grouped else SecureSums(config, plan, exchange)
    return _Summing(config, plan, secure, CentralSums(plan))


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


def _one_round(
    grid: Grid,
    config: RunConfig,
    state: Checkpoint,
    trained: list[str],
    strategy: Strategy,
    summing: _Summing | None,
    cohort: dict[str, int],
    number: int,
    watch: Watch,
    pace: Pace,
) -> RoundResult:
    started = time.perf_counter()
    if summing is not None:
        cohort = summing.prepare(state, number, cohort, grid.get_node_ids())
    clip, void = state.clip, None
    by_node = {node: name for name, node in cohort.items()}
    view = Cohort(grid, list(cohort.values()))
    arrays = wire.arrays_to_record(state.adapter)
    messages = list(strategy.configure_train(number, arrays, wire.task_config(), view))
    messages.sort(key=lambda message: by_node[message.metadata.dst_node_id])  # a strategy may shuffle
    names = {message.metadata.dst_node_id: by_node[message.metadata.dst_node_id] for message in messages}
    for message in messages:
        site = names[message.metadata.dst_node_id]
        message.content = _with_steps(message.content, state.asked.get(site, 0))
        if summing is not None:
            summing.add_to_task(message.content, site, clip)
        state.asked[site] = state.asked.get(site, 0) + config.steps_per_round
    watch.asking(state)
    asked = len(messages)
    bytes_down = sum(wire.byte_count(message.content) for message in messages)
    expected = None if config.secure else {name: state.adapter[name] for name in trained}
    replies = Replies(
        names,
        expected,
        lambda: watch.replied(number, asked - len(replies.names), asked),
        watch.received,
        config.server.max_norm,
    )
    arriving = replies.accept(_timed(view.send_and_receive(messages, timeout=pace.seconds), pace))
    new_arrays: ArrayRecord | None = None
    if summing is not None and isinstance(strategy, StreamingStrategy):
        try:
            new_arrays = summing.aggregate(state, strategy, number, replies, arriving, watch)
        except (SecureSumError, RoundError) as error:
            void = str(error)
            if summing.secure is not None:
                summing.secure.lost()  # a set-up shows who is left, before anything more is charged
    elif isinstance(strategy, StreamingStrategy):
        try:
            new_arrays = strategy.aggregate((site, update) for site, update, _ in arriving)
        except RoundError as error:
            void = f"round {number} is void: {error}"
    else:
        new_arrays = aggregate_with_flower(strategy, config, state.adapter, number, arriving)
    replies.close()
    for site in replies.refused:  # it said that it charged nothing
        state.asked[site] -= config.steps_per_round
    state.asked |= replies.steps  # the site's own account says it best
    state.declined |= replies.declined
    if new_arrays is not None:
        state.adapter = wire.record_to_arrays(new_arrays, state.adapter)
    weight = sum(w for w, _ in replies.losses)
    return RoundResult(
        round=number,
        seconds=time.perf_counter() - started,
        bytes_up=replies.bytes_up + (summing.secure.bytes_up if summing and summing.secure else 0),
        bytes_down=bytes_down + (summing.secure.bytes_down if summing and summing.secure else 0),
        sites=sorted(replies.sites),
        failed=sorted(replies.failed, key=lambda failure: failure["site"]),
        train_loss=sum(w * loss for w, loss in replies.losses) / weight if weight else None,
        residual=strategy.residual if isinstance(strategy, StreamingStrategy) else None,
        outliers=strategy.outliers if isinstance(strategy, StreamingStrategy) else None,
        left_out=strategy.left_out if isinstance(strategy, StreamingStrategy) else None,
        capped=capped(replies.weights),
        clip=clip if config.privacy.clip_quantile is not None else None,
        void=void,
    )


def _timed(replies: Iterable[Message], pace: Pace) -> Iterator[Message]:
    """Notes how long each good answer took to come."""
    started = time.monotonic()
    for reply in replies:
        if not reply.has_error():
            pace.answered(time.monotonic() - started)
        yield reply


def _with_steps(content: RecordDict, steps: int) -> RecordDict:
    """The same arrays, and a config of its own: a strategy shares one record among all messages."""
    config = ConfigRecord({**content.config_records[wire.CONFIG], wire.STEPS_BEFORE: steps})
    return RecordDict({**content, wire.CONFIG: config})


def result_row(result: RoundResult) -> dict[str, Any]:
    """The JSON row of a round."""
    return {key: value for key, value in vars(result).items() if value is not None}

"""Before the first round: which sites are there, in our version, each with the ledger that was seen last; and what may
be asked of them beside training."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from ..common import wire
from ..common.config.run import RunConfig
from ..common.errors import LedgerError, RoundError, WireError
from .ledger_heads import Heads
from .plausible import one_line, site_name
from .replies import reason_of

log = logging.getLogger("confide.server")
_HELLO_SECONDS = 120.0
"""for sites to appear and answer before the first round"""
_AGAIN_SECONDS = 2.0


@dataclass(frozen=True)
class Present:
    """Who takes part, and who does not."""

    sites: dict[str, int]
    """name → node id, by name"""
    absent: dict[str, str]
    """name, or what stands for it → why: another version, a ledger that was rolled back, not online"""


def handshake(grid: Grid, config: RunConfig, heads: Heads) -> Present:
    """Every site that answers in our version, its ledger continuing the one seen last, and the others with a reason.

    Waits for the declared number of sites. Raises RoundError when too few are left.
    """
    wanted = config.data.partition.clients or config.server.min_clients
    until = time.monotonic() + _HELLO_SECONDS
    while len(list(grid.get_node_ids())) < wanted and time.monotonic() < until:
        time.sleep(0.1)
    sites: dict[str, int] = {}
    strangers: dict[int, str] = {}
    called: dict[int, str] = {}
    while True:
        nodes = [node for node in grid.get_node_ids() if node not in strangers and node not in sites.values()]
        answers, failures = ask(grid, {node: {} for node in nodes}, "hello", max(1.0, until - time.monotonic()))
        away = {node for node, error in failures.items() if wire.unreachable(error)}
        strangers |= {node: reason_of(error) for node, error in failures.items() if node not in away}
        for node, answer in answers.items():
            try:
                name = called[node] = site_name(answer.get("name"))
                wire.check_version(one_line(str(answer.get(wire.VERSION))), "a site")
                heads.check(name, answer, partial(_ask_ledger, grid, name, node))
            except (WireError, LedgerError) as error:
                strangers[node] = one_line(str(error))
                continue
            except Exception as error:  # of whatever a site sends
                strangers[node] = f"an introduction that cannot be read ({type(error).__name__})"
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
    absent = {called.get(node, f"node {node}"): reason for node, reason in strangers.items()}
    absent |= {called.get(node, f"node {node}"): reason_of(failures[node]) for node in away}
    unseen = sorted(set(heads.registered or ()) - sites.keys() - absent.keys())
    absent |= dict.fromkeys(unseen, "not online when the run began")
    for name, reason in absent.items():
        log.warning("%s is left out: %s", name, reason)
    return Present(dict(sorted(sites.items())), absent)


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


def query(grid: Grid, sites: dict[str, int], action: str) -> dict[str, dict[str, Any]]:
    """The facts that sites answer a question without facts of its own with, by name; those that fail are missing.

    sites: as `handshake` gave them.
    """
    answers, _ = ask(grid, {key: {} for key in sites.values()}, action, _HELLO_SECONDS)
    return {name: answers[node] for name, node in sites.items() if node in answers}

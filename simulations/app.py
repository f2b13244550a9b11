"""The Flower apps of a simulation: a deployment's handlers and rounds, with simulated sites and the callbacks that an
evaluation needs (canaries, attacks).

Thin: a process that runs sites loads nothing of the server's, and the other way round.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from ..common.config.run import RunConfig
from .answering import client_app

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

    from ..client.handlers import Host
    from ..server.callbacks import Callback

server = ServerApp()


def _simulated(run_config: dict, number: int, state: RecordDict) -> "Host":
    from .sites import SimulatedHost

    return SimulatedHost(run_config, number, state)


client = client_app(_simulated)


@server.main()
def _main(grid: Grid, context: Context) -> None:
    """Entry point of Flower's simulation engine."""
    play(grid, RunConfig.from_flat(dict(context.run_config)))


def play(grid: Grid, config: RunConfig, given: Sequence["Callback"] = (), strategy: "Strategy | None" = None) -> None:
    """The server of a simulation, on any engine. given: callbacks of the caller. Raises as `run_server`."""
    from ..server.app import run_server, simulated_heads
    from .attacks.report import AttackReport
    from .baselines import Baselines
    from .canaries import CanaryAudit

    callbacks = [*given, Baselines()]
    if config.audit.planted:
        callbacks.append(CanaryAudit())
    if config.attack.kind is not None:
        callbacks.append(AttackReport())
    run_server(grid, config, simulated_heads(config), callbacks, strategy)

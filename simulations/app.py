"""The Flower apps of a simulation: a deployment's handlers and rounds, with simulated sites and the callbacks that an
evaluation needs (canaries, attacks).

Thin: a process that runs sites loads nothing of the server's, and the other way round.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from ..client.handlers import ACTIONS, handle
from ..common.config.run import RunConfig

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

    from ..server.callbacks import Callback

client = ClientApp()
server = ServerApp()


def _answered(message: Message, context: Context) -> Message:
    from .sites import SimulatedHost

    number = int(context.node_config["partition-id"])
    return handle(message, SimulatedHost(dict(context.run_config), number, context.state))


for _action in ACTIONS:
    client.query(_action)(_answered)
client.train()(_answered)


@server.main()
def _main(grid: Grid, context: Context) -> None:
    """Entry point of Flower's simulation engine."""
    play(grid, RunConfig.from_flat(dict(context.run_config)))


def play(grid: Grid, config: RunConfig, given: Sequence["Callback"] = (), strategy: "Strategy | None" = None) -> None:
    """The server of a simulation, on any engine. given: callbacks of the caller. Raises as `run_server`."""
    from ..server.app import run_server, simulated_heads
    from .attacks.report import AttackReport
    from .canaries import CanaryAudit

    callbacks = list(given)
    if config.audit.planted:
        callbacks.append(CanaryAudit())
    if config.attack.kind is not None:
        callbacks.append(AttackReport())
    run_server(grid, config, simulated_heads(config), callbacks, strategy)

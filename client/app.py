"""The Flower ClientApp: thin, imports no torch; hands each message on.

In a deployment `confide site run` says, in the node's configuration, behind which Unix socket the resident worker
listens. In a simulation the same handlers run in this process.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from .deploy.resident import ask

app = ClientApp()
SOCKET, DEADLINE, LIMIT = "socket", "deadline", "max-message"
"""keys of the node's configuration: the worker's socket, seconds, bytes"""


def handed_on(message: Message, context: Context) -> Message:
    """The reply to one message, by the worker of this site."""
    node = context.node_config
    if SOCKET in node:
        return ask(str(node[SOCKET]), message, dict(context.run_config), float(node[DEADLINE]), int(node[LIMIT]))
    from .handlers import SimulatedHost, handle

    return handle(message, SimulatedHost(dict(context.run_config), int(node["partition-id"]), context.state))


for _action in ("hello", "ledger", "reveal", "holds", "keys", "shares", "unmask"):
    app.query(_action)(handed_on)
app.train()(handed_on)

"""The Flower ClientApp of a real site: thin, imports no torch; hands each message to the resident worker.

`confide site run` says, in the node's configuration, behind which Unix socket the worker listens.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from .deploy.resident import ask
from .handlers import ACTIONS

app = ClientApp()
SOCKET, DEADLINE, LIMIT = "socket", "deadline", "max-message"
"""keys of the node's configuration: the worker's socket, seconds, bytes"""


def handed_on(message: Message, context: Context) -> Message:
    """The reply to one message, by the worker of this site."""
    node = context.node_config
    return ask(str(node[SOCKET]), message, dict(context.run_config), float(node[DEADLINE]), int(node[LIMIT]))


for _action in ACTIONS:
    app.query(_action)(handed_on)
app.train()(handed_on)

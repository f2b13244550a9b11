"""A Flower ClientApp whose sites are whoever the caller says, with a deployment's handlers."""

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ..client.handlers import ACTIONS, Host, handle


def client_app(host: Callable[[dict, int, RecordDict], Host]) -> ClientApp:
    """host: of a run-config, a site's number and its state, who answers."""
    app = ClientApp()

    def answered(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        return handle(message, host(dict(context.run_config), number, context.state))

    for action in ACTIONS:
        app.query(action)(answered)
    app.train()(answered)
    return app

"""The Flower ClientApp: thin, imports no torch; hands each message to the worker.

A failure answers with an error, one line without any content of a record; it never raises through Flower, whose log
would carry the exception's text.
"""

import traceback
from typing import cast

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from .. import __version__
from ..common import wire
from ..common.errors import ConfideError
from .site import SiteAccount, site_name

app = ClientApp()
_STATE = "confide"


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Who is here, and which version it runs; no data is touched."""
    name = site_name(_partition(context), int(cast(int, context.node_config["num-partitions"])))
    answer = ConfigRecord({"name": name, wire.VERSION: __version__})
    return Message(RecordDict({wire.SITE: answer}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round at this site."""
    account: SiteAccount | None = None
    before = 0
    try:
        task, asked_before = wire.decode_task(message.content)
        from .worker import worker_for  # torch loads here, not where Flower imports the app

        worker = worker_for(dict(context.run_config))
        before = max(_charged(context), asked_before)
        account = worker.account(_partition(context), before)
        update = worker.train(_partition(context), task, account)
        return Message(wire.encode_update(update, worker.config.server.wire), reply_to=message)
    except ConfideError as failure:
        reason = str(failure)
    except Exception as failure:
        # the text of a foreign exception may quote a record: only its kind and place are told
        place = traceback.extract_tb(failure.__traceback__)[-1]
        reason = f"{type(failure).__name__} in {place.filename.rsplit('/', 1)[-1]}, line {place.lineno}"
    finally:
        if account is not None:
            context.state[_STATE] = ConfigRecord({"steps": account.steps})
    charged = account is not None and account.steps > before
    return Message(Error(wire.FAILED if charged else wire.REFUSED, reason), reply_to=message)


def _partition(context: Context) -> int:
    return int(cast(int, context.node_config["partition-id"]))


def _charged(context: Context) -> int:
    record = context.state.config_records.get(_STATE)
    return 0 if record is None else int(cast(int, record["steps"]))

"""The operators' gateway: runs submitted, listed, followed and stopped from another machine, with a client certificate.

It takes a configuration and public test sets, never code, and lets nobody name a path at the server. `remote.py` is its
other end.
"""

import base64
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ... import __version__
from ...common.config.run import RunConfig
from ...common.config.section import Section, parse_toml
from ...common.data.sources import is_hub_id
from ...common.errors import ConfideError, ConfigError
from ...common.run_folder import CONFIG, METRICS, PROGRESS
from ...common.whole import whole_file
from .runs import LocalRuns, rounds_done

VERSION = "x-confide-version"
SENT = {"test": "data", "validation": "data", "public": "distill"}
"""keys of sources that go to the server, and the tables that they stand in"""
RESULTS = ("report.html", "report.json", CONFIG, METRICS)
RESULT_FOLDERS = ("adapter", "tensorboard")
"""what an operator gets of a finished run; checkpoints stay"""


class PublicFile(Section, frozen=True):
    """A test or validation set, or public texts, that come with a run."""

    name: str
    content: str
    """base64"""


class Submission(Section, frozen=True):
    """What an operator posts to start a run."""

    configuration: str
    """TOML"""
    files: dict[str, PublicFile] = Field(default={})
    """by the keys of `SENT`"""
    overwrite: bool = False


def operators_app(folder: Path, limit: int) -> Starlette:
    """An ASGI application on a server's folder. limit: bytes of a request."""
    runs = LocalRuns(folder)

    async def start(request: Request) -> Response:
        body = await _body(request, limit)

        def work() -> dict[str, Any]:
            asked = Submission.parse(_json(body), "submission")
            return {"name": runs.start(_admitted(folder, asked), overwrite=asked.overwrite).name}

        return JSONResponse(await run_in_threadpool(work))

    async def rows(_: Request) -> Response:
        return JSONResponse([asdict(row) for row in await run_in_threadpool(runs.rows)])

    async def state(request: Request) -> Response:
        run = _run(folder, request)
        standing = asdict(await run_in_threadpool(runs.state, run))
        return JSONResponse({**standing, "rounds": rounds_done(run), "progress": _progress(run)})

    async def resume(request: Request) -> Response:
        submitted = await run_in_threadpool(runs.proceed, _run(folder, request))
        return JSONResponse({"name": submitted.name})

    async def stop(request: Request) -> Response:
        await run_in_threadpool(runs.stop, _run(folder, request).name)
        return JSONResponse({})

    async def results(request: Request) -> Response:
        return JSONResponse([str(path) for path in _results(_run(folder, request))])

    async def result(request: Request) -> Response:
        run, wanted = _run(folder, request), Path(request.path_params["path"])
        if wanted not in _results(run):
            raise ConfigError(f"{wanted}: not a result of the run '{run.name}'")
        return FileResponse(run / wanted, media_type="application/octet-stream")

    one = "/runs/{name}"
    routes = [
        Route("/runs", _answered(start), methods=["POST"]),
        Route("/runs", _answered(rows), methods=["GET"]),
        Route(one, _answered(state), methods=["GET"]),
        Route(f"{one}/resume", _answered(resume), methods=["POST"]),
        Route(f"{one}/stop", _answered(stop), methods=["POST"]),
        Route(f"{one}/results", _answered(results), methods=["GET"]),
        Route(f"{one}/results/{{path:path}}", _answered(result), methods=["GET"]),
    ]
    return Starlette(routes=routes)


Handler = Callable[[Request], Awaitable[Response]]


def _answered(handler: Handler) -> Handler:
    """An error that is meant for the user travels with its exit code."""

    async def answer(request: Request) -> Response:
        try:
            if (version := request.headers.get(VERSION)) != __version__:
                raise ConfigError(f"confide {version} here, {__version__} at the server; install the same version")
            return await handler(request)
        except ConfideError as error:
            return JSONResponse({"error": str(error), "exit": error.exit_code}, status_code=400)

    return answer


async def _body(request: Request, limit: int) -> bytes:
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > limit:
            raise ConfigError(f"the submission has more than {limit:,} bytes (max_message in server.toml)")
    return bytes(parts)


def _json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ConfigError("submission: not a JSON object")
    return content


def _run(folder: Path, request: Request) -> Path:
    name = request.path_params["name"]
    run = folder / "runs" / name
    if not re.fullmatch(r"[\w-][\w.-]*", name) or not (run / CONFIG).is_file():
        raise ConfigError(f"no run '{name[:80]}' at the server; see confide runs")
    return run


def _admitted(folder: Path, asked: Submission) -> RunConfig:
    """The run with its public files at the server. Raises ConfigError for a source that means something here only."""
    config = RunConfig.parse(parse_toml(asked.configuration, "configuration"), "configuration")
    for key in ("backbone", "image_backbone"):
        name = getattr(config.model, key)
        if name is not None and is_path(name):
            raise ConfigError(
                f"model.{key}: received '{name}', a path; allowed: a hub id, or a name under [backbones] in server.toml"
            )
    changes: dict[str, dict[str, str]] = {"data": {}, "distill": {}}
    for key, table in SENT.items():
        source = getattr(getattr(config, table), key)
        if key in asked.files:
            changes[table][key] = str(_kept(folder, asked.files[key], key))
        elif source is not None and is_path(source):
            raise ConfigError(
                f"{table}.{key}: received '{source}', which is no file of yours; allowed: a file beside you (it "
                "travels with the run), a hub id, or demo:"
            )
    update = {table: getattr(config, table).model_copy(update=changed) for table, changed in changes.items()}
    return config.model_copy(update={**update, "run": config.run.model_copy(update={"output": None})})


def is_path(name: str) -> bool:
    """Whether the name of a backbone or a source means something of this machine: a file, a folder, a database."""
    return name.startswith((".", "/", "~")) or Path(name).exists() or not is_hub_id(name)


def _kept(folder: Path, file: PublicFile, key: str) -> Path:
    """The file under its content's hash, so that a run that goes on later finds the same rows."""
    try:
        content = base64.b64decode(file.content, validate=True)
    except ValueError:
        raise ConfigError(f"files.{key}: not base64") from None
    name = re.sub(r"[^\w.-]", "_", file.name)[-80:].lstrip(".")
    place = folder / "public" / hashlib.sha256(content).hexdigest()[:32]
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = place.resolve() / name
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return path


def _progress(run: Path) -> dict[str, Any] | None:
    try:
        return json.loads((run / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _results(run: Path) -> list[Path]:
    """Relative to the run's folder."""
    found = [Path(name) for name in RESULTS if (run / name).is_file()]
    for name in RESULT_FOLDERS:
        found += sorted(path.relative_to(run) for path in (run / name).rglob("*") if path.is_file())
    return found

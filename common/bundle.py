"""What is submitted to Flower: a bundle without code, which names our installed apps and carries the configuration."""

from collections.abc import Mapping
from pathlib import Path

import tomli_w

from .. import __version__
from .config.run import RunConfig

DEPLOYED = {"serverapp": "confide.server.app:app", "clientapp": "confide.client.app:app"}


def write_bundle(config: RunConfig, folder: Path, components: Mapping[str, str] = DEPLOYED) -> None:
    """A Flower app that holds configuration only; components: the apps, which resolve from the installed package."""
    nested: dict = {}
    for key, value in config.to_flat().items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    content = {
        "project": {
            "name": "confide-run",
            "version": __version__,
            "description": "configuration of a confide run; no code",
            "license": {"text": "Apache-2.0"},
            "dependencies": [],
        },
        "tool": {"flwr": {"app": {"publisher": "confide", "components": dict(components), "config": nested}}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(tomli_w.dumps(content), encoding="utf-8")

"""What modes share whose sites train the run's model and send an adapter."""

from typing import TYPE_CHECKING

from ..types import Adapter

if TYPE_CHECKING:
    from ..config.run import RunConfig

TEACHERS = False


def at_sites(config: "RunConfig") -> "RunConfig":
    return config


def exchanged(config: "RunConfig", trained: Adapter) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in trained.items()}

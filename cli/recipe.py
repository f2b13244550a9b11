"""What the commands that start from a recipe share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..common.config.run import RunConfig

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. privacy.epsilon=3; empty unsets."),
]


def load_recipe(
    recipe: str, sets: list[str] | None, out: Path | None = None, ledger: Path | None = None
) -> "RunConfig":
    """A recipe with what was set by hand. Raises ConfigError."""
    from ..common.config.run import load
    from ..common.config.section import assignment
    from ..simulations.recipes import find_recipe

    overrides = [*(sets or [])]
    if out is not None:
        overrides.append(assignment("run.output", str(out)))
    if ledger is not None:
        overrides.append(assignment("engine.ledger", str(ledger)))
    return load(find_recipe(recipe), overrides)

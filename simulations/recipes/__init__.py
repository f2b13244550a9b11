"""Runs as files; `find_recipe` knows them by name."""

from pathlib import Path

from ...common.errors import ConfigError

FOLDER = Path(__file__).parent


def find_recipe(recipe: str) -> Path:
    """A path, or the name of a shipped recipe. Raises ConfigError."""
    if Path(recipe).suffix == ".toml" or Path(recipe).is_file():
        return Path(recipe)
    shipped = FOLDER / f"{recipe}.toml"
    if not shipped.is_file():
        names = ", ".join(sorted(path.stem for path in FOLDER.glob("*.toml")))
        raise ConfigError(f"RECIPE: received '{recipe}'; allowed: a .toml file, or one of {names}")
    return shipped

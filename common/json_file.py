"""A JSON file that confide wrote, read again: whoever changed it, or cut it, is told so in one line."""

import json
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .run_folder import own_file


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Raises ConfigError, whose line ends in `remedy`, where the file is not there, not JSON, or no object."""
    try:
        found = json.loads(own_file(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: not JSON: it was changed, or cut; {remedy}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: not as confide wrote it; {remedy}")
    return found

"""confide: federated, privacy-preserving fine-tuning of Hugging Face models.

- `simulate(config, …) -> Run` plays a simulation; `resume(folder)` goes on with one that was interrupted
- `load(folder) -> Run`: a finished run, with `Run.report`, `Run.metrics` and `Run.predict(texts)`
- `audit(run)`: what was promised, what was spent, what canaries measured
- `Callback`: hooks of a run, to be subclassed; `RunConfig`: a run's configuration
- `load_base(folder)`: the model that an exported adapter belongs to; `load_spelling(folder)`: how it reads words

The command is `confide`.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "Run",
    "RunConfig",
    "__version__",
    "audit",
    "load",
    "load_base",
    "load_spelling",
    "resume",
    "simulate",
]

if TYPE_CHECKING:
    from .common.config.run import RunConfig
    from .common.model.adapter import load_base, load_spelling
    from .server.callbacks import Callback
    from .simulations.api import Run, audit, load, resume, simulate

_PLACES = {
    "RunConfig": "common.config.run",
    "load_base": "common.model.adapter",
    "load_spelling": "common.model.adapter",
    "Callback": "server.callbacks",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when first used: `import confide` costs nothing and `confide --help` stays quick."""
    if name not in __all__:
        raise AttributeError(f"module 'confide' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_PLACES.get(name, 'simulations.api')}", __name__), name)


def __dir__() -> list[str]:
    return __all__

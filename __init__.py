"""confide: federated, privacy-preserving fine-tuning of Hugging Face models.

The command is `confide`; from Python, `load_base(folder)` builds the model that an exported adapter belongs to, and
`load_spelling(folder)` says how it reads words that are misspelled.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RunConfig", "__version__", "load_base", "load_spelling", "simulate"]

if TYPE_CHECKING:
    from .common.config.run import RunConfig
    from .common.model.loading import load_base, load_spelling
    from .simulations.run import simulate


def __getattr__(name: str) -> Any:
    """Public names, imported when first used: `import confide` costs nothing and `confide --help` stays quick."""
    if name == "RunConfig":
        from .common.config.run import RunConfig

        return RunConfig
    if name in ("load_base", "load_spelling"):
        from .common.model import loading as models

        return getattr(models, name)
    if name == "simulate":
        from .simulations.run import simulate

        return simulate
    raise AttributeError(f"module 'confide' has no attribute '{name}'")

"""Combinations of a run's settings that cannot hold: rows of data, one file a concern; `RunConfig` is read by them.

A new rule is a new row. The rules of one mode of privacy stand together in `modes`.
"""

from typing import TYPE_CHECKING

from .attack import ATTACK
from .audit import AUDIT
from .byzantine import BYZANTINE
from .data import DATA
from .distillation import DISTILLATION
from .evaluation import EVALUATION
from .modes import MODES
from .person import PERSON
from .preference import PREFERENCE
from .rule import Rule
from .server import SERVER
from .sums import SUMS
from .task import TASK
from .training import TRAINING
from .views import VIEWS

if TYPE_CHECKING:
    from ..run import RunConfig

RULES: tuple[Rule, ...] = (
    *MODES,
    *PERSON,
    *SUMS,
    *PREFERENCE,
    *DATA,
    *SERVER,
    *TRAINING,
    *BYZANTINE,
    *VIEWS,
    *TASK,
    *DISTILLATION,
    *EVALUATION,
    *AUDIT,
    *ATTACK,
)
"""in the order in which they are looked at: the first that refuses a run says so"""


def check_combinations(config: "RunConfig") -> None:
    """Raises ValueError with the line of the first rule that refuses the run."""
    for rule in RULES:
        if rule.refused(config):
            raise ValueError(rule.message(config))

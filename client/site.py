"""What a site spends in one run.

`reserve` is the one call between a task and the data: it is made before a row is touched, in every mode. The persistent
ledger takes its place behind this call; for now the account lives as long as the run, in Flower's node state.
"""

from dataclasses import dataclass

from ..common.errors import BudgetError
from ..common.mechanism import PrivacyPlan


@dataclass
class SiteAccount:
    """Steps charged to one site by one run; `plan` is None in mode `none`."""

    site: str
    plan: PrivacyPlan | None
    declared_steps: int
    steps: int = 0

    def reserve(self, steps: int) -> int:
        """Charges `steps` and returns what was charged before. Raises BudgetError and charges nothing when over."""
        before = self.steps
        if before + steps > self.declared_steps:
            raise BudgetError(
                f"site {self.site}: spent {before} steps, asked {steps}, limit {self.declared_steps}, remaining "
                f"{self.declared_steps - before}; a run takes the steps it declared and no more"
            )
        self.steps += steps
        return before

    def epsilon(self) -> float | None:
        """ε of the steps charged so far, failed ones included."""
        return None if self.plan is None else self.plan.epsilon(self.steps)


def site_name(site: int, sites: int) -> str:
    """site-01 … site-10: a simulated site's name, sorts as it counts."""
    return f"site-{site + 1:0{len(str(sites))}d}"

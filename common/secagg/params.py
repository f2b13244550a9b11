"""How many sites may vanish, how many may collude, and what follows from it."""

from dataclasses import dataclass

from ..errors import SecureSumError

COMPLETE_UP_TO = 50
"""sites; above it each exchanges masks with neighbours only"""


@dataclass(frozen=True)
class Parameters:
    """What every site checks before it masks anything; nothing in it may come from the server's messages.

    Both promises hold with certainty, not with high probability, while at most `sites − survivors` vanish, chosen by
    an adversary who knows the graph, and at most `colluders` sites help the server.
    """

    sites: int
    """n: at most this many take part"""
    survivors: int
    """t: masked inputs and answers below which a round is void"""
    colluders: int
    """c: sites that may work for the server"""

    def __post_init__(self) -> None:
        """Raises SecureSumError for numbers that cannot hold."""
        n, t, c = self.sites, self.survivors, self.colluders
        _require(n >= 2, f"a secure sum of {n} sites hides nothing; allowed: 2 and more")
        _require(2 <= t <= n, f"survivors {t} of {n} sites; allowed: from 2 to {n}")
        _require(0 <= c < t, f"colluders {c}; allowed: from 0 to survivors − 1 = {t - 1}")
        _require(
            2 * t > n + c,
            f"survivors {t} of {n} sites with {c} colluders; allowed: more than ({n} + {c})/2, or the server could "
            "have two survivor sets confirmed",
        )

    @property
    def dropouts(self) -> int:
        """d = n − t."""
        return self.sites - self.survivors

    def neighbours(self, sites: int) -> int:
        """k: other sites that each of `sites` exchanges masks and shares with; even unless it is all of them.

        Above 50 sites k ≥ d + c + 1: the graph is k-connected (Harary 1962), so whichever d vanish and c collude, the
        others stay connected, and what a connected part adds up to is all that its masks let through.
        """
        least = self.dropouts + self.colluders + 1
        even = least + least % 2
        return sites - 1 if sites <= COMPLETE_UP_TO else min(sites - 1, max(even, 2))

    def shares_needed(self, sites: int) -> int:
        """Shamir threshold among a site's neighbours and itself: k − d, more than the colluders hold together."""
        return max(self.neighbours(sites) - self.dropouts, self.colluders + 1)

    def void_probability(self, dropout_rate: float) -> float:
        """P[a round is void] when each site vanishes independently with this probability."""
        from scipy.stats import binom  # slow to load, and read with every configuration

        return float(binom.sf(self.dropouts, self.sites, dropout_rate))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SecureSumError(f"secure sum: {message}")

"""Before a round: nobody is asked, and charged, while fewer sites are online than the round needs."""

import time
from collections.abc import Callable, Mapping

from flwr.serverapp import Grid

from ..common.config.run import RunConfig
from ..common.errors import RoundError

_AGAIN_SECONDS = 2.0


def sites_needed(config: RunConfig) -> int:
    """Replies without which a round is void; of secure sums the survivors of each group, where there are groups, of as
    many groups as tolerate the Byzantine sites."""
    if not config.secure:
        return config.server.min_clients
    return config.secure_parameters.survivors * (2 * config.byzantine + 1 if config.server.groups else 1)


def wait_for_sites(
    grid: Grid, config: RunConfig, chosen: Mapping[str, int], number: int, waiting: Callable[[int, int, int], None]
) -> None:
    """Until enough of the sites that round `number` may ask are online, at most `server.wait_minutes`.

    chosen: site → node. waiting: told the round, how many there are, and how many it needs. Raises RoundError.
    """
    needed = min(sites_needed(config), len(chosen))
    until = time.monotonic() + 60 * config.server.wait_minutes
    while (there := len(set(chosen.values()) & set(grid.get_node_ids()))) < needed:
        if time.monotonic() > until:
            away = sorted(set(chosen) - {name for name, node in chosen.items() if node in set(grid.get_node_ids())})
            raise RoundError(
                f"round {number} needs {needed} sites, {there} were online for {config.server.wait_minutes:g} minutes "
                f"(server.wait_minutes); away: {', '.join(away[:5])}; nobody was asked; --resume goes on"
            )
        waiting(number, there, needed)
        time.sleep(_AGAIN_SECONDS)

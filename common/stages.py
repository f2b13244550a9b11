"""Work of several stages, told as one: how far all of it is, so that the time left follows from the first pieces."""

from collections.abc import Mapping

from .types import ProgressCallback


class Stages:
    """Told how far each stage is; tells how far the whole."""

    def __init__(self, progress: ProgressCallback, costs: Mapping[str, float]) -> None:
        """costs: of each stage in order, in passes of a text through the model or anything else that they share."""
        self._progress = progress
        self._costs = dict(costs)
        self._total = round(sum(costs.values()))

    def done(self, stage: str, done: int, total: int, what: str = "") -> None:
        """done: of `total` pieces of the stage. what: is going on, more closely."""
        before = 0.0
        for name, cost in self._costs.items():
            if name == stage:
                whole = min(self._total, round(before + cost * done / max(1, total)))
                self._progress(f"{stage}: {what}" if what else stage, whole, self._total)
                return
            before += cost
        raise KeyError(stage)

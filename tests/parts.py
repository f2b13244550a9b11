"""A part of the slow tests, for runs that have minutes: each day another one, the same on the same day."""

import hashlib
import time
from dataclasses import dataclass, field

import pytest


@dataclass(frozen=True)
class Part:
    """Every `parts`-th test, from `day` on, in an order of that day, until `minutes` are over."""

    day: int
    parts: int
    minutes: float
    _start: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        chosen = f"part {self.day % self.parts + 1} of {self.parts}, in the order of day {self.day}"
        return f"{chosen}; none begins after {self.minutes:g} minutes"

    def chosen(self, items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
        """Those of today in their order, and the others. Tests that share what their module made stay together."""
        today = [item for number, item in enumerate(items) if number % self.parts == self.day % self.parts]
        left = [item for number, item in enumerate(items) if number % self.parts != self.day % self.parts]
        return sorted(today, key=self._place), left

    def _place(self, item: pytest.Item) -> bytes:
        group = item.get_closest_marker("xdist_group")
        name = item.nodeid if group is None else group.args[0]
        return hashlib.sha256(f"{self.day} {name}".encode()).digest()

    def over(self) -> bool:
        return time.monotonic() > self._start + 60 * self.minutes


def part_of(text: str, minutes: float) -> Part:
    """text: DAY/PARTS."""
    day, parts = text.split("/")
    return Part(int(day), int(parts), minutes)

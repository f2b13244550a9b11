"""Parts of the slow tests: all are in one of three days' parts, and what a module made is made once."""

from types import SimpleNamespace
from typing import Any

from confide.tests.parts import Part, part_of


def items(count: int) -> list[Any]:
    """Of two modules, by turns; those of the first share what it made."""
    group = SimpleNamespace(args=("shared",))
    return [
        SimpleNamespace(nodeid=f"test_{i}", get_closest_marker=lambda name, i=i: None if i % 2 else group)
        for i in range(count)
    ]


def test_three_days_have_all_tests_once() -> None:
    every = items(20)
    chosen = [Part(day, 3, 1.0).chosen(every) for day in (364, 365, 366)]
    assert sorted(item.nodeid for today, _ in chosen for item in today) == sorted(item.nodeid for item in every)
    for today, left in chosen:
        assert sorted(item.nodeid for item in [*today, *left]) == sorted(item.nodeid for item in every)


def test_the_order_is_that_of_the_day_and_groups_stay_together() -> None:
    orders = [[item.nodeid for item in Part(day, 3, 1.0).chosen(items(40))[0]] for day in (1, 1, 4)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    shared = [place for place, name in enumerate(orders[0]) if int(name.removeprefix("test_")) % 2 == 0]
    assert shared == [*range(shared[0], shared[0] + len(shared))]


def test_a_part_ends() -> None:
    part = part_of("009/3", 0.0)
    assert (part.day, part.parts) == (9, 3)
    assert part.over()
    assert not part_of("1/3", 1.0).over()

"""The sites of the neighbour tests, made once a module."""

from collections.abc import Iterator

import pytest

from confide.tests.neighbours.site import Observer, Sites


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    return Sites(tmp_path_factory.mktemp("sites"))


@pytest.fixture(autouse=True)
def _real_proofs(real_proofs: None) -> None:
    """These tests stand for the proof, too."""


@pytest.fixture
def watch() -> Iterator[Observer]:
    with Observer() as watch:
        yield watch

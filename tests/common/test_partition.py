"""Every record goes to exactly one client, reproducibly; each kind has its shape."""

import numpy as np
import pytest

from confide.common.config.tables import PartitionSection
from confide.common.data.partition import partition
from confide.common.errors import DataError

LABELS = np.random.default_rng(0).integers(0, 5, 1000)
GROUP = np.array([f"hospital-{i % 7}" for i in range(1000)], dtype=object)

KINDS = [
    PartitionSection(kind="iid", clients=8),
    PartitionSection(kind="dirichlet", clients=8, alpha=0.5),
    PartitionSection(kind="shards", clients=8, shards_per_client=2),
    PartitionSection(kind="natural", column="hospital"),
]


@pytest.mark.parametrize("section", KINDS, ids=lambda s: s.kind)
def test_every_record_has_one_owner_and_the_seed_decides(section: PartitionSection) -> None:
    parts = partition(section, 1000, LABELS, GROUP, seed=5)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    again = partition(section, 1000, LABELS, GROUP, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    other = partition(section, 1000, LABELS, GROUP, seed=6)
    assert section.kind == "natural" or not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_iid_is_even() -> None:
    assert {len(part) for part in partition(KINDS[0], 1000, None, None, 0)} == {125}


def test_dirichlet_skews_with_alpha() -> None:
    def largest_share(alpha: float) -> float:
        parts = partition(
            PartitionSection(kind="dirichlet", clients=5, alpha=alpha, empty="redistribute"), 1000, LABELS, None, 1
        )
        return float(np.mean([np.bincount(LABELS[part], minlength=5).max() / len(part) for part in parts]))

    assert largest_share(0.05) > 0.7 > 0.4 > largest_share(1000)


def test_shards_hold_few_labels() -> None:
    parts = partition(PartitionSection(kind="shards", clients=5, shards_per_client=1), 1000, LABELS, None, 0)
    assert max(len(np.unique(LABELS[part])) for part in parts) <= 3


def test_natural_follows_the_column() -> None:
    parts = partition(KINDS[3], 1000, None, GROUP, 0)
    assert [len(set(GROUP[part])) for part in parts] == [1] * 7


def test_natural_with_another_number_of_clients_is_refused() -> None:
    with pytest.raises(DataError, match=r"received 3, but column 'hospital' has 7 values"):
        partition(PartitionSection(kind="natural", column="hospital", clients=3), 1000, None, GROUP, 0)


def test_an_empty_client_is_refused_or_filled() -> None:
    skewed = {"kind": "dirichlet", "clients": 40, "alpha": 0.01}
    with pytest.raises(DataError, match=r"clients are left without records .* set data.partition.empty=redistribute"):
        partition(PartitionSection(**skewed), 200, LABELS[:200], None, 0)
    parts = partition(PartitionSection(**skewed, empty="redistribute"), 200, LABELS[:200], None, 0)
    assert min(len(part) for part in parts) == 1
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(200))


def test_more_clients_than_records_is_refused() -> None:
    with pytest.raises(DataError, match="3 records cannot be split among 8 clients"):
        partition(KINDS[0], 3, None, None, 0)


@pytest.mark.parametrize("section", KINDS[1:3], ids=lambda s: s.kind)
def test_kinds_that_need_labels_say_so(section: PartitionSection) -> None:
    with pytest.raises(DataError, match="needs a label column"):
        partition(section, 1000, None, None, 0)


def test_natural_without_its_column_says_so() -> None:
    with pytest.raises(DataError, match="needs the values"):
        partition(KINDS[3], 1000, None, None, 0)

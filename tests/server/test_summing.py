"""From totals to the next model: what a trusted server adds up, and what it does not take."""

import numpy as np
import pytest

from confide.common.errors import RoundError, SecureSumError, WireError
from confide.common.modes import mode_of
from confide.common.privacy.mechanism import PrivacyPlan, plan_for
from confide.common.secagg import facts
from confide.common.types import WHOLE, Update
from confide.server.aggregate.summing import CentralSums
from confide.server.secagg import Answered, SecureSums

_Z = 5.0  # false alarm below 6e-7


@pytest.fixture
def plan() -> PrivacyPlan:
    return plan_for(epsilon=8, delta=1e-5, sampling_rate=0.5, steps=3, clip=2.0, coordinates=20_000, declared_units=10)


def update(values: np.ndarray, whole: float = 0.5) -> Update:
    return Update("site", {"x": values.astype(np.float32)}, 1.0, 1, 1.0, {WHOLE: whole})


def test_a_trusted_server_clips_again_and_adds_the_whole_noise(plan: PrivacyPlan) -> None:
    sums = CentralSums(plan)
    sums.begin(2.0)
    sums.add("a", update(np.full(20_000, 1e3)))  # a site that did not clip
    sums.add("b", update(np.zeros(20_000)))
    total, failed = sums.finish(1)
    assert failed == {}
    found = total * 2.0 / 2**16  # in units of the update
    expected = 2.0 / 20_000**0.5
    deviation = plan.noise_multiplier * 2.0
    assert abs(found.mean() - expected) < _Z * deviation / 20_000**0.5
    assert found.std() == pytest.approx(deviation, rel=_Z / (2 * 20_000) ** 0.5 + 0.01)  # Δ₂ is 0.2 % above s·C
    sums.begin(1.0)
    assert not sums._total.any()


def test_a_flag_that_is_none_is_refused(plan: PrivacyPlan) -> None:
    with pytest.raises(WireError, match=r"allowed: -0\.5, 0 and 0\.5"):
        CentralSums(plan).add("a", update(np.zeros(20_000), whole=7.0))


def test_a_gradient_is_sent_downhill_and_an_update_as_it_is(make_config, local, plan: PrivacyPlan) -> None:
    total = np.full(20_000, 2**16)
    summed = make_config(privacy={**local, "mode": "distributed"})
    gradient, clip = mode_of(summed).change(summed, plan, total, 2.0)
    np.testing.assert_allclose(gradient, -2.0 / plan.denominator)
    client = make_config(privacy={"mode": "client", "epsilon": 8.0, "sampling_rate": 0.5})
    moved, clip = mode_of(client).change(client, plan, total, 2.0)
    np.testing.assert_allclose(moved, 2.0 / plan.denominator)
    assert clip == 2.0


def test_a_set_up_that_never_ends_is_given_up(make_config, local, plan: PrivacyPlan) -> None:
    """Each attempt leaves out who failed in the last one; too few are left before the attempts run out."""
    from confide.common.ledger.chain import SiteKey
    from confide.common.privacy.plan import secure_session
    from confide.common.secagg.protocol import SecureSite

    config = make_config(run={"id": "r"}, privacy={**local, "mode": "distributed"}, data={"partition": {"clients": 8}})
    identities = {f"site-{i}": SiteKey.new() for i in range(1, 9)}

    def exchange(stage, questions):
        session = secure_session(config, plan, 1)
        if stage == "keys":
            return Answered(
                {n: facts.from_advert(SecureSite.advertise(session, n, identities[n])[1]) for n in questions}, {}
            )
        first, *others = sorted(questions)
        return Answered({name: facts.from_sealed({}) for name in others}, {first: "broken"})

    sums = SecureSums(config, plan, exchange)
    with pytest.raises(RoundError, match=r"6 sites in the list; allowed: 7|6 sites are left for secure sums, 7"):
        sums.prepare(1, identities, [])
    with pytest.raises(SecureSumError, match="no round has begun"):
        sums.finish(1)


def test_keys_in_anothers_name_leave_the_site_out(make_config, local, plan: PrivacyPlan) -> None:
    from confide.common.ledger.chain import SiteKey
    from confide.common.privacy.plan import secure_session
    from confide.common.secagg.protocol import SecureSite

    config = make_config(run={"id": "r"}, privacy={**local, "mode": "distributed"})
    asked: list[list[str]] = []

    def exchange(stage, questions):
        asked.append(sorted(questions))
        session = secure_session(config, plan, 1)
        names = {name: "site-1" if name == "site-2" else name for name in questions}
        if stage == "keys":
            return Answered(
                {n: facts.from_advert(SecureSite.advertise(session, names[n], SiteKey.new())[1]) for n in questions}, {}
            )
        return Answered({name: facts.from_sealed({}) for name in questions}, {})

    sums = SecureSums(config, plan, exchange)
    sums.prepare(1, [f"site-{i}" for i in range(1, 5)], [])
    assert asked[1] == sums.sites == ["site-1", "site-3", "site-4"]

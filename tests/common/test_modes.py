"""The contract that every mode keeps, and that a mode is one place."""

import ast
import importlib
from pathlib import Path

import numpy as np
import pytest

from confide.common import modes
from confide.common.config.run import RunConfig
from confide.common.errors import PrivacyError
from confide.common.modes import Computation, client, mode_of
from confide.common.privacy.mechanism import PoissonMechanism
from confide.common.privacy.noise import grid_steps
from confide.common.privacy.plan import privacy_plan
from confide.common.types import Adapter

NAMES = ("none", "local", "distributed", "client", "distillation")
SIZE = 12


class Pretended:
    """A site that computes ones."""

    def __init__(self, config: RunConfig, count: int, *, trains: bool = True, evaluates: bool = False) -> None:
        self.config, self._count, self.trains, self.evaluates = config, count, trains, evaluates

    def counts(self) -> np.ndarray:
        return np.array([3.0, 1.0])

    def records(self) -> int:
        return self._count

    def clip(self, plan) -> float:
        return plan.clip

    def clipped_sum(self, mechanism) -> np.ndarray:
        mechanism.draw(self._count)
        return np.ones(SIZE)

    def private_steps(self, step) -> Adapter:
        return {"a": step()[0]}

    def plain_steps(self) -> tuple[Adapter, float]:
        return {"a": np.ones(SIZE)}, 0.5

    def plain_change(self) -> np.ndarray:
        return 10.0 * np.ones(SIZE)

    def votes(self) -> np.ndarray:
        return np.zeros(2 * 5)

    def as_adapter(self, vector) -> Adapter:
        return {"a": vector}


@pytest.fixture
def config_of(make_config, local, tmp_path: Path):
    public = tmp_path / "public.csv"
    public.write_text("text\n" + "some words\n" * 5)

    def make(name: str, **privacy) -> RunConfig:
        data = {"labels": ["negative", "positive"]}
        if name == "none":
            return make_config(run={"id": "r"}, data=data)
        if name == "client":
            return make_config(
                run={"id": "r"}, data=data, privacy={"mode": "client", "epsilon": 50.0, "sampling_rate": 0.5, **privacy}
            )
        if name == "distillation":
            return make_config(
                run={"id": "r", "rounds": 1},
                data=data,
                privacy={"mode": "local", "epsilon": 8.0, **privacy},
                distill={"public": str(public), "queries": 5, "teachers": 3},
            )
        return make_config(run={"id": "r"}, data=data, privacy={**local, "mode": name, **privacy})

    return make


@pytest.mark.parametrize("name", NAMES)
def test_a_mode_offers_what_the_protocol_asks(config_of, name: str) -> None:
    config = config_of(name)
    mode = mode_of(config)
    assert mode is importlib.import_module(f"confide.common.modes.{name}")
    wanted = {member for member in vars(modes.Mode) if not member.startswith("_")} | set(modes.Mode.__annotations__)
    assert {member for member in wanted if not hasattr(mode, member)} == set()
    assert mode.ledger_unit(config) in ("example", "client")
    for sentence in (mode.unit, mode.protected, mode.adversary, mode.sampling, mode.noise):
        assert sentence(config)
    if name == "none":
        with pytest.raises(PrivacyError, match="declares no units"):
            mode.units(config)
    else:
        plan = privacy_plan(config, SIZE)
        assert plan is not None
        assert plan.coordinates == mode.coordinates(config, SIZE)
        assert plan.denominator == pytest.approx(plan.sampling_rate * mode.units(config))


@pytest.mark.parametrize("name", ["local", "distributed", "client"])
def test_nothing_is_released_without_a_mechanism(config_of, name: str) -> None:
    site: Computation = Pretended(config_of(name), 9)
    with pytest.raises(PrivacyError, match="no mechanism"):
        mode_of(site.config).release(site, None)


@pytest.mark.parametrize("name", ["local", "distributed", "client", "distillation"])
def test_a_release_takes_one_step_and_is_noised(config_of, name: str) -> None:
    """With and without records: what leaves has the same form."""
    config = config_of(name)
    plan, mode = privacy_plan(config, SIZE), mode_of(config)
    assert plan is not None
    forms = set()
    for count in (0, 9):
        mechanism = PoissonMechanism(plan, np.random.default_rng(3))
        found = mode.release(Pretended(config, count), mechanism)
        assert mechanism.steps == 1
        assert found.weight == 1.0
        released = found.share if found.share is not None else next(iter(found.delta.values()))
        assert released.any()
        forms.add((found.share is None, tuple(found.delta), released.size))
    assert len(forms) == 1


@pytest.mark.parametrize("name", ["none", "local", "distributed"])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("evaluates", [True, False])
def test_counts_come_behind_the_gradients(config_of, name: str, trains: bool, evaluates: bool) -> None:
    """A round that trains nothing takes no step; one that evaluates nothing has noise alone where counts would be."""
    if not (trains or evaluates):
        return
    config = config_of(name)
    evaluation = config.evaluation.model_copy(update={"sites": True, "holdout": 0.25})
    config = config.model_copy(update={"evaluation": evaluation})
    plan, mode = privacy_plan(config, SIZE), mode_of(config)
    site = Pretended(config, 9, trains=trains, evaluates=evaluates)
    if plan is None:
        found = mode.release(site, None)
        assert (found.counts is not None, bool(found.delta)) == (evaluates, trains)
        return
    assert plan.coordinates == SIZE + 2
    assert plan.trained == SIZE
    assert plan.denominator == pytest.approx(0.75 * plan.sampling_rate * 240 / (4 if name == "local" else 1))
    mechanism = PoissonMechanism(plan, np.random.default_rng(3))
    mechanism._add_noise = lambda on_grid: None
    found = mode.release(site, mechanism)
    assert mechanism.steps == trains
    if found.share is not None:
        assert bool(found.share[:SIZE].any()) == trains
        counts = plan.counts(found.share)
    else:
        assert bool(found.delta) == trains
        assert (found.counts is not None) == evaluates
        counts = mechanism.counts
    np.testing.assert_allclose(counts, [3, 1] if evaluates else [0, 0], atol=0.01)


def test_the_sum_of_a_mode_is_read_as_it_was_made(config_of) -> None:
    total = np.full(SIZE, grid_steps(SIZE))
    for name, sign in (("distributed", -1), ("client", 1)):
        config = config_of(name)
        plan = privacy_plan(config, SIZE)
        assert plan is not None
        change, clip = mode_of(config).change(config, plan, total, 2.0)
        np.testing.assert_allclose(change, sign * 2.0 / plan.denominator)
        assert clip == 2.0


def test_a_site_clips_its_change_and_an_adaptive_norm_moves(config_of) -> None:
    config = config_of("client", clip_quantile=0.5, sampling_rate=1.0)
    plan, mode = privacy_plan(config, SIZE), mode_of(config)
    assert plan is not None
    assert plan.coordinates == SIZE + 1
    cut = client.contribution(Pretended(config, 9), PoissonMechanism(plan, np.random.default_rng(0)), 2.0)
    assert np.linalg.norm(cut.update) == pytest.approx(2.0)
    assert cut.whole == -0.5
    _, clip = mode.change(config, plan, np.zeros(SIZE + 1, dtype=np.int64), 2.0)
    assert clip == pytest.approx(2.0)  # half of them are whole, as wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_mode_imports_neither_side(name: str) -> None:
    path = Path(modes.__file__).with_name(f"{name}.py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not any(part in ("client", "server") for part in (node.module or "").split("."))

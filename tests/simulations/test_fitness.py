"""What the doctor says of a run's data and privacy before a second is spent."""

import math

import pytest
from opacus.accountants import PRVAccountant

from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.model.loading import model_of
from confide.simulations import doctor
from confide.simulations.fitness import judged, step_of


def told(config: RunConfig, seconds: float | None = None) -> dict[str, tuple[str, bool | None]]:
    resolved = resolve(config)
    return {name: (text, good) for name, text, good in judged(resolved, model_of(resolved), seconds)}


@pytest.fixture
def private(make_config, local):
    def make(*, rounds: int = 3, **privacy) -> RunConfig:
        section = {**local, "mode": "distributed", "sampling_rate": 0.2, "epsilon": 20.0, **privacy}
        return make_config(run={"rounds": rounds}, privacy=section)

    return make


def test_a_run_that_will_do_has_nothing_to_mind(private) -> None:
    found = told(private(), 2.0)
    assert found["data"][0].startswith("240 records at 4 sites")
    assert "2 classes" in found["data"][0]
    assert found["declared"] == ("240 records declared, 240 are there", True)
    assert found["time in all"] == ("about 6 s for 3 rounds, evaluation aside", True)
    assert found["batch"] == ("48 records expected in a step", True)
    assert found["noise"][1] is True


def test_what_a_step_is_made_of(private) -> None:
    """z against Opacus' accountant, and the noise of the sum as the sites add it up: z²·n/(n − c)."""
    config = private()
    step = step_of(config, 1000)
    assert step is not None
    accountant = PRVAccountant()
    accountant.history = [(step.multiplier, 0.2, 3)]
    assert accountant.get_epsilon(1e-5) == pytest.approx(20, rel=0.02)
    assert step.noise == pytest.approx(step.multiplier * math.sqrt(4 / 3))
    assert step.ratio == pytest.approx(math.sqrt(1000) * step.noise / 48)
    alone = step_of(config.model_copy(update={"privacy": config.privacy.model_copy(update={"mode": "local"})}), 1000)
    assert alone is not None
    assert alone.noise == pytest.approx(alone.multiplier * math.sqrt(4))


def test_a_wrong_declaration_a_small_batch_and_loud_noise_are_told(private) -> None:
    found = told(private(epsilon=0.1, sampling_rate=0.02, declared_examples=1000))
    assert found["declared"][1] is None
    assert "privacy.declared_examples = 240" in found["declared"][0]
    assert (found["batch"][0], found["batch"][1]) == ("20 records expected in a step", True)
    found = told(private(epsilon=0.1, sampling_rate=0.02))
    assert found["batch"][1] is found["signal"][1] is None
    assert told(private(epsilon=0.1, rounds=30))["noise"][1] is None
    assert "model.train = 'head'" in found["instead"][0]
    assert "privacy.sampling_rate = 0.04" in found["instead"][0]
    assert "run.rounds = 1" in found["instead"][0]


def test_what_is_proposed_carries_more_signal(private) -> None:
    steps = [step_of(private(epsilon=0.5, sampling_rate=rate), 5000) for rate in (0.05, 0.1)]
    ratios = [step.ratio for step in steps if step is not None]
    assert len(ratios) == 2
    assert ratios[1] < ratios[0]


def test_two_sites_of_which_one_helps_the_server_gain_nothing(make_config, local) -> None:
    privacy = {**local, "mode": "distributed"}
    two = make_config(privacy=privacy, data={"partition": {"clients": 2}}, server={"min_survivors": 2})
    assert told(two)["mode"][1] is None
    assert "mode" not in told(make_config(privacy=privacy))


def test_rows_that_cannot_be_used_are_told_by_the_doctor(make_config, tmp_path) -> None:
    path = tmp_path / "broken.csv"
    path.write_text("text,label\nfine,positive\n,negative\n")
    found = told(make_config(data={"train": str(path), "partition": {"clients": 1}}, server={"min_clients": 1}))
    assert found["data"][1] is False
    assert "row 3" in found["data"][0]


def test_the_table_shows_names_as_they_are(make_config, capsys) -> None:
    """rich would make a picture of ':train:', and a command of '[bold]'."""
    assert doctor.show("t", iter([("demo:train:", "[bold]demo:train: row 1", None)]))
    shown = capsys.readouterr().out
    assert "[bold]demo:train: row 1" in shown
    assert "mind" in shown

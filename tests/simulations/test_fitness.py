"""What the doctor says of a run's data and privacy before a second is spent."""

import math

import pytest
from opacus.accountants import PRVAccountant

from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.model.loading import model_of
from confide.simulations import doctor
from confide.simulations.fitness import judged, step_of
from confide.tests.tiny import sentences, write_csv


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
    assert found["batch"][0].startswith("4.8 records expected in a step; below 20")  # of the 240 that there are
    assert found["batch"][1] is None
    assert "over 3 steps" in found["noise"][0]
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


def test_public_rows_that_cannot_be_used_are_not_said_of_the_training_rows(make_config, tmp_path) -> None:
    """Without the public classes the training rows cannot be judged, and were blamed."""
    broken, config = tmp_path / "broken.csv", make_config()
    broken.write_text("a,b\n1,2\n")
    for key, source in (("test", broken), ("validation", broken), ("test", tmp_path / "nothing.csv")):
        other = config.model_copy(update={"data": config.data.model_copy(update={key: str(source)})})
        found = [(text, good) for name, text, good in doctor.findings(other) if name == "data"]
        assert [good for _, good in found] == [False]
        assert found[0][0].startswith(f"{source}: ")


def test_training_rows_that_are_not_there_are_told(make_config, tmp_path) -> None:
    config = make_config(data={"train": str(tmp_path / "nothing.csv")})
    found = {name: (text, good) for name, text, good in doctor.findings(config)}
    assert found["data"][1] is False
    assert "no such file" in found["data"][0]


def test_what_the_test_set_can_show_and_what_makes_it_flatter(make_config, tmp_path) -> None:
    rows = sentences(200, 5)
    train, test = tmp_path / "mine.csv", tmp_path / "public.csv"
    write_csv(train, [(f"{text} {'the ' * (i % 20)}", "positive") for i, (text, _) in enumerate(rows)])
    write_csv(test, [(f"it {text}", label) for text, label in rows])
    data = {"train": str(train), "test": str(test)}
    found = told(make_config(data=data))
    assert found["test"][0].startswith(
        "200 records, by which a share of right answers is known to ± 6.9 points; without"
    )
    assert found["test"][1] is True
    assert found["data"][1] is None
    assert "of 1 nothing will be learned" in found["data"][0]
    write_csv(train, [(f"it {text}", "positive") for text, _ in rows[:50]])  # other labels, the same texts
    validation = write_csv(tmp_path / "v.csv", [(f"it {text}", label) for text, label in rows[100:]])
    found = told(make_config(data={**data, "validation": str(validation)}))
    assert found["test"][1] is found["validation"][1] is None
    assert "of the test set are among them, so the figure flatters" in found["validation"][0]


def test_the_table_shows_names_as_they_are(make_config, capsys) -> None:
    """rich would make a picture of ':train:', and a command of '[bold]'."""
    assert doctor.show("t", iter([("demo:train:", "[bold]demo:train: row 1", None)]))
    shown = capsys.readouterr().out
    assert "[bold]demo:train: row 1" in shown
    assert "mind" in shown

"""Federated distillation: teachers at the sites answer public queries, and nothing else leaves."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from flwr.app import Message, RecordDict

from confide.client.teach import answers, dealt
from confide.client.train import Work
from confide.common import wire
from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError, DataError, WireError
from confide.common.model.loading import model_of
from confide.common.model.memory import with_plan
from confide.common.modes.distillation import ANSWERS, answer_scale
from confide.common.privacy.mechanism import PoissonMechanism, PrivacyPlan
from confide.common.privacy.noise import from_grid, secure_generator
from confide.common.privacy.plan import privacy_plan
from confide.common.types import RoundTask
from confide.server.distillation import Distillation, answer_noise, on_simplex
from confide.server.report.render import read_report
from confide.simulations.local import LocalGrid
from confide.simulations.run import resume, simulate
from confide.simulations.sites import SimulatedSites, simulated_worker
from confide.tests.faults import no_noise
from confide.tests.rings import slow
from confide.tests.tiny import save_bert, sentences, write_csv

_Z = 5.5  # false alarm below 4e-8
PRIVATE = {"mode": "distributed", "epsilon": 8.0}


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "public.csv", [(text,) for text, _ in sentences(150, 9)], ("text",))


@pytest.fixture
def distil(make_config, public: Path):
    def make(**changes) -> RunConfig:
        distillation = {"public": str(public), "queries": 120, "teachers": 3, "steps": 60, **changes.pop("distill", {})}
        training = {"local_steps": 20, "learning_rate": 0.05, **changes.pop("training", {})}
        run = {"rounds": 1, **changes.pop("run", {})}
        return make_config(distill=distillation, training=training, run=run, **changes)

    return make


@pytest.mark.parametrize(
    "privacy",
    [
        {"mode": "none"},
        *slow({"mode": "local", "epsilon": 1000.0}),
        {"mode": "distributed", "epsilon": 200.0},
    ],  # 12 teachers
)
def test_the_student_learns_what_the_teachers_know(distil, privacy: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    no_noise(monkeypatch)
    config = distil(privacy=privacy, distill={"train": "lora", "steps": 100}, training={"local_steps": 40})
    report = read_report(simulate(config))
    assert report["before"]["accuracy"] < 0.7
    assert report["after"]["accuracy"] > 0.65  # 0.85 is usual, of 80 texts: 5 standard deviations below
    assert [site["steps"] for site in report["privacy"]["sites"]] == [1] * 4
    facts = report["distillation"]
    assert facts["teachers"] == 12
    assert facts["queries"] == 120
    if privacy["mode"] == "none":
        assert facts["noise"] == 0
    else:
        assert 0 < report["privacy"]["epsilon_spent"] <= privacy["epsilon"]
        assert "read by one teacher" in report["privacy"]["sampling"]
        assert facts["noise"] > 0.3
    page = (config.output / "report.html").read_text()
    assert "Teachers and student" in page


def test_one_record_moves_the_answers_by_at_most_the_clip_norm(distil) -> None:
    """For any record, whatever teacher it is with; and an empty teacher's first record is no exception."""
    config = resolve(distil(privacy=PRIVATE))
    worker = simulated_worker(config)
    queries = Distillation(config, model_of(config)).queries
    records, scale = worker.data.records, answer_scale(config)
    largest = 0.0
    for kept in ([], [3], list(range(40))):
        for extra in (7, 100, 200):
            both = []
            for indices in (np.array(kept, dtype=np.int64), np.array([*kept, extra])):
                task = RoundTask(1, {}, queries=queries)
                work = Work(with_plan(config), worker.model, records, indices, task)
                both.append(answers(work))
            largest = max(largest, float(np.linalg.norm(both[0] - both[1])))
            changed = np.abs(both[0] - both[1]).reshape(120, 2).sum(1)
            assert changed.max() <= 2 * scale + 1e-9
    assert 0 < largest <= config.privacy.clip + 1e-9


def test_one_record_more_moves_no_other_to_another_teacher() -> None:
    many = np.arange(50)
    for seed in range(20):
        keys, gone = np.random.default_rng(seed).integers(2**63, size=50).astype(np.uint64), 2 * seed
        with_it = dealt(many, keys, 7)
        without = dealt(np.delete(many, gone), np.delete(keys, gone), 7)
        assert [part[part != gone].tolist() for part in with_it] == [part.tolist() for part in without]
        assert sorted(np.concatenate(with_it)) == many.tolist()


def test_epsilon_against_the_gaussian_mechanism(distil) -> None:
    """All answers at once are one release of sensitivity √(2M) votes; its ε by PLD is a little below ours."""
    config = resolve(distil(privacy={"mode": "distributed", "epsilon": 3.0}))
    plan = privacy_plan(config, 999)
    assert plan is not None
    assert (plan.steps, plan.sampling_rate, plan.coordinates) == (1, 1.0, 240)
    per_vote = plan.noise_multiplier * plan.clip / answer_scale(config)  # standard deviation of the noise, in votes
    event = GaussianDpEvent(per_vote / (2 * config.distill.queries) ** 0.5)
    reference = PLDAccountant().compose(event).get_epsilon(plan.delta)
    assert 0.85 * plan.epsilon() < reference <= plan.epsilon() <= 3.0


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_the_noise_is_what_the_report_says(distil, mode: str) -> None:
    """Teachers that say nothing: what arrives is noise, of the stated size. A χ² test over 20 rounds' worth of it."""
    config = resolve(distil(privacy={"mode": mode, "epsilon": 8.0}))
    plan = privacy_plan(config, 1)
    assert plan is not None
    arrived = []
    for _ in range(20):
        total = np.zeros(plan.coordinates)
        for _ in range(config.clients):
            mechanism = PoissonMechanism(plan, secure_generator())
            mechanism.draw(0)
            if mode == "local":
                total += mechanism.release(np.zeros(plan.coordinates)) / config.clients
            else:
                share = mechanism.share(np.zeros(plan.coordinates), plan.clip)
                plan.pieces.remove(share, plan.pieces.released(mechanism.excess, 0), 0)  # nobody was absent
                total += from_grid(share, plan.clip, plan.grid) / plan.denominator
        arrived.append(total / answer_scale(config))
    found, expected = np.concatenate(arrived), answer_noise(config, plan) ** 2
    assert abs(found.var() / expected - 1) < _Z * (2 / found.size) ** 0.5


def test_sites_may_have_teachers_of_other_backbones(distil, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = save_bert(folder)
    config = distil(distill={"backbones": (str(other), distil().model.backbone)})
    assert read_report(simulate(config))["after"]["accuracy"] > 0.75
    worker = simulated_worker(resolve(config))
    sites = SimulatedSites(worker.config)
    task = RoundTask(1, {ANSWERS: np.zeros((120, 2))}, queries=Distillation(worker.config, worker.model).queries)
    for number in (0, 1):
        worker.train(number, task, worker.account(sites.site(number), number, 0))
    assert list(worker._others) == [str(other)]


def test_only_noised_answers_leave(distil, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mechanism's release made constant, no message of a site depends on its records."""

    def constant(self, clipped_sum: np.ndarray, clip: float) -> np.ndarray:
        self._awaiting_release = False
        return np.zeros(self.plan.coordinates, dtype=np.int64)

    sent: dict[str, list[str]] = {"first": [], "second": []}
    handle = LocalGrid._handle
    monkeypatch.setattr(PoissonMechanism, "share", constant)
    for name, seed in (("first", 1), ("second", 2)):

        def watched(self, message: Message, name: str = name) -> Message:
            reply = handle(self, message)
            content = reply.content
            arrays = {key: array.data for record in content.array_records.values() for key, array in record.items()}
            facts = {key: dict(record) for key, record in content.config_records.items()}
            sent[name].append(repr((arrays, facts, {k: dict(v) for k, v in content.metric_records.items()})))
            return reply

        rows = write_csv(distil().output.parent / f"{name}.csv", sentences(240, seed))
        with monkeypatch.context() as patched:
            patched.setattr(LocalGrid, "_handle", watched)
            simulate(
                distil(
                    run={"output": str(distil().output.parent / name), "id": "same"},
                    data={"train": str(rows)},
                    privacy={"mode": "local", "epsilon": 8.0},
                    engine={"workers": 1},
                )
            )
    assert len(sent["first"]) == 8
    assert sent["first"] == sent["second"]


def test_a_task_without_the_queries_is_refused_and_charges_nothing(distil) -> None:
    config = resolve(distil(privacy=PRIVATE))
    worker = simulated_worker(config)
    for arrays, queries, why in (
        ({ANSWERS: np.zeros((120, 2))}, ("one",), "1 queries in the task"),
        ({ANSWERS: np.zeros((120, 3))}, ("q",) * 120, "shape"),
        (worker.model.initial, ("q",) * 120, "not the 1 of this model"),
    ):
        with pytest.raises(WireError, match=why):
            worker.check(RoundTask(1, arrays, queries=queries))
    content = RecordDict({wire.ARRAYS: wire.arrays_to_record({ANSWERS: np.zeros((1, 2))})})
    facts = wire.task_config()
    facts[wire.ROUND] = 1
    content[wire.CONFIG] = facts
    from flwr.app import ConfigRecord

    content[wire.QUERIES] = ConfigRecord({wire.TEXTS: [1, 2]})
    with pytest.raises(WireError, match="not texts"):
        wire.decode_task(content)


def test_it_goes_on_after_the_answers(distil, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while the student learns: the answers are kept, nobody is asked again, and the model is the same."""
    whole = simulate(distil())
    expected = json.loads((whole / "report.json").read_text())
    other = distil(run={"output": str(whole.parent / "again")})
    real = Distillation.student

    def dies(self, state, *options):
        if state[ANSWERS].any() and options == ():
            raise KeyboardInterrupt
        return real(self, state, *options)

    with monkeypatch.context() as patched:
        patched.setattr(Distillation, "student", dies)
        with pytest.raises(KeyboardInterrupt):
            simulate(other)
    assert not (other.output / "report.json").exists()
    found = json.loads((resume(other.output) / "report.json").read_text())
    assert found["after"] == expected["after"]
    assert [site["steps"] for site in found["privacy"]["sites"]] == [1] * 4


def test_nearest_distributions() -> None:
    rng = np.random.default_rng(0)
    grid = np.array([p for p in itertools.product(np.linspace(0, 1, 41), repeat=3) if abs(sum(p) - 1) < 1e-9])
    rows = np.concatenate([rng.normal(size=(30, 3)), [[0.2, 0.3, 0.5], [0, 0, 0], [5, 5, -9]]])
    found = on_simplex(rows)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found >= 0).all()
    for row, best in zip(rows, found, strict=True):
        assert ((grid - row) ** 2).sum(1).min() >= ((best - row) ** 2).sum() - 1e-12
    np.testing.assert_allclose(found[30], [0.2, 0.3, 0.5])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"run": {"rounds": 2}}, "run.rounds: 2 received"),
        ({"model": {"task": "causal-lm"}}, "give a text one class"),
        ({"privacy": {"mode": "client", "epsilon": 8.0, "sampling_rate": 0.5}}, "which is one teacher"),
        ({"privacy": {**PRIVATE, "sampling_rate": 0.1}}, "privacy.sampling_rate: 0.1 received"),
        ({"privacy": {**PRIVATE, "declared_examples": 10}}, "privacy.declared_examples: 10 received"),
        ({"server": {"aggregation": "trimmedmean"}}, "answers are added up"),
        ({"server": {"max_norm": 1.0}}, "server.max_norm: 1.0 received"),
        ({"attack": {"kind": "signflip", "byzantine": 1}}, "attack.kind: 'signflip'"),
        ({"audit": {"canaries": 10}, "privacy": PRIVATE}, "audit: {canaries = 10} received"),
        ({"distill": {"public": None}}, "received with no distill.public"),
    ],
)
def test_what_cannot_be_is_refused(distil, changes: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        distil(**changes)


def test_too_few_public_texts(distil) -> None:
    config = distil(distill={"queries": 500})
    with pytest.raises(DataError, match=r"150 texts, distill\.queries is 500"):
        simulate(config)
    assert not config.output.exists()


def test_more_sites_bear_less_noise_from_each(distil) -> None:
    """`distributed`: the noise on a share falls with the number of teachers."""
    config = resolve(distil(privacy=PRIVATE))
    plan = privacy_plan(config, 1)
    assert isinstance(plan, PrivacyPlan)
    more = config.model_copy(update={"distill": config.distill.model_copy(update={"teachers": 30})})
    other = privacy_plan(more, 1)
    assert other is not None
    assert answer_noise(more, other) == pytest.approx(answer_noise(config, plan) / 10)
    assert replace(plan, denominator=1.0) == replace(other, denominator=1.0)

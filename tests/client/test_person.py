"""The person as the unit: every row of a person, drawn together and clipped once; neighbours differ by a person."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from confide.client import train
from confide.client.deploy.own_rows import persons_told
from confide.client.site import Site
from confide.client.train import Work
from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig, SiteConfig
from confide.common.data import sources
from confide.common.data.augmentation import Draw
from confide.common.data.record_keys import record_keys
from confide.common.data.sources import read_checked, read_rows
from confide.common.errors import ConfigError, DataError, PolicyError, PrivacyError, RoundError
from confide.common.ledger.chain import SiteKey
from confide.common.ledger.ledger import Ledger
from confide.common.ledger.verify import audit, find_ledgers
from confide.common.model.loading import model_of
from confide.common.model.memory import with_plan
from confide.common.model.per_sample import hooked
from confide.common.model.proof import proved_shapes
from confide.common.privacy.claims import several_sites
from confide.common.privacy.explain import in_words, meanings
from confide.common.privacy.plan import privacy_plan
from confide.common.types import RoundTask, Rows
from confide.server.report import read_report
from confide.simulations.audit import audit_canaries, with_canaries
from confide.simulations.canaries import Planted
from confide.simulations.run import simulate
from confide.simulations.sites import SimulatedSites, simulated_data, simulated_worker
from confide.tests.tiny import BAD, GOOD, NEUTRAL

PERSONS = {"mode": "local", "epsilon": 8.0, "sampling_rate": 0.2, "declared_persons": 60}


def write_persons(path: Path, persons: int, seed: int = 0) -> Path:
    """Persons with 1 to 20 rows each (Zipf), of texts of many lengths."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["patient", "text", "label"])
        for person in range(persons):
            for _ in range(min(20, int(rng.zipf(1.6)))):
                good = int(rng.integers(2))
                words = [*rng.choice(NEUTRAL, int(rng.integers(1, 20))).tolist(), str(rng.choice([BAD, GOOD][good]))]
                out.writerow([f"p{person:03d}", " ".join(words), ["negative", "positive"][good]])
    return path


@pytest.fixture
def of_persons(make_config, tmp_path: Path):
    """A run whose unit is the person."""
    source = write_persons(tmp_path / "persons.csv", 60)

    def make(**changes) -> RunConfig:
        data = {"train": str(source), "person": "patient", **changes.pop("data", {})}
        privacy = {**PERSONS, **changes.pop("privacy", {})}
        return make_config(
            data=data, privacy=privacy, run={"rounds": 2, "id": "r", **changes.pop("run", {})}, **changes
        )

    return make


def whose(rows: Rows) -> list[str]:
    assert rows.person is not None
    return rows.person.tolist()


def work_of(config: RunConfig) -> Work:
    config = with_plan(resolve(config))
    model = model_of(config)
    data = simulated_data(config, model)
    return Work(config, model, data.records, np.sort(np.concatenate(data.parts)), RoundTask(1, model.initial))


def blocks_of(work: Work, persons: list[np.ndarray], clip: float = 1.0) -> tuple[np.ndarray, list[np.ndarray]]:
    """The sum, and the mean gradients (P, d) of each block of persons that was clipped."""
    seen: list[np.ndarray] = []
    clipped = train.clipped_rows
    work.model.set(work.task.adapter)
    shapes = proved_shapes(work.config, work.model)
    with hooked(work.model), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "clipped_rows", lambda parts, c: seen.append(parts[0].numpy()) or clipped(parts, c))
        total = train._persons_sum(work, persons, shapes, Draw(7, np.random.default_rng(0)), clip)
    return total, seen


def parts_of(work: Work, persons: list[np.ndarray], clip: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The sum, and the mean gradients (P, d) that were clipped."""
    total, seen = blocks_of(work, persons, clip)
    return total, np.concatenate(seen)


def test_a_persons_part_is_a_function_of_their_own_rows(of_persons) -> None:
    work = work_of(of_persons(data={"person_rows": 256}))
    persons = work.persons()
    assert len(persons) == 60
    assert sorted(np.concatenate(persons)) == work.indices.tolist()
    total, together = parts_of(work, persons)
    rng = np.random.default_rng(1)
    for _ in range(5):
        order = rng.permutation(60)[: int(rng.integers(1, 60))]
        _, some = parts_of(work, [persons[i] for i in order])
        np.testing.assert_array_equal(some, together[order])  # the same bits, whoever else is there
    for number in (0, 13, 59):  # one person more or less moves the sum by at most C
        less, _ = parts_of(work, persons[:number] + persons[number + 1 :])
        assert np.linalg.norm(total - less) <= 1.0


def test_a_persons_part_is_the_mean_gradient_of_their_rows_clipped_once(of_persons) -> None:
    """Against gradients taken record by record without hooks."""
    work = work_of(of_persons(data={"person_rows": 256}))
    persons = sorted(work.persons(), key=len)[-3:]
    clip = 0.01
    total, means = parts_of(work, persons, clip)
    work.model.set(work.task.adapter)
    expected = []
    for rows in persons:
        one = np.zeros(means.shape[1])
        for row in rows:
            loss = work.model.losses(work.records, np.array([row])).sum()
            grads = torch.autograd.grad(loss, list(work.model.trained.values()))
            one += torch.cat([grad.flatten() for grad in grads]).double().numpy() / len(rows)
        expected.append(one)
    np.testing.assert_allclose(means, expected, atol=1e-6)
    clipped = [one * min(1.0, clip / np.linalg.norm(one)) for one in expected]
    np.testing.assert_allclose(total, np.sum(clipped, 0), atol=1e-6)


def test_of_a_person_with_many_rows_some_are_drawn_afresh(of_persons, monkeypatch) -> None:
    work = work_of(of_persons(data={"person_rows": 2}))
    most = max(work.persons(), key=len)
    assert len(most) > 4
    read: list[frozenset] = []
    losses = Work.losses

    def noting(self, part, *rest):
        read.append(frozenset(part.tolist()))
        return losses(self, part, *rest)

    monkeypatch.setattr(Work, "losses", noting)
    work.model.set(work.task.adapter)
    shapes, chosen = proved_shapes(work.config, work.model), set()
    with hooked(work.model):
        for _ in range(30):
            read.clear()
            train._persons_sum(work, [most], shapes, Draw(7, np.random.default_rng(0)), 1.0)
            taken = frozenset().union(*read)
            assert len(taken) == 2
            chosen.add(taken)
    assert len(chosen) > 3  # 30 draws of one pair among ten or more: chance below 1e-10


def test_a_batch_that_fails_costs_a_row_and_no_other_person(of_persons, monkeypatch) -> None:
    work = work_of(of_persons(data={"person_rows": 256}))
    persons = work.persons()
    _, before = parts_of(work, persons)
    bad = int(persons[5][0])
    losses = Work.losses

    def failing(self, part, *rest):
        if bad in part.tolist():
            raise ValueError("a row that cannot be computed")
        return losses(self, part, *rest)

    monkeypatch.setattr(Work, "losses", failing)
    _, after = parts_of(work, persons)
    others = [i for i in range(60) if i != 5]
    np.testing.assert_array_equal(after[others], before[others])


def test_persons_in_blocks_are_the_same_sum(of_persons, monkeypatch) -> None:
    work = work_of(of_persons(data={"person_rows": 256}))
    whole, _ = parts_of(work, work.persons())
    monkeypatch.setattr(train, "_HELD", 7 * len(whole))
    parts, seen = blocks_of(work, work.persons())
    assert [len(block) for block in seen] == [7] * 8 + [4]
    np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_a_run_is_charged_for_persons(of_persons, tmp_path: Path, mode: str) -> None:
    ledgers = tmp_path / "ledgers"
    config = of_persons(privacy={"mode": mode}, engine={"ledger": str(ledgers)})
    report = json.loads((simulate(config) / "report.json").read_text())
    assert report["privacy"]["unit"].startswith("person: one person with all their records")
    assert "One person with all their records at a site is protected with ε" in report["privacy"]["statement"]
    assert report["privacy"]["epsilon_spent"] <= 8
    outcome = audit(find_ledgers(ledgers)[0])
    assert outcome.holds
    assert outcome.datasets[0]["unit"] == ["person"]
    page = Path(report["config"]["run"]["output"]) / "report.html"
    assert "person" in page.read_text()


def test_examples_and_persons_on_one_data_set_do_not_add_up(of_persons, make_config, local, tmp_path: Path) -> None:
    ledgers = str(tmp_path / "ledgers")
    simulate(of_persons(engine={"ledger": ledgers}, privacy={"epsilon": 1.0}))
    policy = tmp_path / "ledgers" / "site.toml"
    policy.write_text(policy.read_text().replace("epsilon = 1.0", "epsilon = 100.0"))
    persons = of_persons()
    mixed = make_config(
        data={"train": persons.data.train},
        privacy={**local, "epsilon": 1.0},
        engine={"ledger": ledgers},
        run={"rounds": 2, "id": "other", "output": str(tmp_path / "other")},
    )
    with pytest.raises(RoundError, match="charged per person so far, asked per example; ε of two units do not add up"):
        simulate(mixed)


@pytest.mark.parametrize(
    "partition",
    [
        {"kind": "iid", "clients": 5},
        {"kind": "dirichlet", "clients": 4, "alpha": 0.4, "empty": "redistribute"},
        {"kind": "shards", "clients": 4},
    ],
)
def test_a_partition_keeps_persons_whole(of_persons, partition: dict) -> None:
    config = resolve(of_persons(data={"partition": partition}))
    model = model_of(config)
    data = simulated_data(config, model)
    assert data.records.person is not None
    found = [set(data.records.person[part].tolist()) for part in data.parts]
    assert sum(map(len, found)) == len(set().union(*found)) == 60
    assert sorted(np.concatenate(data.parts)) == list(range(sum(map(len, data.parts))))


def test_a_column_that_splits_a_person_is_refused(of_persons) -> None:
    config = resolve(of_persons(data={"partition": {"kind": "natural", "column": "label", "clients": None}}))
    with pytest.raises(DataError, match="sends rows of one person to several sites"):
        simulated_data(config, model_of(config))


@pytest.mark.parametrize("nobody", ["", "  ", "nan", "NaN", "None", "NA", "unknown", "-", "#N/A"])
def test_a_row_of_nobody_is_refused_by_its_line_and_contributes_nothing_at_a_site(
    of_persons, tmp_path: Path, nobody: str
) -> None:
    config = of_persons()
    source = Path(str(config.data.train))
    lines = source.read_text().splitlines()
    count = len(lines) - 1
    source.write_text("\n".join([*lines[:3], f'{nobody},"the film was good",positive', *lines[3:]]) + "\n")
    with pytest.raises(DataError, match=r"row 4.*patient.*no person is named; say whose the row is"):
        read_rows(str(source), config.data, ["negative", "positive"], whose=True)
    checked = read_checked(str(source), config.data, ["negative", "positive"])
    assert len(checked.rows) == count
    assert [problem.row for problem in checked.problems] == [4]


def test_who_a_row_is_of_is_part_of_the_content(of_persons, tmp_path: Path) -> None:
    """A run whose rows went to other persons since is another; the same persons under other columns are the same."""
    config = of_persons()
    source = Path(str(config.data.train))
    first = read_checked(str(source), config.data, None)
    source.write_text(source.read_text().replace("p001", "p002"))
    second = read_checked(str(source), config.data, None)
    assert first.digest != second.digest
    assert first.identity == second.identity


def test_what_one_person_costs_is_bounded(of_persons, tmp_path: Path, monkeypatch) -> None:
    """A person of very many rows: some are read, which ones is a function of that person's rows, others lose none."""
    monkeypatch.setattr(sources, "PERSON_MOST", 5)
    config = of_persons()
    source = Path(str(config.data.train))
    before = sources.of_persons(read_checked(str(source), config.data, ["negative", "positive"]).rows)
    counts = Counter(whose(before))
    assert max(counts.values()) == 5
    text = source.read_text()
    source.write_text(text + "".join(f"p999,the film was good {'very ' * i},positive\n" for i in range(40)))
    after = sources.of_persons(read_checked(str(source), config.data, ["negative", "positive"]).rows)
    assert Counter(whose(after)) == counts + Counter({"p999": 5})
    assert [line for line, who in zip(after.text, whose(after), strict=True) if who != "p999"] == before.text


@pytest.mark.parametrize(
    ("first", "second", "persons"),
    [
        (7, 7.0, 1),
        ("7", "7.0", 1),
        ("7", f"7.{20 * '0'}", 1),
        ("José", "Jose\u0301", 1),
        ("p1 ", " p1", 1),
        ("p1", "P1", 2),
        ("7", "007", 2),
    ],
)
def test_one_person_written_two_ways_is_one_unit(of_persons, tmp_path: Path, first, second, persons: int) -> None:
    """Or whoever is written both ways could move the sum by 2C."""
    rows = [{"patient": who, "text": "the film was good", "label": "positive"} for who in (first, second)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_checked(str(source), of_persons().data, ["negative", "positive"]).rows
    assert len(set(whose(found))) == persons


def test_a_row_of_nobody_changes_no_other_rows_randomness(of_persons, tmp_path: Path) -> None:
    """A column of whole numbers with a gap is written as floats by some; the keys of all other rows stay the same."""
    import pyarrow as pa
    import pyarrow.parquet

    data, keys, persons = of_persons().data, [], []
    for name, ids in (("whole", [1, 2, 2]), ("gap", [1.0, 2.0, 2.0, None])):
        count = len(ids)
        table = {"patient": ids, "text": ["the film was good", "a sad story", "it was fine", "very dark"][:count]}
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pa.table({**table, "label": ["positive"] * count}), path)
        rows = read_checked(str(path), data, ["negative", "positive"]).rows
        keys.append(record_keys(rows, b"secret").tolist())
        persons.append(whose(rows))
    assert keys[0] == keys[1]
    assert persons[0] == persons[1] == ["1", "2", "2"]


def test_the_check_shows_how_many_rows_persons_have_and_who_may_be_one(tmp_path: Path) -> None:
    people = np.array(["a", "A", "7", "007", "b", "b", "b", "c"], dtype=object)
    told = persons_told(people)
    assert told.startswith("6 persons (rows a person: 1: 5, 3-4: 1; 2 differ from another by case, blanks, marks or")
    assert not any(f" {who}" in told for who in ("007", "b ", "c "))
    assert persons_told(None) == ""


def site(**changes) -> Site:
    table = {"datasets": {"default": {"epsilon": 8.0, "source": "a.csv", **changes.pop("dataset", {})}}}
    key = SiteKey.new()
    return Site("clinic", SiteConfig.parse({**table, **changes}, "site.toml"), Ledger.in_memory("clinic", key), {})


def test_a_site_says_for_whom_it_lets_runs_ask(of_persons, make_config, local) -> None:
    run = of_persons()
    with pytest.raises(PolicyError, match=r"names no column of persons.*set person = .* in \[datasets.default\]"):
        site().admit(run)
    site(dataset={"person": "patient"}).admit(run)
    with pytest.raises(PolicyError, match="unit of privacy person; allowed: example, client"):
        site(dataset={"person": "patient"}, policy={"units": ["example", "client"]}).admit(run)
    examples = make_config(privacy=local, run={"id": "r"})
    with pytest.raises(PolicyError, match="unit of privacy example; allowed: person"):
        site(policy={"units": ["person"]}).admit(examples)
    site(policy={"units": ["person"], "modes": ["none"]}).admit(make_config(run={"id": "r"}))


def test_words_say_what_it_means(of_persons, make_config, local) -> None:
    config = resolve(of_persons())
    plan = privacy_plan(config, 1000)
    assert plan is not None
    assert plan.denominator == pytest.approx(0.2 * 60 / config.clients)
    words = " ".join(in_words(config, plan))
    assert "for one person at one site" in words
    assert "with at most 8 of their records, drawn afresh" in words
    assert "two runs like this one need a limit of" in words
    assert "one person's records live at one site" in several_sites(config, plan)
    record, person, whole = meanings(config, plan)
    assert record.epsilon == person.epsilon == plan.epsilon()
    assert whole.epsilon == np.inf
    example = resolve(make_config(privacy=local))
    plan = privacy_plan(example, 1000)
    assert plan is not None
    record, person, whole = meanings(example, plan)
    assert record.epsilon < person.epsilon
    assert person.whose == "a person with 8 records"


def test_records_of_nobody_are_not_trained_on_as_persons(of_persons, make_config) -> None:
    work = work_of(of_persons())
    from dataclasses import replace

    with pytest.raises(PrivacyError, match="do not say whose they are"):
        replace(work, records=replace(work.records, person=None)).persons()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"privacy": {"mode": "client"}}, "its unit is a site with all that it holds"),
        ({"privacy": {"declared_persons": None}}, "it is the public number of persons"),
        ({"privacy": {"declared_examples": 500}}, "declared_persons takes its place"),
        ({"data": {"limit": 40}}, "push rows of several others out"),
        ({"data": {"person": None}, "privacy": {"declared_examples": 500}}, "no column says whose a row is"),
    ],
)
def test_what_does_not_go_with_persons_is_refused(of_persons, changes: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        of_persons(**changes)


@pytest.mark.parametrize("mode", [pytest.param("local", marks=pytest.mark.slow), "distributed"])
def test_canary_persons_are_audited(of_persons, mode: str) -> None:
    """Several rows a canary, in or out together; one person more moves the sum by at most C."""
    run = of_persons(privacy={"mode": mode, "sampling_rate": 0.5}, run={"rounds": 3, "id": None})
    found = audit_canaries(with_canaries(run, 40, 40, None), control=False)
    assert found["clipped_records"]["canaries"] == 40
    assert found["sensitivity"]["holds"]
    assert found["sensitivity"]["canaries"] > 1
    for kind in ("gradient", "clipped_records", "records"):
        assert found[kind]["epsilon_steinke"] <= 8


def test_a_canary_persons_rows_are_in_or_out_together(of_persons) -> None:
    config = resolve(of_persons(audit={"records": 40, "canaries": 8}))
    worker = simulated_worker(config)
    site = SimulatedSites(config).site(1)
    account = worker.account(site, 1, 0)
    planted = Planted(config)
    records = planted.among(worker.data.records, worker.model)
    assert records.person is not None
    rows, _ = planted.of_site(account, worker.model, 1, len(worker.data.records))
    persons, counts = np.unique(records.person[rows], return_counts=True)
    assert (persons < 0).all()
    assert (counts == 3).all()
    other, _ = planted.of_site(
        worker.account(SimulatedSites(config).site(2), 2, 0), worker.model, 2, len(worker.data.records)
    )
    assert not set(records.person[other]) & set(persons)


@pytest.mark.slow
def test_fifty_audits_of_canary_persons_never_exceed_the_claimed_epsilon(of_persons) -> None:
    for number in range(50):
        privacy = {"mode": ("local", "distributed")[number % 2], "sampling_rate": 0.3}
        run = of_persons(privacy=privacy, run={"rounds": 2, "id": None, "seed": number})
        found = read_report(simulate(with_canaries(run, 200, 40, None), overwrite=True))["audit"]
        for kind in ("gradient", "clipped_records", "records"):
            assert found[kind]["epsilon_steinke"] <= 8
            assert found[kind]["epsilon_gdp"] <= 8

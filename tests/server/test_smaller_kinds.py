"""Students and pruned models of tags and numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from confide.common.config.run import RunConfig
from confide.server.report import read_report
from confide.server.ship.answers import Compared, answer_rows, apart, stacked
from confide.server.ship.compress import make_student, make_variants
from confide.server.ship.distil import DistillationConfig, _Distillation, _pairs, distil, other_backbone, shallow
from confide.server.ship.factors import factorise
from confide.server.ship.finished import FinishedRun, TorchModel
from confide.server.ship.prune import importance, layers_of, least_needed_layers, prune
from confide.server.ship.runtime import VARIANTS, OnnxModel
from confide.simulations.run import simulate
from confide.tests.rings import slow
from confide.tests.server.test_ship import linear
from confide.tests.tiny import OTHER, PEOPLE, PLACES, run_content, sentences, write_conll, write_csv

TAGS, NUMBERS = "token-classification", "regression"
_RNG = np.random.default_rng(5)
PUBLIC = {
    TAGS: [" ".join(_RNG.choice([*OTHER, *PEOPLE, *PLACES, "new"], _RNG.integers(3, 8))) for _ in range(200)],
    NUMBERS: [text for text, _ in sentences(200, 9)],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bert: Path, wordpiece: Path) -> dict[str, FinishedRun]:
    made = {}
    for task, backbone in ((TAGS, wordpiece), (NUMBERS, bert)):
        place = tmp_path_factory.mktemp(task)
        content = run_content(backbone, place, place / "run")
        content["model"] |= {"task": task, "train": "full"}
        content["run"]["rounds"] = 12
        content["training"] = {"learning_rate": 0.01, "local_steps": 4, "batch_size": 32}
        for name, count in (("train", 200), ("test", 40)):
            rows = [(text, 10 + len(text)) for text, _ in sentences(count, count)]
            conll = task == TAGS
            path = (
                write_conll(place / f"{name}.conll", count, count) if conll else write_csv(place / f"{name}.csv", rows)
            )
            content["data"][name] = str(path)
        made[task] = FinishedRun(simulate(RunConfig.parse(content, "test")), task)
    return made


def distance(teacher: TorchModel, student: TorchModel, task: str) -> float:
    wanted, found = (stacked(answer_rows(model, PUBLIC[task])) for model in (teacher, student))
    return float(apart(wanted, found, teacher.reads))


@pytest.mark.parametrize("task", [NUMBERS, *slow(TAGS)])
def test_a_student_learns_its_teachers_answers(runs, task: str) -> None:
    teacher = runs[task].merged()
    student = shallow(teacher, 1)
    with torch.no_grad():
        linear(student.module.get_submodule("classifier"), "head").weight.zero_()
    before, whole = distance(teacher, student, task), stacked(answer_rows(teacher, PUBLIC[task]))
    distil(
        teacher,
        student,
        PUBLIC[task],
        DistillationConfig(steps=80, batch=32, learning_rate=3e-3, hidden=0.1),
        lambda *_: None,
    )
    assert distance(teacher, student, task) < 0.3 * before
    np.testing.assert_array_equal(stacked(answer_rows(teacher, PUBLIC[task])), whole)


@pytest.mark.parametrize("task", [TAGS, NUMBERS])
def test_a_step_has_the_same_gradient_however_it_is_cut(runs, task: str) -> None:
    teacher = runs[task].merged()
    student = shallow(teacher, 1)
    for p in student.module.parameters():
        p.requires_grad_()
    with torch.no_grad():
        linear(student.module.get_submodule("classifier"), "head").weight.mul_(0.5)
    both = Compared(teacher, student, PUBLIC[task][:40])
    step = _Distillation(teacher, student, both, _pairs(teacher, student), DistillationConfig(hidden=0.1))
    chosen = both.texts
    assert sorted(np.concatenate(both.by_length(chosen))) == sorted(chosen)
    found = []
    for parts in ([chosen], [chosen[:5], chosen[5:6], chosen[6:]], np.split(chosen, len(chosen))):
        student.module.zero_grad()
        loss = sum(step.add_gradient(part, chosen) for part in parts)
        grads = [p.grad.flatten() for p in student.module.parameters() if p.grad is not None]
        found.append((loss, torch.cat(grads)))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-4)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-5)


def test_words_are_compared_by_the_tokens_that_answer_for_them(runs, bert: Path) -> None:
    """By hand: a student with other tokens, a teacher that reads four tokens only."""
    teacher = runs[TAGS].merged()
    teacher.max_length = 4  # two of them marks
    student = other_backbone(teacher, str(bert), "mean", 0)
    student.max_length = 64
    both = Compared(teacher, student, ["newer ann sees", "ann in york", "oslo"])
    # "newer" is two pieces: of the first text the teacher reads one word, of the second two
    assert [len(both.wanted(np.array([i]))) for i in range(3)] == [1, 2, 1]
    outputs = torch.arange(3 * 5 * 2, dtype=torch.float32).view(3, 5, 2)
    found = both.found(outputs, np.array([1, 0]))
    np.testing.assert_array_equal(found, [[0, 1], [2, 3], [10, 11]])  # the student has no marks
    np.testing.assert_allclose(both.wanted(np.array([1])), answer_rows(teacher, ["ann in york"])[0][:2], rtol=1e-5)
    with torch.no_grad():
        same = apart(found, found + 3, teacher.reads)
        other = apart(found, found.flip(1), teacher.reads, 2.0)
    odds = torch.tensor([0.0, 0.5]).softmax(0)  # at temperature 2
    assert float(same) == pytest.approx(0, abs=1e-6)
    assert float(other) == pytest.approx(4 * float((odds * (odds / odds.flip(0)).log()).sum()), rel=1e-5)


@pytest.mark.parametrize("task", [TAGS, NUMBERS])
def test_what_nobody_needs_is_cut_first_and_changes_nothing(runs, task: str) -> None:
    model = runs[task].merged()
    for layer in layers_of(model.module):
        with torch.no_grad():
            linear(layer, "attention.output.dense").weight[:, :16] = 0  # the first of two heads
            linear(layer, "output.dense").weight[:, ::2] = 0  # every other neuron
    texts = PUBLIC[task][:30]
    before = stacked(answer_rows(model, texts))
    heads, neurons = importance(model, texts)
    assert all(float(one[0]) == 0 < float(one[1]) for one in heads)
    assert all(float(one[::2].max()) == 0 for one in neurons)
    prune(model, texts, heads=0.5, neurons=0.5)
    np.testing.assert_allclose(stacked(answer_rows(model, texts)), before, rtol=1e-3, atol=1e-4)
    useless = runs[task].merged()
    last = layers_of(useless.module)[1]
    with torch.no_grad():
        for name in ("attention.output.dense", "output.dense"):
            linear(last, name).weight.zero_()
            linear(last, name).bias.zero_()  # what is left is a norm of what was normed
    assert least_needed_layers(useless, texts, 1) == [0]
    factorise(useless, texts, 0.9)
    assert answer_rows(useless, texts)[0].shape == answer_rows(runs[task].merged(), texts)[0].shape


@pytest.mark.slow
def test_variants_of_students_and_pruned_models(runs, bert: Path, confide, tmp_path: Path) -> None:
    folder = runs[TAGS].folder
    settings = DistillationConfig(steps=5, batch=16)
    assert make_student(folder, str(bert), PUBLIC[TAGS], settings)[1] == f"student-{bert.name}-int8"
    public = write_csv(tmp_path / "public.csv", [(text,) for text in PUBLIC[TAGS]], ("text",))
    code, out, err = confide("distill", folder, "--public", public, "--student", "1", "--steps", "40")
    assert (code, "student-1-int8" in out) == (0, True), err
    assert make_variants(folder, public=PUBLIC[TAGS], layers=1, neurons=0.5, settings=settings)[-1] == "pruned-int8"
    code, out, err = confide("compress", folder)
    assert code == 0, err
    facts = read_report(folder)["compression"]
    rows = {row["name"]: row for row in facts["variants"]}
    assert facts["measure"] == "span F1"
    assert rows["student-1-onnx"]["mb"] < rows["onnx"]["mb"]
    assert rows["student-1-onnx"]["accuracy"] > 0.5 * rows["torch"]["accuracy"] > 0.2
    assert OnnxModel(folder / VARIANTS / "pruned-int8").task == TAGS
    numbers = runs[NUMBERS].folder
    make_student(numbers, "1", PUBLIC[NUMBERS], settings)
    whole, student = runs[NUMBERS].merged(), OnnxModel(numbers / VARIANTS / "student-1-onnx")
    assert student.scale == pytest.approx(whole.scale)
    assert student.answers(runs[NUMBERS].rows(4))[0].keys() == {"number"}

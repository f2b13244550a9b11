"""From run to variants: the same answers, smaller, measured, recommended; and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from confide.common.errors import ConfigError, ModelError
from confide.common.model.adapter import load_base
from confide.server.report import read_report
from confide.server.ship.card import card
from confide.server.ship.compress import Limits, make_student, make_variants, measure, recommended
from confide.server.ship.distil import DistillationConfig, distil, shallow
from confide.server.ship.factors import factored, factorise
from confide.server.ship.finished import FinishedRun
from confide.server.ship.goals import split
from confide.server.ship.prune import importance, keep_layers, layers_of, least_needed_layers, prune, spread
from confide.server.ship.runtime import VARIANTS, OnnxModel, load_variant
from confide.simulations.run import simulate
from confide.tests.tiny import run_content, save_data, sentences

PUBLIC = [text for text, _ in sentences(300, 77)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    """A finished run over a tokenizer of subwords; tests that change it make copies."""
    from confide.common.config.run import RunConfig

    place = tmp_path_factory.mktemp("ship")
    content = run_content(bert, save_data(place), place / "run")
    content["run"]["rounds"] = 12
    content["training"]["learning_rate"] = 0.05
    return simulate(RunConfig.parse(content, "test"))


@pytest.fixture(scope="module")
def run(folder: Path) -> FinishedRun:
    return FinishedRun(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, tmp_path / "run"))


def linear(module: nn.Module, name: str) -> nn.Linear:
    part = module.get_submodule(name)
    assert isinstance(part, nn.Linear)
    return part


@pytest.mark.parametrize("train", ["lora", "head", "full"])
def test_the_merged_model_answers_as_peft_does(make_config, train: str) -> None:
    """Against the adapter loaded by PEFT itself; the shared weights stay what they were."""
    folder = simulate(make_config(model={"train": train}, run={"rounds": 1}))
    found = FinishedRun(folder)
    before = [p.detach().clone() for p in found.model.template.parameters()]
    merged = found.merged()
    oracle = PeftModel.from_pretrained(load_base(folder / "adapter"), str(folder / "adapter")).eval()
    tokens, mask = merged.batch(merged.ids(PUBLIC[:9]))
    with torch.no_grad():
        wanted = oracle(input_ids=tokens, attention_mask=mask).logits
    np.testing.assert_allclose(merged.logits(PUBLIC[:9]), wanted, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name or "stand_in" in name for name, _ in merged.module.named_parameters())
    after = list(found.model.template.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.slow
def test_variants_answer_as_the_model_and_need_no_torch(copy: Path) -> None:
    assert make_variants(copy) == ["onnx", "int8"]
    torch_model = FinishedRun(copy).merged()
    texts = [*PUBLIC[:40], "good", " ".join(["film"] * 200)]  # one word, and more than is read
    exact = OnnxModel(copy / VARIANTS / "onnx").logits(texts)
    np.testing.assert_allclose(exact, torch_model.logits(texts), rtol=1e-3, atol=1e-4)
    small = OnnxModel(copy / VARIANTS / "int8").logits(texts)
    assert (small.argmax(1) == exact.argmax(1)).mean() > 0.9
    script = (
        "import sys; from pathlib import Path; from confide.server.ship.runtime import OnnxModel\n"
        f"print(OnnxModel(Path({str(copy / VARIANTS / 'int8')!r})).logits(['a good film']).argmax(), "
        "'torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(small.shape[1] - 1), "False"]  # positive is the second of two


@pytest.mark.slow
def test_misspelled_words_are_read_alike_by_every_form_of_a_model(make_config, bert: Path, tmp_path: Path) -> None:
    """Torch, variants, a student's own tokenizer, maps and the card; without torch as well."""
    folder = simulate(
        make_config(
            model={"spelling": "vocabulary", "known_words": ["hapy"]}, run={"rounds": 1, "output": str(tmp_path / "r")}
        )
    )
    names = make_variants(folder) + make_student(folder, str(bert), PUBLIC, DistillationConfig(steps=5, batch=16))
    model = FinishedRun(folder).merged()
    wrong, right = ["the flim was luvely", "hapy actro"], ["the film was lovely", "hapy actor"]
    for name in ("torch", *names):
        asked = model if name == "torch" else OnnxModel(folder / VARIANTS / name)
        np.testing.assert_allclose(asked.logits(wrong), asked.logits(right), atol=1e-6)
        assert asked.as_read(wrong[1]) == right[1]
    assert split(model, wrong[0]).words == right[0].split()
    script = (
        "import sys; from pathlib import Path; from confide.server.ship.runtime import OnnxModel\n"
        f"print(OnnxModel(Path({str(folder / VARIANTS / 'int8')!r})).as_read('flim'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["film", "False"]
    assert 'load_spelling(folder).read("a text")' in card(folder, [])
    facts = folder / VARIANTS / "int8" / "variant.json"
    facts.write_text(facts.read_text().replace('"vocabulary"', '"klingon"'))
    with pytest.raises(ConfigError, match="spelling: received 'klingon'; allowed: none, vocabulary, english"):
        OnnxModel(facts.parent)


def test_a_changed_model_file_is_refused(copy: Path) -> None:
    make_variants(copy)
    path = copy / VARIANTS / "int8" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="was changed since it was made"):
        OnnxModel(path.parent)
    with pytest.raises(ConfigError, match=r"no variant\.json there"):
        OnnxModel(copy)


@pytest.mark.slow
@pytest.mark.usefixtures("real_processes")
def test_measuring_names_every_variant_and_becomes_a_page(copy: Path) -> None:
    with pytest.raises(ConfigError, match="no variants there"):
        measure(copy)
    make_variants(copy, public=PUBLIC, layers=1, heads=0.5, neurons=0.5, settings=DistillationConfig(steps=20))
    facts = measure(copy, limit=40)
    rows = {row["name"]: row for row in facts["variants"]}
    assert [*rows] == ["torch", "int8", "onnx", "pruned-int8", "pruned-onnx"]
    assert rows["int8"]["mb"] < rows["onnx"]["mb"]
    assert rows["pruned-onnx"]["mb"] < rows["onnx"]["mb"]
    assert rows["int8"]["memory_mb"] < rows["torch"]["memory_mb"]
    assert rows["onnx"]["accuracy"] == rows["torch"]["accuracy"]
    assert all(row["p95_1"] >= row["ms_1"] > 0 for row in facts["variants"])
    assert "layers" in rows["pruned-int8"]["what"]
    assert "distilled from the whole model on 300 public texts" in rows["pruned-int8"]["what"]
    assert read_report(copy)["compression"] == facts
    page = (copy / "report.html").read_text()
    assert 'id="compression"' in page
    assert 'id="variants"' in page


def test_the_recommendation_keeps_to_the_limits() -> None:
    rows = [
        {"name": "torch", "ms_1": 8.0, "mb": 90.0, "accuracy": 0.84},
        {"name": "int8", "ms_1": 2.0, "mb": 23.0, "accuracy": 0.838},
        {"name": "student", "ms_1": 1.0, "mb": 18.0, "accuracy": 0.82},
    ]
    assert recommended(rows, Limits())["recommended"] == "int8"  # the fastest that loses at most a point
    assert recommended(rows, Limits(mb=20))["recommended"] == "student"
    assert recommended(rows, Limits(ms=10))["recommended"] == "torch"  # the most accurate that fits
    assert recommended(rows, Limits(accuracy=0.81, mb=30))["recommended"] == "int8"
    nothing = recommended(rows, Limits(accuracy=0.83, mb=20))
    assert nothing["recommended"] is None
    assert nothing["missed"] == "student: accuracy 0.820, wanted 0.830"


def test_layers_are_spread_and_the_least_needed_go(run: FinishedRun) -> None:
    assert spread(6, 3) == [1, 3, 5]
    assert spread(6, 6) == [0, 1, 2, 3, 4, 5]
    assert spread(12, 1) == [11]
    with pytest.raises(ConfigError, match="allowed: 1 to 6"):
        spread(6, 7)
    model = run.merged()
    whole = model.logits(PUBLIC[:50])
    layers = layers_of(model.module)
    with torch.no_grad():  # the first layer's outputs made nothing: what it adds is only its input, normalised
        for name in ("attention.output.dense", "output.dense"):
            part = linear(layers[0], name)
            part.weight.zero_()
            part.bias.zero_()
    assert least_needed_layers(model, PUBLIC[:50], 1) == [1]
    kept = run.merged()
    keep_layers(kept, [0, 1])
    np.testing.assert_array_equal(kept.logits(PUBLIC[:50]), whole)


def test_pruning_cuts_the_matrices_and_what_nobody_needs_changes_nothing(run: FinishedRun) -> None:
    """A head and a neuron whose outputs are zero are the least important, and without them the answers are the same."""
    model = run.merged()
    for layer in layers_of(model.module):
        with torch.no_grad():
            linear(layer, "attention.output.dense").weight[:, :16] = 0  # the first of two heads
            linear(layer, "output.dense").weight[:, ::2] = 0  # every other neuron
    before, size = model.logits(PUBLIC[:30]), sum(p.numel() for p in model.module.parameters())
    heads, neurons = importance(model, PUBLIC[:30])
    assert all(float(one[0]) == 0 < float(one[1]) for one in heads)
    assert all(float(one[::2].max()) == 0 < float(one[1::2].min()) or float(one[::2].max()) == 0 for one in neurons)
    prune(model, PUBLIC[:30], heads=0.5, neurons=0.5)
    np.testing.assert_allclose(model.logits(PUBLIC[:30]), before, rtol=1e-4, atol=1e-5)
    cut = 2 * (3 * (16 * 32 + 16) + 16 * 32 + 32 * 32 + 32 + 32 * 32)  # two layers: q, k, v, joining; both of the FFN
    assert sum(p.numel() for p in model.module.parameters()) == size - cut


def test_factors_are_the_best_of_their_rank_for_what_a_layer_is_given() -> None:
    """Eckart and Young: what is lost is the tail of the singular values of W·L, and no less can be; plain singular
    values of W lose more where inputs are uneven."""
    rng = np.random.default_rng(0)
    uneven = rng.normal(size=(24, 24)) * np.geomspace(1, 0.01, 24)
    inputs = torch.from_numpy(rng.normal(size=(4000, 24)) @ uneven)
    layer = nn.Linear(24, 16)
    moment = inputs.T @ inputs / len(inputs)
    made = factored(layer, moment, 0.5)
    first, second = made
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert first.weight.numel() + second.weight.numel() <= 0.5 * 24 * 16
    with torch.no_grad():
        lost = ((layer(inputs.float()) - made(inputs.float())) ** 2).sum(1).mean()
        weight = layer.weight.double()
        root = torch.linalg.cholesky(moment)
        tail = torch.linalg.svdvals(weight @ root)[first.out_features :]
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        plain = (left[:, : first.out_features] * values[: first.out_features]) @ right[: first.out_features]
        by_plain = ((inputs @ (weight - plain).T) ** 2).sum(1).mean()
    assert float(lost) == pytest.approx(float((tail**2).sum()), rel=0.02)
    assert lost < by_plain


@pytest.mark.slow
def test_factors_of_a_model(run: FinishedRun, copy: Path) -> None:
    whole, model = run.merged(), run.merged()
    factorise(model, PUBLIC[:64], 0.9)
    stack = layers_of(model.module)
    held = sum(p.numel() for name, p in stack.named_parameters() if p.ndim == 2)
    assert held <= 0.9 * sum(p.numel() for name, p in layers_of(whole.module).named_parameters() if p.ndim == 2)
    same = whole.logits(PUBLIC).argmax(1) == model.logits(PUBLIC).argmax(1)
    assert same.mean() > 0.95
    names = make_variants(copy, public=PUBLIC, factors=0.5)
    assert names[-2:] == ["pruned-onnx", "pruned-int8"]
    assert "two factors of 50 % of their numbers" in load_variant(copy / VARIANTS / "pruned-onnx").what
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="a share above 0 and below 1"):
            factorise(run.merged(), PUBLIC[:8], wrong)


def test_a_student_learns_its_teachers_answers(run: FinishedRun) -> None:
    teacher = run.merged()
    student = shallow(teacher, 1)
    wanted = teacher.logits(PUBLIC)
    with torch.no_grad():
        linear(student.module.get_submodule("classifier"), "head").weight.zero_()

    def apart() -> float:
        """Of the logits' differences: a shift of all changes no probability."""
        return float(np.abs(np.diff(student.logits(PUBLIC)) - np.diff(wanted)).mean())

    before = apart()
    distil(
        teacher,
        student,
        PUBLIC,
        DistillationConfig(steps=60, batch=32, learning_rate=3e-3, hidden=0.1),
        lambda *_: None,
    )
    assert apart() < 0.4 * before
    np.testing.assert_array_equal(teacher.logits(PUBLIC), wanted)
    assert len(layers_of(teacher.module)) == 2


@pytest.mark.slow
def test_students_on_other_backbones(copy: Path, bert: Path, tmp_path: Path) -> None:
    names = make_student(copy, str(bert), PUBLIC, DistillationConfig(steps=5, batch=16))
    assert names == [f"student-{bert.name}-onnx", f"student-{bert.name}-int8"]
    assert OnnxModel(copy / VARIANTS / names[1]).logits(["a good film"]).shape == (1, 2)
    with pytest.raises(ModelError, match="no folder"):
        make_student(copy, "./nosuch", PUBLIC, DistillationConfig())
    with pytest.raises(ConfigError, match="at least 64, a batch"):
        make_student(copy, "1", PUBLIC[:10], DistillationConfig())
    with pytest.raises(ConfigError, match="allowed: 1 to 2"):
        make_student(copy, "9", PUBLIC, DistillationConfig())


@pytest.mark.slow
def test_what_cannot_be_compressed_says_why(make_config, gpt2: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name it with --public"):
        make_variants(copy, layers=1)
    with pytest.raises(ConfigError, match=r"no report\.json there"):
        make_variants(tmp_path)
    output = str(tmp_path / "words")
    lm = simulate(make_config(model={"backbone": str(gpt2), "task": "causal-lm"}, run={"rounds": 1, "output": output}))
    with pytest.raises(ConfigError, match=r"this is for .*'sequence-classification'"):
        make_variants(lm)
    output = str(tmp_path / "gpt")
    other = simulate(make_config(model={"backbone": str(gpt2), "pooling": "last"}, run={"rounds": 1, "output": output}))
    with pytest.raises(ModelError, match="not built as BERT's"):
        make_variants(other, public=PUBLIC, heads=0.5)
    assert json.loads((other / "report.json").read_text())["compression"] is None

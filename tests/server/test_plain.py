"""A plain folder answers as the run does in a process without confide; what has no class of transformers is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTModel,
)

from confide.common.errors import ConfigError
from confide.common.model.backbones import DEMO_VIT
from confide.common.types import Rows
from confide.server.ship.card import export_hub
from confide.server.ship.finished import FinishedRun
from confide.server.ship.plain import export_plain
from confide.server.ship.predict import load
from confide.server.ship.runtime import padded
from confide.simulations.run import simulate
from confide.tests.architectures import save_architecture
from confide.tests.elsewhere import Elsewhere
from confide.tests.simulations.test_conversation_runs import talks, write
from confide.tests.simulations.test_image_tasks import write_images
from confide.tests.tiny import CHATML, chat_tokenizer, sentences, write_conll, write_csv

TEXTS = [text for text, _ in sentences(12, 9)]
_ASKS = """
import json
from transformers import pipeline
asked = pipeline({task!r}, {folder!r})
found = asked({given!r}, **{options!r})
asked.save_pretrained({folder!r} + "-again")
assert pipeline({task!r}, {folder!r} + "-again")({given!r}, **{options!r}) == found
print(json.dumps(found, default=float))
"""


@pytest.fixture(scope="module")
def piped(without_confide: Elsewhere):
    """What `pipeline` answers there; the same after saving and loading."""

    def ask(task: str, folder: Path, given: list[str], **options: object) -> list:
        script = _ASKS.format(task=task, folder=str(folder), given=given, options=options)
        return json.loads(without_confide(script, Path("/")).splitlines()[-1])

    return ask


def no_path_of_this_machine(folder: Path, *paths: Path) -> None:
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".md", ".jinja"):
            assert not any(str(path) in file.read_text() for path in paths), file


@pytest.fixture
def written(make_config, gpt2: Path):
    """A short run that writes texts, on GPT-2 unless a backbone is given."""

    def make(backbone: Path = gpt2, **changes) -> Path:
        model = {"backbone": str(backbone), "task": "causal-lm", **changes.pop("model", {})}
        return simulate(make_config(model=model, run={"rounds": 2}, **changes))

    return make


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_language_model_loads_alone(piped, written, train: str, tmp_path: Path) -> None:
    """Embeddings stay tied where LoRA was trained; trained whole, they are two tables, and are saved as two."""
    run = written(model={"train": train})
    out = tmp_path / "plain"
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json"} <= {
        *export_plain(run, out)
    }
    finished = FinishedRun(run, "causal-lm")
    model, wanted = AutoModelForCausalLM.from_pretrained(out), finished.classifier()
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == (train == "lora") == model.config.tie_word_embeddings
    ids, mask = (torch.from_numpy(one) for one in padded(AutoTokenizer.from_pretrained(out)(TEXTS)["input_ids"], 0))
    with torch.no_grad():
        found, right = (one(input_ids=ids, attention_mask=mask).logits[mask.bool()] for one in (model, wanted))
    np.testing.assert_allclose(found, right, atol=1e-5)
    writer, _ = load(run)
    answers = [one["continuation"] for one in writer.answers(Rows("rows", TEXTS[:3]))]
    found = piped("text-generation", out, TEXTS[:3], return_full_text=False)
    assert [one[0]["generated_text"] for one in found] == answers
    no_path_of_this_machine(out, run.parent, tmp_path)
    assert 'library_name: "transformers"' in (out / "README.md").read_text()


def test_bfloat16_and_a_template_of_the_run_are_kept(written, tmp_path: Path) -> None:
    """The weights have the type that they were trained beside; a turn's last token ends an answer."""
    torch.manual_seed(0)
    backbone, tokenizer = tmp_path / "chat", chat_tokenizer()
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2)).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    sources = {name: write(tmp_path / f"{name}.jsonl", talks(count)) for name, count in (("train", 48), ("test", 8))}
    data = {**sources, "messages": "messages", "template": CHATML}
    run = written(backbone, model={"dtype": "bfloat16", "max_length": 40}, data=data)
    export_plain(run, tmp_path / "plain")
    again = AutoTokenizer.from_pretrained(tmp_path / "plain")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert model.dtype == torch.bfloat16
    assert again.chat_template == CHATML
    assert again.convert_tokens_to_ids("<|end|>") in model.generation_config.eos_token_id
    asked = again.apply_chat_template([{"role": "user", "content": "good"}], return_tensors="pt", return_dict=True)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found, wanted = (one(**asked).logits for one in (model, FinishedRun(run, "causal-lm").classifier()))
    assert torch.equal(found, wanted)


def test_classes_keep_their_names(piped, make_config, tmp_path: Path) -> None:
    run, out = simulate(make_config(model={"pooling": "model"}, run={"rounds": 2})), tmp_path / "plain"
    export_plain(run, out)
    wanted = FinishedRun(run).merged().answers(Rows("rows", TEXTS))
    found = piped("text-classification", out, TEXTS, top_k=None)
    for answer, one in zip(wanted, found, strict=True):
        assert {row["label"]: row["score"] for row in one} == pytest.approx(answer["probabilities"], abs=1e-5)


def test_the_card_s_own_code_cuts_long_texts_as_the_run_did(
    without_confide: Elsewhere, make_config, tmp_path: Path
) -> None:
    """`pipeline` cuts nothing unless told, and a text beyond the backbone's positions is an error then."""
    run, out = simulate(make_config(model={"pooling": "model"}, run={"rounds": 2})), tmp_path / "plain"
    export_plain(run, out)
    text = "good bad the film " * 100
    (wanted,) = FinishedRun(run).merged().answers(Rows("rows", [text]))
    code = (out / "README.md").read_text().split("```python")[1].split("```")[0]
    (found,) = json.loads(
        without_confide(f"{code}\nimport json\nprint(json.dumps(answer({text!r})))", out).splitlines()[-1]
    )
    assert (found["label"], found["score"]) == (wanted["label"], pytest.approx(wanted["probability"], abs=1e-5))


def test_a_decoder_classifies_padded_texts(piped, make_config, tmp_path: Path) -> None:
    backbone = save_architecture("llama", tmp_path / "llama")
    run = simulate(make_config(model={"backbone": str(backbone), "pooling": "model"}, run={"rounds": 1}))
    export_plain(run, tmp_path / "plain")
    wanted = FinishedRun(run).merged().answers(Rows("rows", TEXTS))
    found = piped("text-classification", tmp_path / "plain", TEXTS, batch_size=4)
    assert [one["label"] for one in found] == [one["label"] for one in wanted]
    np.testing.assert_allclose([one["score"] for one in found], [one["probability"] for one in wanted], atol=1e-5)


def numbers(make_config, tmp_path: Path, **model) -> Path:
    data = {
        name: str(write_csv(tmp_path / f"{name}.csv", [(text, 10 + len(text)) for text, _ in sentences(count, count)]))
        for name, count in (("train", 160), ("test", 60))
    }
    return simulate(make_config(model={"task": "regression", **model}, data=data, run={"rounds": 2}))


def test_numbers_are_in_the_labels_units(piped, make_config, tmp_path: Path) -> None:
    run = numbers(make_config, tmp_path, pooling="model")
    export_plain(run, tmp_path / "plain")
    wanted = [one["number"] for one in load(run, "torch")[0].answers(Rows("rows", TEXTS))]
    found = piped("text-classification", tmp_path / "plain", TEXTS)
    assert [one["label"] for one in found] == ["label"] * len(TEXTS)
    np.testing.assert_allclose([one["score"] for one in found], wanted, rtol=1e-5)
    assert 20 < np.mean(wanted) < 60


def test_every_word_keeps_its_tag(piped, make_config, wordpiece: Path, tmp_path: Path) -> None:
    data = {name: str(write_conll(tmp_path / f"{name}.conll", 80, i)) for i, name in enumerate(("train", "test"))}
    model = {"task": "token-classification", "backbone": str(wordpiece)}
    run = simulate(make_config(model=model, data=data, run={"rounds": 2}))
    export_plain(run, tmp_path / "plain")
    texts = ["ann sees new york", "bob goes to romes"]  # of a word of two pieces the first counts
    wanted = FinishedRun(run, "token-classification").merged().answers(Rows("rows", texts))
    found = piped("token-classification", tmp_path / "plain", texts, ignore_labels=[])
    for text, answer, tokens in zip(texts, wanted, found, strict=True):
        starts = {text.index(word) for word in text.split()}
        firsts = [token for token in tokens if token["start"] in starts]
        assert [token["entity"] for token in firsts] == answer["tags"]
        np.testing.assert_allclose([token["score"] for token in firsts], answer["probabilities"], atol=1e-5)


def coloured(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng, rows = np.random.default_rng(count), []
    for number in range(count):
        values = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        values[..., number % 2] = 250
        Image.fromarray(values).save(folder / f"{number}.png")
        rows.append((f"{number}.png", ("red", "green")[number % 2]))
    return write_csv(folder / "rows.csv", rows, ("image", "label"))


def save_vit(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, hidden_size=32, image_size=8, patch_size=4)).save_pretrained(folder)
    return folder


def seeing(make_config, tmp_path: Path, pooling: str) -> Path:
    save_vit(tmp_path / "vit")
    data = {name: str(coloured(tmp_path / name, count)) for name, count in (("train", 80), ("test", 20))}
    model = {"task": "image-classification", "backbone": str(tmp_path / "vit"), "pooling": pooling}
    model |= {"lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
    return simulate(make_config(model=model, data=data, run={"rounds": 1}))


def test_images_are_scaled_and_classified_alike(piped, make_config, tmp_path: Path) -> None:
    run = seeing(make_config, tmp_path, "first")
    assert "preprocessor_config.json" in export_plain(run, tmp_path / "plain")
    finished = FinishedRun(run, "image-classification")
    wanted = finished.merged().answers(finished.rows())
    found = piped("image-classification", tmp_path / "plain", [str(tmp_path / f"test/{i}.png") for i in range(20)])
    assert [one[0]["label"] for one in found] == [one["label"] for one in wanted]
    np.testing.assert_allclose([one[0]["score"] for one in found], [one["probability"] for one in wanted], atol=1e-5)


def test_grey_images_are_answered_alike_in_three_channels(piped, make_config, tmp_path: Path) -> None:
    """`pipeline` gives every model three channels: the first layer reads their grey, in colours to a rounding."""
    data = {name: str(write_images(tmp_path / f"grey-{name}", 40, i)) for i, name in enumerate(("train", "test"))}
    grey = {"task": "image-classification", "backbone": DEMO_VIT, "train": "full", "pooling": "first"}
    run = simulate(make_config(model=grey, data=data, run={"rounds": 1}))
    export_plain(run, tmp_path / "plain")
    finished = FinishedRun(run, "image-classification")
    rows = finished.rows()
    assert rows.images is not None
    files = [str(path) for path in sorted((tmp_path / "grey-test").glob("*.png"), key=lambda path: int(path.stem))]
    found = piped("image-classification", tmp_path / "plain", files)
    wanted = finished.merged().answers(rows)
    assert [one[0]["label"] for one in found] == [one["label"] for one in wanted]
    np.testing.assert_allclose([one[0]["score"] for one in found], [one["probability"] for one in wanted], atol=1e-5)


def test_hidden_words_are_guessed_alike(piped, make_config, wordpiece: Path, tmp_path: Path) -> None:
    model = {"task": "masked-lm", "backbone": str(wordpiece), "pooling": "model"}
    run = simulate(make_config(model=model, run={"rounds": 1}))
    export_plain(run, tmp_path / "plain")
    finished = FinishedRun(run, "masked-lm")
    asked = finished.tokenizer("ann [MASK] york", return_tensors="pt")
    asked = {name: asked[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = finished.classifier()(**asked).logits[0].softmax(1)
        found = AutoModelForMaskedLM.from_pretrained(tmp_path / "plain")(**asked).logits[0].softmax(1)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    best, place = piped("fill-mask", tmp_path / "plain", ["ann [MASK] york"])[0], 2
    assert best["token"] == wanted[place].argmax()
    assert best["score"] == pytest.approx(float(wanted[place].max()), abs=1e-5)


def refused(run: Path, out: Path, text: str, **options) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        export_plain(run, out, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert not out.exists()


def test_what_has_no_class_is_refused(make_config, wordpiece: Path, tmp_path: Path) -> None:
    output = iter(str(tmp_path / f"run-{i}") for i in range(9))
    out, one = tmp_path / "plain", {"rounds": 1}
    mean = simulate(make_config(run={**one, "output": next(output)}))
    refused(mean, out, r"model\.pooling = 'mean'; no auto class .*model\.pooling = 'model', .*confide compress RUN")
    words = {"task": "masked-lm", "backbone": str(wordpiece)}
    refused(simulate(make_config(model=words, run={**one, "output": next(output)})), out, "of task 'masked-lm'")
    spelled = {"pooling": "model", "spelling": "vocabulary"}
    refused(simulate(make_config(model=spelled, run={**one, "output": next(output)})), out, "texts are corrected")
    refused(seeing(make_config, tmp_path, "mean"), out, r"model\.pooling = 'first'")
    (out / "x").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is not empty"):
        export_plain(mean, out)


def test_a_number_of_a_head_without_bias_is_refused(make_config, tmp_path: Path) -> None:
    backbone = save_architecture("llama", tmp_path / "llama")
    run = numbers(make_config, tmp_path, pooling="model", backbone=str(backbone))
    refused(run, tmp_path / "plain", "LlamaForSequenceClassification, whose head has no bias")


def test_the_adapter_loads_by_plain_peft(without_confide: Elsewhere, written, gpt2: Path, tmp_path: Path) -> None:
    run, out = written(), tmp_path / "plain"
    refused(run, out, "--base: nothing received with --adapter", adapter=True)
    export_plain(run, out, adapter=True, base="tiny/gpt2")
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny/gpt2"
    assert sorted(path.name for path in (out / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    no_path_of_this_machine(out, run.parent, gpt2)
    script = (
        "from peft import PeftModel; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(gpt2)!r}), "
        f"{str(out / 'adapter')!r})\n"
        f"asked = AutoTokenizer.from_pretrained({str(out)!r})({TEXTS[0]!r}, return_tensors='pt')['input_ids']\n"
        "print(model(input_ids=asked).logits[0, -1].tolist())"
    )
    printed = without_confide(script, Path("/"))
    finished = FinishedRun(run, "causal-lm")
    asked = finished.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = finished.classifier()(input_ids=asked).logits[0, -1]
    np.testing.assert_allclose(json.loads(printed.splitlines()[-1]), wanted, atol=1e-5)


def named(folder: Path) -> str | None:
    """The backbone that an adapter names."""
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


@pytest.mark.parametrize(("pooling", "train"), [("mean", "lora"), ("model", "lora"), ("model", "head")])
def test_no_folder_makes_a_random_head(
    piped, make_config, pooling: str, train: str, bert: Path, tmp_path: Path
) -> None:
    """`pipeline` on an adapter for a head of confide's took the backbone, ignored the adapter and answered."""
    run = simulate(make_config(model={"pooling": pooling, "train": train}, run={"rounds": 1}))
    export_hub(run, tmp_path / "hub", base=str(bert))
    assert named(tmp_path / "hub") is None
    for folder in (tmp_path / "hub", run / "adapter"):
        with pytest.raises(AssertionError, match="Error"):
            piped("text-classification", folder, TEXTS[:1])
    if train == "head":
        refused(run, tmp_path / "plain", "only confide.load_base fits", adapter=True)


def test_an_adapter_brings_what_the_backbones_file_lacks(make_config, wordpiece: Path, tmp_path: Path) -> None:
    """A BERT for hidden words has no pooler: it was drawn when the run began, is frozen, and in no file of others."""
    run = simulate(make_config(model={"backbone": str(wordpiece), "pooling": "model"}, run={"rounds": 1}))
    assert "bert.pooler.dense.weight" in load_file(run / "adapter" / "drawn.safetensors")
    export_plain(run, tmp_path / "plain", adapter=True, base="tiny/bert")
    config = json.loads((tmp_path / "plain" / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    arrays = load_file(tmp_path / "plain" / "adapter" / "adapter_model.safetensors")
    assert {"base_model.model.bert.pooler.dense.weight", "base_model.model.classifier.bias"} <= arrays.keys()


def test_no_adapter_names_a_folder_of_this_machine(written, gpt2: Path, tmp_path: Path, monkeypatch) -> None:
    """Also one whose path looks like a name of the hub."""
    shutil.copytree(gpt2, tmp_path / "models" / "gpt2")
    monkeypatch.chdir(tmp_path)
    run = written(Path("models/gpt2"))
    export_hub(run, tmp_path / "hub")
    assert named(tmp_path / "hub") is None
    refused(run, tmp_path / "plain", "--base: nothing received with --adapter", adapter=True)
    export_hub(run, tmp_path / "named", base="tiny/gpt2")
    assert (
        json.loads((tmp_path / "named" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny/gpt2"
    )

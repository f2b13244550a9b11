"""What people bring as a backbone: each kind that cannot be used gets one line, the same from a run and from `confide
doctor`; what looks unusual and can be used is."""

import ast
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers as hf

from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.config.tables import LoraSection, ModelSection
from confide.common.errors import ModelError
from confide.common.model import backbones
from confide.common.model.backbones import resolve_backbone
from confide.common.model.loading import load_model, model_of
from confide.common.model.proof import check_reached
from confide.common.model.weights import _loading_options
from confide.common.tasks import load_backbone
from confide.simulations.doctor import findings
from confide.tests import folders
from confide.tests.architectures import save_architecture
from confide.tests.brought import GROUPS
from confide.tests.brought import saved as brought_model
from confide.tests.test_imports import ROOT
from confide.tests.tiny import merged, write_csv

REFUSED: dict[str, tuple[Callable[[Path], Path], dict, str]] = {
    "a pointer in place of weights": (
        folders.pointer("model.safetensors"),
        {},
        r"is a pointer of Git LFS.*git lfs pull",
    ),
    "a pointer in place of a tokenizer": (
        folders.pointer("tokenizer.json"),
        {},
        r"tokenizer\.json is a pointer of Git LFS",
    ),
    "cut weights": (folders.cut, {}, r"is cut: it has [\d,]+ bytes, and its header names [\d,]+; download it again"),
    "weights cut in the header": (folders.cut_in_the_header, {}, "not a safetensors file, or cut; download it again"),
    "a cut pytorch_model.bin": (folders.cut_bin, {}, r"pytorch_model\.bin is cut or no checkpoint of torch; download"),
    "code in pytorch_model.bin": (folders.code_in_bin, {}, r"holds more than numbers.*save the model as safetensors"),
    "weights of another library": (
        folders.other_format,
        {},
        r"no weights in .*; tf_model\.h5 is not read; allowed: \*\.safe",
    ),
    "a missing shard": (folders.shard_missing, {}, r"1 of the \d+ files of weights .* are missing in"),
    "an unknown architecture": (folders.config(model_type="nosuch"), {}, r"does not load for .*nosuch"),
    "code of its own": (
        folders.config(model_type="nosuch", auto_map={"AutoConfig": "configuration_x.XConfig"}),
        {},
        r"Python files of its own, which confide never runs \(trust_remote_code is always false\)",
    ),
    "no model_type": (folders.config(model_type=None), {}, "names no model_type"),
    "a quantised checkpoint": (
        folders.config(quantization_config={"quant_method": "gptq", "bits": 4}),
        {},
        r"saved in few bits \(gptq\), which is not read; give the checkpoint in full precision",
    ),
    "few bits that could be read": (
        folders.config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        {},
        r"saved in few bits \(bitsandbytes\), which is not read",
    ),
    "a weight that is no number": (
        folders.not_a_number,
        {},
        r"holds NaN or infinite values in 1 arrays, such as embeddings\.word_embeddings\.weight",
    ),
    "more layers than config.json says": (
        folders.fewer_layers(folders.two_layers, "num_hidden_layers"),
        {},
        r"holds .*encoder\.layer\.1\..*, and by its config\.json 'encoder\.layer' has 1 layers: the model would be cut",
    ),
    "more layers, to write": (
        folders.fewer_layers(folders.two_layers_in_turn, "n_layer"),
        {"task": "causal-lm"},
        r"holds .*h\.1\..*, and by its config\.json 'h' has 1 layers: the model would be cut",
    ),
    "a broken tokenizer_config.json": (
        folders.written("tokenizer_config.json", '{"a'),
        {},
        r"/tokenizer_config\.json is not JSON; download it again",
    ),
    "a broken preprocessor_config.json": (
        folders.written("preprocessor_config.json", '{"image_mean": [0.5', folders.vit),
        {"task": "image-classification"},
        r"/preprocessor_config\.json is not JSON; download it again",
    ),
    "means of an image that are no numbers": (
        folders.written("preprocessor_config.json", '{"image_mean": 0.5}', folders.vit),
        {"task": "image-classification"},
        r"/preprocessor_config\.json: not JSON, or image_mean and image_std are no lists of numbers; download",
    ),
    "an index that is none": (
        folders.written("model.safetensors.index.json", '{"weight_map": [1]}'),
        {},
        r"/model\.safetensors\.index\.json has no weight_map, which names the file of each array; download",
    ),
    "everything trained whole": (
        lambda folder: save_architecture("gpt2", folder),
        {"task": "causal-lm", "lora": {"modules_to_save": ["transformer"]}},
        r"model\.lora\.modules_to_save: 'transformer' received, beside which this model has no linear layer for LoRA",
    ),
    "a decoder's first vector": (
        lambda folder: save_architecture("gpt2", folder),
        {"pooling": "first"},
        r"does not change with anything behind its first token.*set model\.pooling = 'last' or 'mean'",
    ),
    "texts of some lengths only": (
        folders.config(chunk_size_feed_forward=4),
        {},
        r"does not answer a short record .*multiple of the chunk size",
    ),
    "an attention that is not installed": (
        folders.config(_attn_implementation="flash_attention_2"),
        {},
        r"FlashAttention2 .*; take _attn_implementation and attn_implementation out of its config\.json",
    ),
    "LoRA on the words that the head reads": (
        folders.bert,
        {"task": "masked-lm", "lora": {"targets": ["word_embeddings"]}},
        r"targets: received 'word_embeddings', the table that the head compares with, too",
    ),
    "an adapter": (folders.adapter, {}, r"is an adapter of PEFT for .*, not a model; .*model\.init_from.*merge"),
    "an adapter beside a model": (
        folders.adapter_beside_model,
        {},
        r"is an adapter of PEFT for somebody/model, not a model",
    ),
    "a run": (folders.run_folder, {}, r"is the folder of a run, not of a model; .*model\.init_from"),
    "other classes": (
        folders.three_classes,
        {"pooling": "model"},
        "own head has 3 classes, and the run has 2; give 3 classes",
    ),
    "texts longer than positions": (folders.bert, {"max_length": 67}, r"model\.max_length: 67 received; .* at most 66"),
    "added words": (
        folders.added("zwölf", "boxkämpfer"),
        {},
        r"2 tokens that the model has no embedding for, .*resize_token",
    ),
    "an added padding token": (
        folders.added(pad=True),
        {},
        r"1 tokens that the model has no embedding for, such as '\[FILL",
    ),
    "sentencepiece without its library": (
        folders.subwords_without_library,
        {},
        r"tokenizer of .* does not load \(its tokens are in spiece\.model alone.*pip install sentencepiece, or put",
    ),
    "no padding token": (
        lambda folder: save_architecture("gpt2", folder),
        {"pooling": "model"},
        r'names no pad_token_id, .*add "pad_token_id": 0 to it .*or set model\.pooling to last or mean',
    ),
    "an encoder with a decoder": (
        folders.model(folders.switch),
        {},
        r"SwitchTransformersModel is an encoder with a decoder.*give an encoder, such as BERT, or a decoder",
    ),
    "an encoder with a decoder, to write": (
        folders.model(lambda: hf.T5ForConditionalGeneration(hf.T5Config(**folders.T5))),
        {"task": "causal-lm"},
        r"does not load for 'causal-lm': transformers has no model of T5 for it; choose another model\.task",
    ),
    "two towers": (
        folders.model(folders.siglip),
        {},
        r"names no width of its vectors .*; give a model of one tower and one width",
    ),
    "a layer that ends like the head": (
        folders.model(folders.funnel),
        {},
        r"model\.train: 'head' would be trained whole, .*q_head",
    ),
    "no layers of an attention": (
        folders.model(folders.xlnet),
        {},
        r"targets: nothing received, and XLNetModel .*allowed: 'all-linear', or names among layer_1, layer_2",
    ),
    "random numbers in each pass": (
        folders.model(folders.mae),
        {"task": "image-classification"},
        "ViTMAEModel draws random numbers while it reads, so the same record gets another answer each time",
    ),
    "a model of sound": (folders.model(folders.whisper), {"max_length": 4}, r"model\.backbone: WhisperModel"),
}


@pytest.fixture
def brought(make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confide):
    """A run's section for a folder; what `confide doctor` says of it."""
    monkeypatch.setenv("COLUMNS", "3000")
    load_model.cache_clear()

    def doctor(section: ModelSection) -> tuple[int, str]:
        content = section.model_dump(mode="json", exclude_none=True)
        file = tmp_path / "brought.toml"
        file.write_text(make_config(data={"labels": ["negative", "positive"]}, model=content).to_toml())
        return confide("doctor", file)[:2]

    return doctor


def _section(folder: Path, **changes) -> ModelSection:
    content = {"backbone": str(folder), "max_length": 24, "lora": LoraSection(rank=2, alpha=4).model_dump()}
    return ModelSection.model_validate(merged(content, changes))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_gets_one_line_from_a_run_and_from_the_doctor(brought, tmp_path: Path, name: str) -> None:
    make, changes, words = REFUSED[name]
    section = _section(make(tmp_path / "model"), **changes)
    with pytest.raises(ModelError, match=words) as caught:
        check_reached(load_model(section, 2, 0))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600, text
    code, out = brought(section)
    assert (code, text in out) == (1, True), (text, out)


TAKEN: dict[str, tuple[Callable[[Path], Path], float]] = {
    "pytorch_model.bin": (folders.as_bin, 0.0),
    "shards": (folders.sharded, 0.0),
    "shards of pytorch_model.bin": (folders.sharded_bin, 0.0),
    "float16": (folders.in_type(torch.float16), 2e-3),
    "bfloat16": (folders.in_type(torch.bfloat16), 2e-2),
}
"""and how far a weight may be from the same in float32, for its size"""


@pytest.mark.parametrize("name", TAKEN)
def test_every_way_to_save_weights_is_read(tmp_path: Path, name: str) -> None:
    make, far = TAKEN[name]
    wanted = load_model(_section(folders.bert(tmp_path / "plain")), 2, 0).module.get_base_model().state_dict()
    model = load_model(_section(make(tmp_path / "model")), 2, 0)
    found = model.module.get_base_model().state_dict()
    assert {array.dtype for array in found.values() if array.is_floating_point()} == {torch.float32}
    for key, array in wanted.items():
        torch.testing.assert_close(found[key], array, rtol=far, atol=far)
    check_reached(model)


UNUSUAL: dict[str, tuple[Callable[[], hf.PreTrainedModel], dict]] = {
    "T5's encoder": (lambda: hf.T5Model(hf.T5Config(**folders.T5)), {}),
    "T5's encoder, saved by itself": (lambda: hf.T5EncoderModel(hf.T5Config(**folders.T5)), {}),
    "LayoutLM": (folders.layoutlm, {}),
    "ESM": (folders.esm, {}),
    "OPT-350m": (folders.opt_350m, {"pooling": "last"}),
    "OPT-350m, to write": (folders.opt_350m, {"task": "causal-lm"}),
    "XLNet, all layers": (folders.xlnet, {"lora": {"targets": "all-linear"}}),
    "Funnel's own head": (folders.funnel, {"pooling": "model"}),
    "three positions": (folders.few_positions, {"task": "causal-lm", "max_length": 2}),
}


def test_a_configuration_that_asks_for_tuples_is_taken(tmp_path: Path) -> None:
    check_reached(load_model(_section(folders.config(return_dict=False)(tmp_path)), 2, 0))


def _with_own_head(make_config, folder: Path, names: Sequence[str], labels: list[str] | None) -> RunConfig:
    """A run on a checkpoint whose head has these classes, and on rows of the classes a, b and c."""
    folders.three_classes(folder, dict(enumerate(names)))
    write_csv(folder / "rows.csv", [("one two", label) for label in "abc" * 8], ("text", "label"))
    data = {"train": str(folder / "rows.csv"), "test": str(folder / "rows.csv"), "labels": labels}
    return make_config(model={"backbone": str(folder), "pooling": "model", "max_length": 24}, data=data)


def test_the_doctor_finds_the_classes_of_the_public_rows(make_config, tmp_path: Path) -> None:
    config = _with_own_head(make_config, tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"], None)
    assert all(good is not False for _, _, good in findings(config))


def test_a_trained_head_with_the_classes_in_another_order_is_refused(make_config, tmp_path: Path) -> None:
    config = _with_own_head(make_config, tmp_path, "CAB", None)
    (told,) = (text for _, text, good in findings(config) if good is False)
    assert 'set data.labels = ["c", "a", "b"], or' in told
    with pytest.raises(ModelError) as caught:
        model_of(resolve(config))
    assert str(caught.value) == told
    assert all(
        good is not False for _, _, good in findings(_with_own_head(make_config, tmp_path, "CAB", ["c", "a", "b"]))
    )


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_that_answer_are_taken(tmp_path: Path, name: str) -> None:
    make, changes = UNUSUAL[name]
    model = load_model(_section(folders.saved(tmp_path, make()), **changes), 2, 0)
    check_reached(model)


def test_an_encoder_with_few_positions_is_no_decoder(tmp_path: Path) -> None:
    config = hf.BertConfig(
        **folders.SMALL, hidden_size=32, intermediate_size=64, max_position_embeddings=3, is_decoder=False
    )
    folder = folders.saved(tmp_path, hf.BertLMHeadModel(config))
    model = load_model(_section(folder, task="causal-lm", max_length=2), 0, 0)
    with pytest.raises(ModelError, match="changes with the tokens after it"):
        check_reached(model)


def test_the_first_look_moves_no_generator_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    load_model.cache_clear()
    section, state = _section(folders.bert(tmp_path)), torch.get_rng_state()
    model = load_model(section, 2, 0)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_equal(model.get(), model.initial)


def test_of_a_hub_model_pytorch_model_bin_is_asked_for_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no code in any case."""
    there, asked = folders.as_bin(tmp_path / "there"), []
    (there / "modeling_x.py").write_text("raise SystemExit")
    (there / "chat_template.jinja").write_text("{{ messages }}")

    def snapshot_download(hub_id: str, *, local_files_only: bool, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        for pattern in allow_patterns:
            for file in there.glob(pattern):
                (tmp_path / "cache").mkdir(exist_ok=True)
                shutil.copy(file, tmp_path / "cache" / file.name)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_backbone("somebody/model") == str(tmp_path / "cache")
    found = {file.name for file in (tmp_path / "cache").iterdir()}
    assert {"config.json", "tokenizer.json", "pytorch_model.bin", "chat_template.jinja"} <= found
    assert "modeling_x.py" not in found
    assert "*.safetensors" in asked[0][1]
    assert "pytorch_model*.bin" in asked[1][1]
    shutil.copy(folders.bert(tmp_path / "other") / "model.safetensors", tmp_path / "cache")
    asked.clear()
    assert backbones.on_this_machine("somebody/model")
    assert len(asked) == 1


def test_code_of_a_hub_is_refused_in_so_many_words_wherever_something_is_loaded() -> None:
    """Without the argument transformers asks at a terminal. PEFT's own classes know no such argument."""
    calls = [
        (f"{path}:{node.lineno}", node)
        for folder in ("common", "client", "server", "simulations", "cli")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
        and ast.unparse(node.func.value) != "PeftModel"
    ]
    assert len(calls) > 8
    said = ast.unparse(ast.parse("f(trust_remote_code=False)")).removeprefix("f(").removesuffix(")")
    for where, call in calls:
        texts = {ast.unparse(keyword) for keyword in call.keywords}
        assert texts & {said, "**options"}, where
    assert _loading_options(_section(Path("x"), dtype="float32"))["trust_remote_code"] is False


@pytest.mark.parametrize("name", ["bert", "layoutlm", "esm", "siglip_vision_model", "swin", "xlm-roberta"])
def test_parts_that_no_task_reads_change_nothing_that_one_does(tmp_path: Path, name: str) -> None:
    group = "texts" if name in GROUPS["texts"] else "images"
    folder = str(brought_model(group, name, tmp_path))
    section = ModelSection(backbone=folder, dtype="float32")
    own, whole = load_backbone(folder, section), hf.AutoModel.from_pretrained(folder).eval()
    own.eval()
    ids, rng = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), torch.Generator().manual_seed(0)
    inputs = {"input_ids": ids} if group == "texts" else {"pixel_values": torch.rand((2, 3, 16, 16), generator=rng)}
    with torch.no_grad():
        assert torch.equal(own(**inputs).last_hidden_state, whole(**inputs).last_hidden_state)
    assert sum(p.numel() for p in own.parameters()) <= sum(p.numel() for p in whole.parameters())

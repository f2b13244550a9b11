"""What people bring as a backbone: each kind that cannot be used gets one line, the same from a run and from `confide
doctor`; what looks unusual and can be used is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from confide.common.config.tables import LoraSection, ModelSection
from confide.common.errors import ModelError
from confide.common.model import backbones
from confide.common.model.backbones import resolve_backbone
from confide.common.model.loading import load_model
from confide.common.model.proof import check_reached
from confide.tests.architectures import WORDS, save_architecture, save_tokenizer
from confide.tests.tiny import merged

_SMALL: dict[str, Any] = {"vocab_size": len(WORDS), "num_hidden_layers": 1, "num_attention_heads": 2}
_T5: dict[str, Any] = {"vocab_size": len(WORDS), "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 1, "num_heads": 2}


def _saved(folder: Path, model: hf.PreTrainedModel, **options) -> Path:
    model.save_pretrained(folder, **options)
    save_tokenizer(folder, ends=True)
    return folder


def _bert(folder: Path) -> Path:
    return save_architecture("bert", folder)


def _pointer(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n"
        (_bert(folder) / name).write_text(text)
        return folder

    return make


def _cut(folder: Path) -> Path:
    file = _bert(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return folder


def _cut_in_the_header(folder: Path) -> Path:
    file = _bert(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    return folder


def _as_bin(folder: Path) -> Path:
    """With pytorch_model.bin in place of safetensors."""
    model = hf.AutoModel.from_pretrained(_bert(folder))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def _cut_bin(folder: Path) -> Path:
    file = _as_bin(folder) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-1000])
    return folder


def _code_in_bin(folder: Path) -> Path:
    torch.save({"a": print, "b": Path("x")}, _as_bin(folder) / "pytorch_model.bin")
    return folder


def _other_format(folder: Path) -> Path:
    (_bert(folder) / "model.safetensors").rename(folder / "tf_model.h5")
    return folder


def _shard_missing(folder: Path) -> Path:
    model = hf.AutoModel.from_pretrained(_bert(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20kB")
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()
    return folder


def _config(**changes: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = _bert(folder) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder

    return make


def _adapter(folder: Path) -> Path:
    model = get_peft_model(hf.AutoModel.from_pretrained(_bert(folder / "base")), LoraConfig(target_modules=["query"]))
    model.save_pretrained(str(folder / "adapter"))
    return folder / "adapter"


def _adapter_beside_model(folder: Path) -> Path:
    (_bert(folder) / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    return folder


def _run_folder(folder: Path) -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return folder


def _three_classes(folder: Path) -> Path:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_labels": 3}
    config = hf.BertConfig(**_SMALL, **sizes)
    return _saved(folder, hf.BertForSequenceClassification(config))


def _added(*tokens: str, pad: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(_bert(folder))
        if pad:
            tokenizer.add_special_tokens({"pad_token": "[FILL]"})
        tokenizer.add_tokens(list(tokens))
        tokenizer.save_pretrained(folder)
        return folder

    return make


def _subwords_without_library(folder: Path) -> Path:
    config = hf.T5Config(**_T5, is_encoder_decoder=False, use_cache=False)
    hf.T5EncoderModel(config).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    return folder


def _model(make: Callable[[], hf.PreTrainedModel]) -> Callable[[Path], Path]:
    return lambda folder: _saved(folder, make())


def _opt_350m() -> hf.PreTrainedModel:
    """Whose embeddings are narrower than its layers."""
    sizes: dict[str, Any] = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 64, "max_position_embeddings": 66}
    return hf.OPTForCausalLM(hf.OPTConfig(**_SMALL, **sizes, pad_token_id=0, do_layer_norm_before=False))


def _siglip() -> hf.PreTrainedModel:
    text: dict[str, Any] = {**_SMALL, "hidden_size": 32, "intermediate_size": 64, "pad_token_id": 0, "bos_token_id": 2}
    image: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=image))


def _funnel() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {
        "d_model": 32,
        "n_head": 2,
        "d_head": 16,
        "d_inner": 64,
        "block_sizes": [1, 1],
        "num_decoder_layers": 1,
    }
    return hf.FunnelModel(hf.FunnelConfig(vocab_size=len(WORDS), **sizes))


def _xlnet() -> hf.PreTrainedModel:
    return hf.XLNetModel(hf.XLNetConfig(vocab_size=len(WORDS), d_model=32, n_layer=1, n_head=2, d_inner=64))


def _switch() -> hf.PreTrainedModel:
    """A T5 of experts."""
    return hf.SwitchTransformersModel(hf.SwitchTransformersConfig(**_T5, num_decoder_layers=1, num_experts=2))


def _whisper() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "num_mel_bins": 8,
        "max_source_positions": 8,
    }
    ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 4, "decoder_start_token_id": 2}
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": len(WORDS)}
    return hf.WhisperModel(hf.WhisperConfig(**sizes, **ends, **heads))


REFUSED: dict[str, tuple[Callable[[Path], Path], dict, str]] = {
    "a pointer in place of weights": (_pointer("model.safetensors"), {}, r"is a pointer of Git LFS.*git lfs pull"),
    "a pointer in place of a tokenizer": (_pointer("tokenizer.json"), {}, r"tokenizer\.json is a pointer of Git LFS"),
    "cut weights": (_cut, {}, r"is cut: it has [\d,]+ bytes, and its header names [\d,]+; download it again"),
    "weights cut in the header": (_cut_in_the_header, {}, "not a safetensors file, or cut; download it again"),
    "a cut pytorch_model.bin": (_cut_bin, {}, r"pytorch_model\.bin is cut or no checkpoint of torch; download"),
    "code in pytorch_model.bin": (_code_in_bin, {}, r"holds more than numbers.*save the model as safetensors"),
    "weights of another library": (_other_format, {}, r"no weights in .*; tf_model\.h5 is not read; allowed: \*\.safe"),
    "a missing shard": (_shard_missing, {}, r"1 of the \d+ files of weights .* are missing in"),
    "an unknown architecture": (_config(model_type="nosuch"), {}, r"does not load for .*nosuch"),
    "code of its own": (
        _config(model_type="nosuch", auto_map={"AutoConfig": "configuration_x.XConfig"}),
        {},
        r"Python files of its own, which confide never runs \(trust_remote_code is always false\)",
    ),
    "no model_type": (_config(model_type=None), {}, "names no model_type"),
    "a quantised checkpoint": (
        _config(quantization_config={"quant_method": "gptq", "bits": 4}),
        {},
        r"saved in few bits \(gptq\), and what reads that is not here .*full precision",
    ),
    "an adapter": (_adapter, {}, r"is an adapter of PEFT for .*, not a model; .*model\.init_from.*merge"),
    "an adapter beside a model": (_adapter_beside_model, {}, r"is an adapter of PEFT for somebody/model, not a model"),
    "a run": (_run_folder, {}, r"is the folder of a run, not of a model; .*model\.init_from"),
    "other classes": (
        _three_classes,
        {"pooling": "model"},
        "own head has 3 classes, and the run has 2; give 3 classes",
    ),
    "texts longer than positions": (_bert, {"max_length": 67}, r"model\.max_length: 67 received; .* at most 66"),
    "added words": (_added("zwölf", "boxkämpfer"), {}, r"2 tokens that the model has no embedding for, .*resize_token"),
    "an added padding token": (_added(pad=True), {}, r"1 tokens that the model has no embedding for, such as '\[FILL"),
    "sentencepiece without its library": (
        _subwords_without_library,
        {},
        r"tokenizer of .* does not load \(its tokens are in spiece\.model alone.*pip install sentencepiece, or put",
    ),
    "no padding token": (
        lambda folder: save_architecture("gpt2", folder),
        {"pooling": "model"},
        r'names no pad_token_id, .*add "pad_token_id": 0 to it .*or set model\.pooling to last or mean',
    ),
    "an encoder with a decoder": (
        _model(_switch),
        {},
        r"SwitchTransformersModel is an encoder with a decoder.*give an encoder, such as BERT, or a decoder",
    ),
    "an encoder with a decoder, to write": (
        _model(lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5))),
        {"task": "causal-lm"},
        r"does not load for 'causal-lm': transformers has no model of T5 for it; choose another model\.task",
    ),
    "two towers": (
        _model(_siglip),
        {},
        r"it is no model of one tower .*; give a model that reads texts alone, or images",
    ),
    "a layer that ends like the head": (_model(_funnel), {}, r"model\.train: 'head' would be trained whole, .*q_head"),
    "no layers of an attention": (
        _model(_xlnet),
        {},
        r"targets: nothing received, and XLNetModel .*allowed: 'all-linear', or names among layer_1, layer_2",
    ),
    "a model of sound": (_model(_whisper), {"max_length": 4}, r"model\.backbone: WhisperModel"),
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


def _in(dtype: torch.dtype) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        hf.AutoModel.from_pretrained(_bert(folder)).to(dtype).save_pretrained(folder)
        return folder

    return make


def _sharded(folder: Path) -> Path:
    model = hf.AutoModel.from_pretrained(_bert(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20kB")
    assert len([*folder.glob("model-*.safetensors")]) > 1
    return folder


def _sharded_bin(folder: Path) -> Path:
    state = torch.load(_as_bin(folder) / "pytorch_model.bin")
    names = sorted(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, own in parts.items():
        torch.save({name: state[name] for name in own}, folder / file)
    (folder / "pytorch_model.bin").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


TAKEN: dict[str, tuple[Callable[[Path], Path], float]] = {
    "pytorch_model.bin": (_as_bin, 0.0),
    "shards": (_sharded, 0.0),
    "shards of pytorch_model.bin": (_sharded_bin, 0.0),
    "float16": (_in(torch.float16), 2e-3),
    "bfloat16": (_in(torch.bfloat16), 2e-2),
}
"""and how far a weight may be from the same in float32, for its size"""


@pytest.mark.parametrize("name", TAKEN)
def test_every_way_to_save_weights_is_read(tmp_path: Path, name: str) -> None:
    make, far = TAKEN[name]
    wanted = load_model(_section(_bert(tmp_path / "plain")), 2, 0).module.get_base_model().state_dict()
    model = load_model(_section(make(tmp_path / "model")), 2, 0)
    found = model.module.get_base_model().state_dict()
    assert {array.dtype for array in found.values() if array.is_floating_point()} == {torch.float32}
    for key, array in wanted.items():
        torch.testing.assert_close(found[key], array, rtol=far, atol=far)
    check_reached(model)


def _layoutlm() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "max_2d_position_embeddings": 8}
    return hf.LayoutLMModel(hf.LayoutLMConfig(**_SMALL, **sizes))


def _esm() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "pad_token_id": 0,
        "mask_token_id": WORDS.index("[MASK]"),
    }
    return hf.EsmModel(hf.EsmConfig(**_SMALL, **sizes))


def _few_positions() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 3}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=len(WORDS), **sizes, bos_token_id=2, eos_token_id=4))


UNUSUAL: dict[str, tuple[Callable[[], hf.PreTrainedModel], dict]] = {
    "T5's encoder": (lambda: hf.T5Model(hf.T5Config(**_T5)), {}),
    "T5's encoder, saved by itself": (lambda: hf.T5EncoderModel(hf.T5Config(**_T5)), {}),
    "LayoutLM": (_layoutlm, {}),
    "ESM": (_esm, {}),
    "OPT-350m": (_opt_350m, {"pooling": "last"}),
    "OPT-350m, to write": (_opt_350m, {"task": "causal-lm"}),
    "XLNet, all layers": (_xlnet, {"lora": {"targets": "all-linear"}}),
    "Funnel's own head": (_funnel, {"pooling": "model"}),
    "three positions": (_few_positions, {"task": "causal-lm", "max_length": 2}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_that_answer_are_taken(tmp_path: Path, name: str) -> None:
    make, changes = UNUSUAL[name]
    model = load_model(_section(_saved(tmp_path, make()), **changes), 2, 0)
    check_reached(model)


def test_an_encoder_with_few_positions_is_no_decoder(tmp_path: Path) -> None:
    config = hf.BertConfig(**_SMALL, hidden_size=32, intermediate_size=64, max_position_embeddings=3, is_decoder=False)
    folder = _saved(tmp_path, hf.BertLMHeadModel(config))
    model = load_model(_section(folder, task="causal-lm", max_length=2), 0, 0)
    with pytest.raises(ModelError, match="changes with the tokens after it"):
        check_reached(model)


def test_the_first_look_moves_no_generator_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    load_model.cache_clear()
    section, state = _section(_bert(tmp_path)), torch.get_rng_state()
    model = load_model(section, 2, 0)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_equal(model.get(), model.initial)


def test_of_a_hub_model_pytorch_model_bin_is_asked_for_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no code in any case."""
    there, asked = _as_bin(tmp_path / "there"), []
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
    shutil.copy(_bert(tmp_path / "other") / "model.safetensors", tmp_path / "cache")
    asked.clear()
    assert backbones.on_this_machine("somebody/model")
    assert len(asked) == 1

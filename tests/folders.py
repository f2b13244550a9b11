"""Folders that people bring as a backbone: each function makes one of a tiny random model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from confide.tests.architectures import WORDS, save_architecture, save_tokenizer

SMALL: dict[str, Any] = {"vocab_size": len(WORDS), "num_hidden_layers": 1, "num_attention_heads": 2}
T5: dict[str, Any] = {"vocab_size": len(WORDS), "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 1, "num_heads": 2}


def saved(folder: Path, model: hf.PreTrainedModel, **options) -> Path:
    model.save_pretrained(folder, **options)
    save_tokenizer(folder, ends=True)
    return folder


def bert(folder: Path) -> Path:
    return save_architecture("bert", folder)


def pointer(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n"
        (bert(folder) / name).write_text(text)
        return folder

    return make


def written(name: str, text: str, make: Callable[[Path], Path] = bert) -> Callable[[Path], Path]:
    """With a file of this content."""

    def changed(folder: Path) -> Path:
        (make(folder) / name).write_text(text)
        return folder

    return changed


def vit(folder: Path) -> Path:
    return save_architecture("vit", folder)


def cut(folder: Path) -> Path:
    file = bert(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return folder


def cut_in_the_header(folder: Path) -> Path:
    file = bert(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    return folder


def as_bin(folder: Path) -> Path:
    """With pytorch_model.bin in place of safetensors."""
    model = hf.AutoModel.from_pretrained(bert(folder))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def cut_bin(folder: Path) -> Path:
    file = as_bin(folder) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-1000])
    return folder


def code_in_bin(folder: Path) -> Path:
    torch.save({"a": print, "b": Path("x")}, as_bin(folder) / "pytorch_model.bin")
    return folder


def other_format(folder: Path) -> Path:
    (bert(folder) / "model.safetensors").rename(folder / "tf_model.h5")
    return folder


def shard_missing(folder: Path) -> Path:
    model = hf.AutoModel.from_pretrained(bert(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20kB")
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()
    return folder


def config(**changes: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = bert(folder) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder

    return make


def adapter(folder: Path) -> Path:
    model = get_peft_model(hf.AutoModel.from_pretrained(bert(folder / "base")), LoraConfig(target_modules=["query"]))
    model.save_pretrained(str(folder / "adapter"))
    return folder / "adapter"


def adapter_beside_model(folder: Path) -> Path:
    (bert(folder) / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    return folder


def run_folder(folder: Path) -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return folder


def fewer_layers(make: Callable[[], hf.PreTrainedModel], key: str) -> Callable[[Path], Path]:
    """With a configuration of one layer for a file of two."""

    def changed(folder: Path) -> Path:
        file = saved(folder, make()) / "config.json"
        content = json.loads(file.read_text())
        assert content[key] == 2
        file.write_text(json.dumps(content | {key: 1}))
        return folder

    return changed


def two_layers() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return hf.BertForMaskedLM(hf.BertConfig(**SMALL | sizes))


def two_layers_in_turn() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 66}
    return hf.GPT2Model(hf.GPT2Config(vocab_size=len(WORDS), **sizes, bos_token_id=2, eos_token_id=4))


def not_a_number(folder: Path) -> Path:
    model = hf.AutoModel.from_pretrained(bert(folder))
    with torch.no_grad():
        model.get_input_embeddings().weight[5, 3] = torch.nan
    model.save_pretrained(folder)
    return folder


def three_classes(folder: Path, names: dict[int, str] | None = None) -> Path:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_labels": 3}
    if names is not None:
        sizes["id2label"] = names
    config = hf.BertConfig(**SMALL, **sizes)
    return saved(folder, hf.BertForSequenceClassification(config))


def added(*tokens: str, pad: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(bert(folder))
        if pad:
            tokenizer.add_special_tokens({"pad_token": "[FILL]"})
        tokenizer.add_tokens(list(tokens))
        tokenizer.save_pretrained(folder)
        return folder

    return make


def subwords_without_library(folder: Path) -> Path:
    config = hf.T5Config(**T5, is_encoder_decoder=False, use_cache=False)
    hf.T5EncoderModel(config).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    return folder


def model(make: Callable[[], hf.PreTrainedModel]) -> Callable[[Path], Path]:
    return lambda folder: saved(folder, make())


def opt_350m() -> hf.PreTrainedModel:
    """Whose embeddings are narrower than its layers."""
    sizes: dict[str, Any] = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 64, "max_position_embeddings": 66}
    return hf.OPTForCausalLM(hf.OPTConfig(**SMALL, **sizes, pad_token_id=0, do_layer_norm_before=False))


def siglip() -> hf.PreTrainedModel:
    text: dict[str, Any] = {**SMALL, "hidden_size": 32, "intermediate_size": 64, "pad_token_id": 0, "bos_token_id": 2}
    image: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=image))


def funnel() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {
        "d_model": 32,
        "n_head": 2,
        "d_head": 16,
        "d_inner": 64,
        "block_sizes": [1, 1],
        "num_decoder_layers": 1,
    }
    return hf.FunnelModel(hf.FunnelConfig(vocab_size=len(WORDS), **sizes))


def xlnet() -> hf.PreTrainedModel:
    return hf.XLNetModel(hf.XLNetConfig(vocab_size=len(WORDS), d_model=32, n_layer=1, n_head=2, d_inner=64))


def switch() -> hf.PreTrainedModel:
    """A T5 of experts."""
    return hf.SwitchTransformersModel(hf.SwitchTransformersConfig(**T5, num_decoder_layers=1, num_experts=2))


def whisper() -> hf.PreTrainedModel:
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


def mae() -> hf.PreTrainedModel:
    """Hides three quarters of an image, drawn anew in each pass."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "image_size": 16, "patch_size": 4}
    return hf.ViTMAEModel(hf.ViTMAEConfig(num_hidden_layers=1, num_attention_heads=2, **sizes))


def in_type(dtype: torch.dtype) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        hf.AutoModel.from_pretrained(bert(folder)).to(dtype).save_pretrained(folder)
        return folder

    return make


def sharded(folder: Path) -> Path:
    model = hf.AutoModel.from_pretrained(bert(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20kB")
    assert len([*folder.glob("model-*.safetensors")]) > 1
    return folder


def sharded_bin(folder: Path) -> Path:
    state = torch.load(as_bin(folder) / "pytorch_model.bin")
    names = sorted(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, own in parts.items():
        torch.save({name: state[name] for name in own}, folder / file)
    (folder / "pytorch_model.bin").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def layoutlm() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "max_2d_position_embeddings": 8}
    return hf.LayoutLMModel(hf.LayoutLMConfig(**SMALL, **sizes))


def esm() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "pad_token_id": 0,
        "mask_token_id": WORDS.index("[MASK]"),
    }
    return hf.EsmModel(hf.EsmConfig(**SMALL, **sizes))


def few_positions() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 3}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=len(WORDS), **sizes, bos_token_id=2, eos_token_id=4))

"""One tiny random model of every architecture that the documentation names, made from its configuration class; and some
that no documentation names, whose layers read something else than a batch of records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput

from confide.tests.tiny import VOCABULARY

WORDS = [*VOCABULARY, "[MASK]"]
NOTHING = "§"
"""a text that the tokenizer makes no token of"""
POSITIONS = 66
_SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_PLACES: dict[str, Any] = {"vocab_size": len(WORDS), "max_position_embeddings": POSITIONS}
_COMMON: dict[str, Any] = {**_SIZE, **_PLACES}
_ROBERTA: dict[str, Any] = {**_COMMON, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "type_vocab_size": 1}
_DECODER: dict[str, Any] = {
    **_COMMON,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 4,
}
_LARGER: dict[str, Any] = {
    **_DECODER,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_GEMMA: dict[str, Any] = {
    **_DECODER,
    "head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
}
_MODERN: dict[str, Any] = {
    **_COMMON,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 4,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "local_attention": 16,
}
_V3: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}

ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**_COMMON)),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**_ROBERTA)),
    "deberta-v3": lambda: hf.DebertaV2Model(hf.DebertaV2Config(**_COMMON, **_V3)),
    "electra": lambda: hf.ElectraModel(hf.ElectraConfig(**_COMMON, embedding_size=16)),
    "albert": lambda: hf.AlbertModel(hf.AlbertConfig(**_COMMON, embedding_size=16)),
    "distilbert": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(
            vocab_size=len(WORDS), max_position_embeddings=POSITIONS, dim=32, n_layers=2, n_heads=2, hidden_dim=64
        )
    ),
    "mpnet": lambda: hf.MPNetModel(hf.MPNetConfig(**_COMMON, pad_token_id=0, bos_token_id=2, eos_token_id=3)),
    "modernbert": lambda: hf.ModernBertModel(hf.ModernBertConfig(**_MODERN)),
    "xlm-r": lambda: hf.XLMRobertaModel(hf.XLMRobertaConfig(**_ROBERTA)),
    "longformer": lambda: hf.LongformerModel(hf.LongformerConfig(**_ROBERTA, attention_window=[16, 16])),
}
DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=2, n_positions=POSITIONS, bos_token_id=2, eos_token_id=4
        )
    ),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_COMMON)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            **_PLACES,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=64,
            word_embed_proj_dim=32,
            pad_token_id=0,
        )
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_DECODER, head_dim=16)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_DECODER)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_DECODER, head_dim=16)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_GEMMA)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**_DECODER)),
}
IMAGES: dict[str, Callable[[], PreTrainedModel]] = {
    "vit": lambda: hf.ViTModel(hf.ViTConfig(**_SIZE, image_size=8, patch_size=4, num_channels=1)),
    "clip-vision": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**_SIZE, image_size=8, patch_size=4, num_channels=3)),
}
ALL = {**ENCODERS, **DECODERS, **IMAGES}
WIDE: dict[str, Callable[[], PreTrainedModel]] = {"wide llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_LARGER))}
"""large enough for the kernels that a CPU takes for larger models"""

TARGETS: dict[str, tuple[str, ...]] = {
    "bert": ("query", "key", "value", "dense"),
    "roberta": ("query", "key", "value", "dense"),
    "deberta-v3": ("dense",),
    "electra": ("query", "key", "value", "dense"),
    "albert": ("query", "value", "ffn"),
    "distilbert": ("q_lin", "v_lin", "lin1"),
    "mpnet": ("q", "v", "dense"),
    "modernbert": ("Wqkv", "Wo", "Wi"),
    "xlm-r": ("query", "key", "value", "dense"),
    "longformer": ("dense",),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "gpt-neox": ("query_key_value", "dense", "dense_h_to_4h"),
    "opt": ("q_proj", "k_proj", "v_proj"),
    "llama": ("q_proj", "o_proj", "gate_proj", "down_proj"),
    "mistral": ("q_proj", "o_proj", "gate_proj", "down_proj"),
    "qwen2": ("q_proj", "o_proj", "gate_proj", "down_proj"),
    "qwen3": ("q_proj", "o_proj", "gate_proj", "down_proj"),
    "gemma3": ("q_proj", "o_proj", "gate_proj", "down_proj"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj"),
    "vit": ("q_proj", "v_proj", "fc1"),
    "clip-vision": ("q_proj", "v_proj", "fc1"),
}
"""layers that LoRA is put on where they are named"""


def save_architecture(name: str, folder: Path) -> Path:
    """Weights of larger spread than usual: two layers of 32 numbers would otherwise make nearly the same of all."""
    torch.manual_seed(0)
    model = (ALL | WIDE)[name]()
    spread_out(model)
    model.save_pretrained(str(folder))
    save_tokenizer(folder, ends=name in ENCODERS and name != "electra")
    return folder


def spread_out(model: nn.Module) -> None:
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.dim() > 1:
                p.normal_(0, 0.15 if "embed" in key else 0.2)


def save_tokenizer(folder: Path, ends: bool) -> None:
    """Words of the vocabulary; ends: [CLS] and [SEP] around each text."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace(NOTHING, "")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="[CLS] $A [SEP]", special_tokens=[(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")]
        )
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "EOS", "MASK")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(folder))


class _Odd(nn.Module):
    """A classifier whose one trained layer, `mixing`, is given more than a batch of records."""

    base_model_prefix = "backbone"

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.words, self.places = nn.Embedding(len(WORDS), 16), nn.Embedding(POSITIONS, 16)
        self.mixing, self.head = nn.Linear(16, 16), nn.Linear(16, classes)
        spread_out(self)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def mixed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, T, h), (B, T, 1) → (B, h)."""
        raise NotImplementedError

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: object
    ) -> SequenceClassifierOutput:
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask)[..., None].float()
        return SequenceClassifierOutput(logits=self.head(self.mixed(self.words(input_ids), mask)))


class Twice(_Odd):
    """The layer runs over all tokens and again over their mean: two calls of different shapes, both batches."""

    def mixed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mean = (torch.tanh(self.mixing(hidden)) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return torch.tanh(self.mixing(mean))


class WithTable(_Odd):
    """The layer also runs over the table of positions, which has no record in it."""

    def mixed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        places = self.mixing(self.places.weight[: hidden.shape[1]])  # (T, h)
        return ((torch.tanh(self.mixing(hidden) + places) * mask).sum(1)) / mask.sum(1).clamp(min=1)


class WithOneRow(_Odd):
    """The layer also runs over one learned row, (1, h)."""

    def mixed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(self.mixing(hidden) + self.mixing(self.places.weight[:1])) * mask).sum(1)


class SequenceFirst(_Odd):
    """(T, B, h) instead of (B, T, h)."""

    def mixed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(self.mixing(hidden.transpose(0, 1))).transpose(0, 1) * mask).sum(1)


class Flattened(_Odd):
    """(B·T, h) instead of (B, T, h)."""

    def mixed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        flat = torch.tanh(self.mixing(hidden.flatten(0, 1)))
        return (flat.view(hidden.shape) * mask).sum(1)


class Centred(_Odd):
    """What it makes of a record depends on the mean of the batch; every layer's input is a batch."""

    def mixed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mean = (torch.tanh(self.mixing(hidden)) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return mean - mean.mean(0, keepdim=True)


class MixedUp(_Odd):
    """The layer reads the batch turned by one record, and its answer is turned back."""

    def mixed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(self.mixing(hidden.roll(1, 0)).roll(-1, 0)) * mask).sum(1)


ODD: dict[str, type[_Odd]] = {
    "one layer twice, with another shape": Twice,
    "one layer also over a table of positions": WithTable,
    "one layer also over one learned row": WithOneRow,
    "sequence first": SequenceFirst,
    "records and tokens in one dimension": Flattened,
    "centred over the batch": Centred,
    "another record's place in the batch": MixedUp,
}

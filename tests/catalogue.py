"""What people bring: many architectures of transformers, each as one tiny random model of its configuration class.

`tests/architectures.py` has those whose privacy is tested record by record; they are among these. Numbers that most
configurations know under the same names are given once; what an architecture calls otherwise, or needs beside, is in
its entry.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from confide.tests.architectures import POSITIONS, WORDS

_TINY: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 4,
    "type_vocab_size": 2,
    "embedding_size": 32,
    "attention_window": [16, 16],
    "num_local_experts": 2,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "state_size": 8,
    "ffn_dim": 64,
    "d_ff": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_heads": 2,
    "d_model": 32,
    "d_kv": 16,
    "layer_types": ["full_attention", "full_attention"],
    "sliding_window": 16,
}
_TINY_IMAGES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
}


@dataclass(frozen=True)
class Entry:
    """One model that is tried."""

    kind: str
    """model_type of its configuration"""
    changes: dict[str, Any] = field(default_factory=dict)
    """on top of what is the same for most"""
    without: tuple[str, ...] = ()
    """keys that most know, and this one refuses"""
    own: str = ""
    """class of transformers; omitted: the auto class's"""

    def config(self, images: bool) -> Any:
        kind = CONFIG_MAPPING[self.kind]
        default = kind()
        same = {key: value for key, value in (_TINY_IMAGES if images else _TINY).items() if key not in self.without}
        fixed = {key for key in same if isinstance(getattr(kind, key, None), property)}
        known = {key: value for key, value in same.items() if key not in fixed and hasattr(default, key)}
        return kind(**known | self.changes)


def _entries(names: str, *others: Entry) -> dict[str, Entry]:
    """names: of those that need nothing of their own."""
    found = {name: Entry(name) for name in names.split()} | {entry.kind: entry for entry in others}
    return dict(sorted(found.items()))


ENCODERS: dict[str, Entry] = _entries(
    "albert bart bert bert-generation big_bird bigbird_pegasus blenderbot camembert canine clip_text_model "
    "convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm eurobert flaubert fnet ibert "
    "jina_embeddings_v3 layoutlm led longformer longt5 luke m2m_100 marian markuplm mbart megatron-bert "
    "mobilebert modernbert mpnet mra mt5 nomic_bert nystromformer pegasus perceiver plbart rembert roberta "
    "roberta-prelayernorm roc_bert roformer splinter squeezebert switch_transformers t5 tapas umt5 xlm "
    "xlm-roberta xlm-roberta-xl yoso",
    Entry(
        "funnel",
        {"block_sizes": [1, 1], "d_head": 16, "d_inner": 64, "n_head": 2, "num_decoder_layers": 1},
        without=("num_hidden_layers",),
        own="FunnelModel",
    ),
    Entry("layoutlmv3", {"coordinate_size": 6, "shape_size": 4}),
    Entry("lilt", {"hidden_size": 48}),
    Entry(
        "prophetnet",
        {
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
        },
        without=("num_hidden_layers",),
    ),
    Entry(
        "reformer",
        {
            "attention_head_size": 16,
            "attn_layers": ["local", "local"],
            "axial_pos_embds_dim": [16, 16],
            "axial_pos_shape": [8, 8],
            "feed_forward_size": 64,
            "local_attn_chunk_length": 8,
            "max_position_embeddings": 64,
        },
    ),
    Entry("siglip_text_model", own="SiglipTextModel"),
    Entry("xlnet", {"d_head": 16, "d_inner": 64, "n_head": 2}, without=("max_position_embeddings",)),
    Entry("xmod", {"languages": ["en_XX"], "default_language": "en_XX"}),
)
DECODERS: dict[str, Entry] = _entries(
    "apertus arcee bart bert biogpt bloom cohere cohere2 ctrl diffllama ernie4_5 "
    "exaone4 falcon falcon_mamba gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neox "
    "gpt_neox_japanese gpt_oss granite granitemoe helium hunyuan_v1_dense jetmoe lfm2 llama mamba "
    "ministral mistral mixtral modernbert-decoder mpt nanochat nemotron olmo olmo2 olmo3 olmoe openai-gpt "
    "opt persimmon phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe rwkv seed_oss smollm3 stablelm "
    "starcoder2 vaultgemma xglm",
    Entry("jamba", {"attn_layer_offset": 1, "attn_layer_period": 2}, without=("layer_types",)),
    Entry("recurrent_gemma", {"block_types": ["recurrent", "attention"]}, without=("layer_types",)),
    Entry(
        "bamba",
        {"attn_layer_indices": [1], "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_heads": 4},
        without=("layer_types",),
    ),
    Entry("codegen", {"num_attention_heads": 4, "rotary_dim": 4}, without=("num_heads",)),
    Entry("mamba2", {"n_groups": 1, "num_heads": 4}),
    Entry(
        "deepseek_v3",
        {
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "n_group": 1,
            "n_routed_experts": 4,
            "q_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "topk_group": 1,
            "v_head_dim": 16,
        },
        without=("head_dim",),
    ),
    Entry("gpt_neo", {"attention_types": [[["global", "local"], 1]]}),
    Entry("gptj", {"rotary_dim": 8}),
    Entry("t5", own="T5ForConditionalGeneration"),
    Entry("xlnet", {"d_head": 16, "d_inner": 64, "n_head": 2}, without=("max_position_embeddings",)),
)
_LISTED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "patch_size")
"""what models of several widths have a list of"""
_WIDTHS: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64]}
_PYRAMID: dict[str, Any] = {**_WIDTHS, "image_size": 64, "num_attention_heads": [1, 2, 4, 8]}
_WINDOWS: dict[str, Any] = {"depths": [1, 1], "embed_dim": 16, "num_heads": [2, 2], "patch_size": 4, "window_size": 2}
IMAGES: dict[str, Entry] = _entries(
    "aimv2_vision_model beit bit clip_vision_model convnext convnextv2 cvt data2vec-vision deit dinov2 "
    "dinov2_with_registers dinov3_convnext dinov3_vit efficientnet focalnet ijepa mobilenet_v2 "
    "mobilevit pixio poolformer regnet resnet siglip_vision_model vit vit_mae "
    "vit_msn ",
    Entry(
        "hiera",
        {"depths": [1, 1, 1, 1], "embed_dim": 8, "image_size": [64, 64], "num_heads": [1, 1, 2, 2]},
        without=_LISTED,
    ),
    Entry(
        "levit",
        {"depths": [1, 1, 1], "hidden_sizes": [16, 32, 48], "key_dim": [8, 8, 8], "num_attention_heads": [2, 2, 2]},
        without=_LISTED,
    ),
    Entry("pvt", _PYRAMID, without=_LISTED),
    Entry("pvt_v2", _PYRAMID, without=_LISTED),
    Entry("segformer", {**_PYRAMID, "decoder_hidden_size": 16}, without=_LISTED),
    Entry("swin", _WINDOWS, without=_LISTED),
    Entry("swinv2", _WINDOWS, without=_LISTED),
    Entry("yolos", {"image_size": [16, 16], "num_detection_tokens": 4}),
)

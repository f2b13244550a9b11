"""The end of a language model in pieces: the same losses, gradients and guesses as with all logits at once."""

import copy
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    CohereConfig,
    DistilBertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from confide.common.model import output
from confide.common.model.output import decoded, ends_apart, guessed, note_end
from confide.common.types import IGNORED

_SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROTATED: dict[str, Any] = {**_SMALL, "num_key_value_heads": 1, "head_dim": 8}
CAUSAL: list[PreTrainedConfig] = [
    LlamaConfig(**_ROTATED),
    Gemma2Config(**_ROTATED, final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    Gemma3TextConfig(**_ROTATED),
    GraniteConfig(**_ROTATED, logits_scaling=4.0),
    CohereConfig(**_ROTATED, logit_scale=0.3),
    GPTNeoXConfig(**_SMALL),
    OPTConfig(**{**_SMALL, "ffn_dim": 24}, word_embed_proj_dim=8, max_position_embeddings=64),
    GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2),
]
MASKED: list[PreTrainedConfig] = [
    BertConfig(**_SMALL),
    RobertaConfig(**_SMALL),
    DistilBertConfig(vocab_size=61, dim=16, n_layers=1, n_heads=2, hidden_dim=24),
]


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(5)
    kind = AutoModelForMaskedLM if config in MASKED else AutoModelForCausalLM
    model = kind.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    model.eval().requires_grad_(False)
    return note_end(model)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and what each position should name: some positions, many, none."""
    torch.manual_seed(6)
    tokens = torch.randint(3, 61, (4, 40))
    wanted = torch.randint(3, 61, (4, 40))
    wanted[0, :30] = IGNORED
    wanted[2] = IGNORED
    return tokens, wanted


def reference(model: PreTrainedModel, inputs: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(inputs_embeds=inputs).logits.float()
    losses = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none", ignore_index=IGNORED)
    return losses, (logits.argmax(-1) == wanted) & (wanted != IGNORED)


@pytest.mark.parametrize("config", [*CAUSAL, *MASKED], ids=lambda config: config.model_type)
def test_pieces_give_the_losses_gradients_and_guesses_of_the_whole(config: PreTrainedConfig) -> None:
    model = model_of(config)
    assert ends_apart(model)
    tokens, wanted = batch()
    embedded = model.get_input_embeddings()(tokens).detach()
    one, two = (embedded.clone().requires_grad_() for _ in range(2))
    weights = torch.linspace(0.5, 2.0, 4)[:, None]  # as if each record's loss weighed otherwise
    expected, right = reference(model, one, wanted)
    losses, _ = guessed(model, decoded(model, {"inputs_embeds": two}), wanted)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    expected, got = ((weights * found).sum() for found in (expected, losses))
    (first,), (second,) = torch.autograd.grad(expected, one), torch.autograd.grad(got, two)
    torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(guessed(model, decoded(model, {"inputs_embeds": embedded}), wanted)[1], right)


def test_no_piece_is_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end never sees more positions at once than fit, nor positions that nobody asks for."""
    model = model_of(CAUSAL[0])
    monkeypatch.setattr(output, "_NUMBERS", 20 * 61)
    seen: list[torch.Size] = []
    cast(nn.Module, model.get_output_embeddings()).register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].shape)
    )
    tokens, wanted = batch()
    losses, _ = guessed(model, decoded(model, {"input_ids": tokens}), wanted)
    assert set(seen) == {torch.Size([1, 16, 16])}
    assert len(seen) == -(-90 // 16)
    assert float(losses[2].abs().sum()) == 0


def test_a_record_has_the_same_bits_among_other_mates() -> None:
    model = model_of(CAUSAL[0])
    tokens, wanted = batch()
    found = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 1, 0]):
        hidden = decoded(model, {"input_ids": tokens[order]}).detach().requires_grad_()
        losses = guessed(model, hidden, wanted[order])[0]
        (gradient,) = torch.autograd.grad(losses.sum(), hidden)
        place = order.index(0)
        found.append((losses[place].detach(), gradient[place]))
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


def test_an_end_that_is_trained_gets_its_gradient() -> None:
    """Tied embeddings, too: then logits are computed whole, one row a record."""
    model = model_of(LlamaConfig(**_ROTATED, tie_word_embeddings=True))
    model.get_input_embeddings().requires_grad_()
    tokens, wanted = batch()
    losses = guessed(model, decoded(model, {"input_ids": tokens}), wanted)[0]
    (got,) = torch.autograd.grad(losses.sum(), cast(nn.Parameter, model.get_input_embeddings().weight))
    other = copy.deepcopy(model)
    logits = other(input_ids=tokens).logits
    whole = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="sum", ignore_index=IGNORED)
    (expected,) = torch.autograd.grad(whole, cast(nn.Parameter, other.get_input_embeddings().weight))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_an_end_that_does_more_than_its_decoder_gives_is_computed_whole() -> None:
    class Other(type(model_of(CAUSAL[0]))):
        def forward(self, *args, **kwargs):
            found = super().forward(*args, **kwargs)
            found.logits = found.logits + found.logits.mean(1, keepdim=True)  # of all positions
            return found

    torch.manual_seed(0)
    model = Other(CAUSAL[0])
    assert not ends_apart(note_end(model))


def test_whole_and_in_pieces_a_run_is_the_same() -> None:
    """The task's own loss, both ways."""
    from confide.common.tasks import causal_lm

    model = model_of(CAUSAL[3])
    tokens, wanted = batch()
    given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "targets": wanted}
    one = causal_lm.record_losses(model, given)
    setattr(model, "output_apart", False)  # noqa: B010
    torch.testing.assert_close(causal_lm.record_losses(model, given), one, rtol=1e-4, atol=1e-5)

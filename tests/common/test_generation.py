"""Batches of generated texts against one at a time, token by token, by the module itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

from confide.common.config.tables import DataSection, ModelSection
from confide.common.model import generation
from confide.common.model.generation import Generator
from confide.common.model.loading import load_model
from confide.tests.tiny import sentences

PLAIN = DataSection(test="none.csv")


def made(backbone: Path, tokens: int = 12, max_length: int = 20, dtype: str = "float32") -> Generator:
    section = ModelSection(backbone=str(backbone), task="causal-lm", max_length=max_length, dtype=dtype)  # pyright: ignore[reportArgumentType]
    model = load_model(section, 0, 0)
    return Generator.of(model.module.get_base_model(), model.tokenizer, PLAIN, max_length, tokens)


def asked(generator: Generator, count: int = 23) -> list[list[int]]:
    """Of very different lengths."""
    return [generator.tokenizer(text)["input_ids"][: 1 + i % 9] for i, (text, _) in enumerate(sentences(count, 5))]


def by_hand(generator: Generator, prompt: list[int]) -> list[int]:
    """The likeliest token each time, without a cache, up to an end."""
    found: list[int] = []
    with torch.no_grad():
        while len(found) < generator.tokens:
            given = torch.tensor([prompt[-generator.longest :] + found])
            found.append(int(generator.module(input_ids=given).logits[0, -1].argmax()))
            if found[-1] in generator.ends:
                return found[:-1]
    return found


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_batches_write_what_single_prompts_do(
    request: pytest.FixtureRequest, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "TOKENS", 120)  # several batches
    generator = made(request.getfixturevalue(backbone))
    prompts = asked(generator)
    wanted = [generator.tokenizer.decode(by_hand(generator, prompt), skip_special_tokens=True) for prompt in prompts]
    assert len(set(wanted)) > 3
    assert generator.written(prompts) == wanted
    assert [generator.written([prompt])[0] for prompt in prompts] == wanted


def test_a_text_ends_where_a_model_says_so(gpt2: Path) -> None:
    generator = made(gpt2)
    prompts = asked(generator)
    third = by_hand(generator, prompts[0])[2]
    generator.module.generation_config.eos_token_id = [third, generator.tokenizer.eos_token_id]
    assert third in generator.ends
    expected = str(generator.tokenizer.decode(by_hand(generator, prompts[0]), skip_special_tokens=True))
    assert generator.written(prompts)[0] == expected
    assert len(expected.split()) <= 2


def test_what_a_model_prefers_of_itself_does_not_decide(gpt2: Path) -> None:
    """Greedy is the likeliest token, whatever generation_config.json says of sampling and repetitions."""
    generator = made(gpt2)
    prompts = asked(generator)
    wanted = generator.written(prompts)
    own = generator.module.generation_config
    own.do_sample, own.temperature, own.top_k, own.repetition_penalty = True, 0.5, 3, 5.0
    assert generator.written(prompts) == wanted


def test_draws_follow_the_seed(gpt2: Path) -> None:
    generator = made(gpt2)
    prompts = asked(generator)
    state = torch.random.get_rng_state()
    drawn = [generator.drawing(5.0, seed).written(prompts) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert generator.drawing(1e-4, 1).written(prompts) == generator.written(prompts)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_end_of_a_prompt_is_read_and_nothing_follows_nothing(gpt2: Path) -> None:
    generator = made(gpt2, tokens=60, max_length=40)  # of 64 positions
    assert (generator.tokens, generator.longest) == (32, 32)
    long = np.arange(40) % 20 + 5
    assert generator.written([long, [], long[-32:]]) == [
        generator.written([long[-32:]])[0],
        "",
        *generator.written([long]),
    ]


def test_in_bfloat16(llama: Path) -> None:
    generator = made(llama, dtype="bfloat16")
    prompts = asked(generator)
    assert next(generator.module.parameters()).dtype == torch.bfloat16
    assert generator.written(prompts) == generator.written(prompts)
    assert any(generator.written(prompts))

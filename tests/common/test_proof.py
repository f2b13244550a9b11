"""Per-record gradients are proved before data is read: right ones pass, wrong ones are named and refused."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from confide.client.worker import Worker
from confide.common.config.tables import LoraSection, ModelSection
from confide.common.errors import ModelError, PrivacyError
from confide.common.model import per_sample, proof
from confide.common.model.apart import Operations, check_apart, small_products
from confide.common.model.checksums import checksums
from confide.common.model.dummies import dummy_records
from confide.common.model.elementwise import Elementwise, leaves_rest
from confide.common.model.limits import check_length
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.model.per_sample import clipped_sum, hooked
from confide.common.model.proof import check_reached, prove
from confide.common.model.shapes import Shapes
from confide.common.types import Records
from confide.tests.architectures import WORDS, save_architecture, save_tokenizer, spread_out
from confide.tests.rings import slow

SHAPES = Shapes(24, 16, 30.0)


def load(folder: Path, name: str, seed: int = 0, **section) -> FineTuneModel:
    lora = LoraSection(rank=2, alpha=4, targets=section.pop("targets", None))
    made = ModelSection(backbone=str(save_architecture(name, folder)), max_length=24, lora=lora, **section)
    return load_model(made, 3, seed)


def test_a_record_has_the_same_bits_in_every_place_and_company(bert: Path) -> None:
    model = load_model(ModelSection(backbone=str(bert), max_length=24, lora=LoraSection(rank=2)), 3, 0)
    model.set({n: a + np.float32(0.05) for n, a in model.initial.items()})
    shapes = prove(model, SHAPES)
    records, rng = dummy_records(model, [20, 18, 24, 17, 22, 19, 21, 23] * 4, 5), np.random.default_rng(1)

    def part_of(rows: np.ndarray, place: int) -> torch.Tensor:
        with hooked(model):
            gradients = per_sample.record_gradients(model, model.losses(records, rows, 24))
        return torch.cat([part[place] for part in gradients])

    count = shapes.rows(24)
    wanted = part_of(np.arange(count), 3)
    for place in range(count):
        mates = rng.integers(0, 32, count)
        mates[place] = 3
        assert torch.equal(part_of(mates, place), wanted)


@pytest.mark.parametrize(
    ("name", "section", "expected"),
    [
        ("bert", {}, True),
        ("distilbert", {"pooling": "mean", "targets": ("q_lin",)}, True),
        ("vit", {"task": "image-classification", "targets": ("q_proj",)}, True),
        ("mistral", {"pooling": "last", "dtype": "bfloat16"}, True),
        ("roberta", {"task": "regression"}, True),
        ("bert", {"task": "token-classification"}, False),
        ("bert", {"task": "masked-lm", "pooling": "model"}, True),  # of two positions
        ("llama", {"task": "causal-lm"}, True),  # logits of few positions, of thirty tokens
    ],
)
def test_where_a_product_takes_few_vectors_of_each_record_many_records_are_compared(
    tmp_path: Path, name: str, section: dict[str, Any], expected: bool
) -> None:
    model = load(tmp_path, name, **section)
    length = 0 if name == "vit" else 16
    records = dummy_records(model, [max(1, length - 1)] * 16)
    with Operations() as operations, torch.no_grad():
        model.losses(records, np.arange(16), length)
    assert bool(small_products(operations.seen, 16)) == expected


@pytest.mark.parametrize("rows", [2, 4])
def test_gradients_of_the_whole_batch_are_no_products_of_few_vectors(tmp_path: Path, rows: int) -> None:
    """LoRA of rank 4: A's gradient over the batch is of 4 vectors, one or two a record, and nothing of it is used."""
    section = {"backbone": str(save_architecture("gpt2", tmp_path)), "task": "causal-lm", "max_length": 24}
    model = load_model(ModelSection.parse({**section, "lora": {"rank": 4, "alpha": 4}}, "test"), 3, 0)
    found = proof._Proof(model, Shapes(24, 16, 30.0), (1,))
    seen = found._seen(25, rows)
    plain = small_products(seen, rows, found._weights)
    assert any((4, 32) in results for _, results, _ in plain)
    assert not any((4, 32) in results for _, results, _ in found._work(25, rows)[1])


def test_a_product_that_only_looks_like_a_gradient_of_the_batch_is_looked_at(tmp_path: Path) -> None:
    """BERT's pooler, for two records of 16 tokens: (2, 32) by (32, 32), as the gradient of LoRA's A of rank 2 is."""
    model = load(tmp_path, "bert", pooling="model")
    with proof.filled_in(model):
        found = proof._Proof(model, SHAPES, (1,))
        for length in (16, 25):
            pooler = [p for p in found._work(length, 2)[1] if p[1] == ((2, 32),)]
            assert any((32, 32) in read for _, _, read in pooler), length


@pytest.mark.parametrize(("length", "most"), [(16, 4), *slow((16, 2), (24, 4), (12, 16))])
@pytest.mark.parametrize("task", ["masked-lm", "token-classification"])
def test_records_may_change_places_at_every_length(tmp_path: Path, task: Any, length: int, most: int) -> None:
    """Beyond sixteen tokens two rows had never changed places in the proof, and every pair came out otherwise."""
    section = {"max_length": length, "task": task, "pooling": "model" if task == "masked-lm" else "mean"}
    backbone = str(save_architecture("bert", tmp_path))
    model = load_model(ModelSection(backbone=backbone, lora=LoraSection(rank=2, alpha=4), **section), 3, 0)
    model.set({n: a + np.float32(0.05) for n, a in model.initial.items()})
    shapes, rng = prove(model, Shapes(length, most, 10.0)), np.random.default_rng(3)
    for padded in shapes.all_lengths:
        rows, records = shapes.rows(padded), dummy_records(model, [padded - 1] * 40, 9)
        for _ in range(20):
            one, order = rng.permutation(40)[:rows], rng.permutation(rows)
            first, again = (_gradients(model, records, which, padded) for which in (one, one[order]))
            assert torch.equal(first[order], again), (padded, rows)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["rank 1", "number of each token"])
def test_a_product_to_one_number_over_all_tokens_is_shown_alike_or_read_alone(
    tmp_path: Path, kind: str, seed: int
) -> None:
    """Its last vectors, of 25 tokens, take another kernel: of two records accepted by few looks every pair differed."""
    name = "bert" if kind == "rank 1" else "llama"
    section: dict[str, Any] = {"task": "token-classification", "lora": LoraSection(rank=1, targets=("value",))}
    if kind != "rank 1":
        section = {"task": "regression", "pooling": "model", "train": "head"}
    backbone = str(save_architecture(name, tmp_path))
    model = load_model(ModelSection(backbone=backbone, max_length=24, **section), 3, seed)
    shapes, rng = prove(model, Shapes(24, 2, 100.0)), np.random.default_rng(seed)
    model.set({n: a + rng.normal(0, 0.1, a.shape).astype(np.float32) for n, a in model.initial.items()})
    records = dummy_records(model, [24] * 30, 99 + seed)
    if shapes.rows(25) == 2:
        for _ in range(40):
            pair = rng.choice(30, 2, replace=False)
            first, again = (_gradients(model, records, which, 25) for which in (pair, pair[::-1].copy()))
            assert torch.equal(first.flip(0), again)


@pytest.mark.slow
def test_elementwise_functions_leave_no_rest_where_it_would_be_computed_otherwise(tmp_path: Path) -> None:
    """SiLU of 3 · 16 · 636 and of 3 · 21 · 636 numbers, in two ranges."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=64,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=636,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    backbone = LlamaForCausalLM(config)
    spread_out(backbone)
    backbone.save_pretrained(str(tmp_path))
    save_tokenizer(tmp_path, ends=False)
    lora = LoraSection(rank=4, targets=("q_proj", "o_proj"))
    model = load_model(ModelSection(backbone=str(tmp_path), task="causal-lm", max_length=20, lora=lora), 3, 0)
    torch.set_num_threads(2)
    try:
        assert prove(model, Shapes(20, 3, 100.0)).found == {16: 3, 21: 1}
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("function", "matters"),
    [
        (torch.nn.functional.silu, True),
        (torch.sigmoid, True),
        (partial(torch.nn.functional.gelu, approximate="tanh"), True),
        (torch.nn.functional.gelu, False),
        (torch.tanh, False),
        (lambda x: torch.where(x > 0, x * 3.0 + x, 0.5), False),
    ],
)
@pytest.mark.parametrize("count", [31, 32, 33, 64, 40_000])
def test_which_elementwise_functions_depend_on_the_place(function: Any, matters: bool, count: int) -> None:
    x = torch.randn(count, requires_grad=True)
    with Elementwise() as seen:
        function(x).sum().backward()
    assert seen.alike() == (not matters or count % 32 == 0)


def test_a_constant_has_no_place() -> None:
    with Elementwise() as seen:
        _ = torch.log(torch.tensor(8.1)) * torch.sqrt(torch.tensor(48.0))
    assert seen.alike()


@pytest.mark.parametrize(
    ("numbers", "itemsize", "threads", "expected"),
    [
        (30_528, 4, 2, False),  # fewer than are divided
        (40_068, 4, 2, True),
        (64 * 49 * 1536, 4, 2, False),
        (64 * 49 * 1536, 4, 6, False),
        (8 * 49 * 1536, 4, 5, True),  # the second thread begins at number 120,423
        (96, 4, 1, False),
        (96, 2, 1, True),
    ],
)
def test_where_a_threads_range_ends_without_a_whole_vector(
    numbers: int, itemsize: int, threads: int, expected: bool
) -> None:
    assert leaves_rest(numbers, itemsize, threads) == expected


def _gradients(model: FineTuneModel, records: Records, which: np.ndarray, length: int) -> torch.Tensor:
    with hooked(model):
        return torch.cat(per_sample.record_gradients(model, model.losses(records, which, length)), 1).clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (4, 7, 9), (2, 1), (3, 70_001), (4, 16)])
def test_checksums_see_bits_that_change(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Of one number of a row, or the same bit of several, the sign among them; and that two numbers changed places."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    before, width = checksums(values), values[0].numel()
    assert len(set(before.tolist())) == len(values)
    rng = np.random.default_rng(2)
    for number in range(200):
        places = rng.choice(width, min(width, 1 + number % 4), replace=False) if number % 5 else np.arange(1, width, 2)
        if len(places):
            changed, bit = values.clone(), number % (8 * dtype.itemsize)
            changed.view(whole).flatten(1)[1, places] ^= torch.tensor(1, dtype=whole) << bit
            after = checksums(changed)
            assert after[1] != before[1], (places, bit)
            assert torch.equal(after[[0]], before[[0]])
    assert not torch.equal(checksums(-values), before)
    if width > 1:
        turned = values.flatten(1).clone()
        turned[0, [0, width - 1]] = turned[0, [width - 1, 0]]
        assert checksums(turned)[0] != before[0]


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 3, 0), (0, 4), (4, 3, 0, 2)])
def test_checksums_of_every_shape(shape: tuple[int, ...]) -> None:
    found = checksums(torch.randn(shape))
    assert found.shape == shape[:1]
    assert len(set(found.tolist())) == (4 if shape == (4,) else min(1, shape[0]))


def test_a_table_that_passes_through_a_trained_layer_is_refused(tmp_path: Path) -> None:
    """DeBERTa-v3 with PEFT's default targets: a record moved the sum by 1.48 C."""
    with pytest.raises(ModelError, match=r"query_proj reads an array of shape \(1, .*not the batch.*lora\.targets"):
        prove(load(tmp_path, "deberta-v3"), SHAPES)


def test_other_targets_of_the_same_model_work(tmp_path: Path) -> None:
    prove(load(tmp_path, "deberta-v3", targets=("value_proj", "dense")), SHAPES)


def test_a_sequence_first_layer_is_refused_even_where_the_numbers_agree(tmp_path: Path) -> None:
    """Longformer's projections read (tokens, records, width); with as many tokens as records no shape tells."""
    model = load(tmp_path, "longformer", targets=("query", "value"))
    with pytest.raises(ModelError, match=r"self\.(query|value)"):
        prove(model, SHAPES)
    for length, rows in ((16, 16), (8, 8)):
        with pytest.raises(ModelError, match=r"self\.(query|value)"):
            prove(model, Shapes(length, rows, 1e9))


def test_a_layer_that_is_applied_twice_is_right(tmp_path: Path) -> None:
    prove(load(tmp_path, "albert", targets=("query", "value")), SHAPES)


def test_a_loss_that_looks_at_batch_mates_is_refused(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's causal loss averages over a batch's tokens; this one divides by the mean of all losses."""
    model = load_model(ModelSection(backbone=str(bert), max_length=24, lora=LoraSection(rank=2)), 3, 11)
    real = model.task.record_losses
    monkeypatch.setattr(
        model.task, "record_losses", lambda module, batch: (found := real(module, batch)) / found.mean().detach()
    )
    with pytest.raises(ModelError, match="differs from that of the record taken alone"):
        prove(model, SHAPES)


def test_every_call_of_a_layer_is_checked_in_training_too(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that reads a table of one row beside the batch, after the proof: no sum is given away."""
    model = load_model(ModelSection(backbone=str(bert), max_length=24, lora=LoraSection(rank=2)), 3, 12)
    records = dummy_records(model, [9, 8, 7])
    query = next(m for n, m in model.module.named_modules() if n.endswith("query"))
    with hooked(model):
        losses = model.losses(records, np.arange(3)) + query(torch.ones(1, 4, 32)).sum() * 0.1
        with pytest.raises(PrivacyError, match=r"query reads an array of shape \(1, 4, 32\) in a batch of 3 records"):
            clipped_sum(model, losses, 1.0)


def test_a_text_longer_than_the_positions_is_refused_before_anything_else(tmp_path: Path, bert: Path) -> None:
    with pytest.raises(ModelError, match="65 received; this backbone has positions for 64 tokens"):
        load_model(ModelSection(backbone=str(bert), max_length=65), 2, 0)
    folder = save_architecture("roberta", tmp_path)  # 66 positions, counted from its padding on
    with pytest.raises(ModelError, match="positions for 65 tokens"):
        load_model(ModelSection(backbone=str(folder), max_length=66), 2, 0)
    check_reached(load_model(ModelSection(backbone=str(folder), max_length=65), 2, 0))
    check_length(nn.Linear(2, 2), 10**6)  # nothing is stated


def test_a_site_refuses_before_it_reads(make_config, local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(
        run={"id": "r"},
        model={"backbone": str(save_architecture("deberta-v3", tmp_path / "backbone"))},
        data={"labels": ["negative", "positive"]},
        privacy=local,
    )
    with pytest.raises(ModelError, match="query_proj"):
        Worker(config, lambda *_: pytest.fail("data was read"))
    assert proof.prove is not None


def test_a_clipped_sum_is_bounded_whatever_the_types_do(bert: Path) -> None:
    """‖S(D) − S(D − r)‖ ≤ C to the last bit that float64 holds, for gradients of any size."""
    model = load_model(ModelSection(backbone=str(bert), max_length=24, lora=LoraSection(rank=2)), 3, 0)
    records = dummy_records(model, [9] * 16, 3)
    for clip in (1e-6, 1e-2, 1e2):
        with hooked(model):
            whole = clipped_sum(model, model.losses(records, np.arange(16), 16), clip)[0]
            left = clipped_sum(model, model.losses(records, np.resize(np.arange(1, 16), 16), 16), clip, 15)[0]
        assert float((whole - left).norm()) <= clip


@pytest.mark.parametrize("max_length", [8, 16, 17, 24])
def test_weights_that_are_used_twice_are_refused_at_any_length(wordpiece: Path, max_length: int) -> None:
    """Trained whole, the embeddings are also what guessed words are compared with: hooks see one use of two."""
    section = ModelSection(backbone=str(wordpiece), task="masked-lm", train="full", max_length=max_length)
    model = load_model(section, 0, 0)
    with pytest.raises(ModelError, match=r"word_embeddings.*differs from that of the record taken alone"):
        prove(model, Shapes(max_length, 16, 30.0))


def test_a_refused_model_is_refused_for_the_same_reason_again(tmp_path: Path) -> None:
    section = ModelSection(
        backbone=str(save_architecture("gemma3", tmp_path)), task="causal-lm", train="full", max_length=24
    )
    model = load_model(section, 0, 0)
    for expected in (30.0, 31.0):
        with pytest.raises(ModelError, match=r"embed_tokens .*buffers"):
            prove(model, Shapes(24, 16, expected))


@pytest.mark.parametrize("train", ["lora", "head"])
def test_a_model_that_changes_with_what_it_reads_is_refused(tmp_path: Path, train: Literal["lora", "head"]) -> None:
    """BigBird takes full attention for good after one short batch: the next record's gradient is another then, and of
    other teachers' votes one record turned 425 (1.13 C)."""
    from transformers import BigBirdConfig, BigBirdModel

    from confide.tests.tiny import VOCABULARY, save

    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    config = BigBirdConfig(
        **size, vocab_size=len(VOCABULARY), max_position_embeddings=130, block_size=4, num_random_blocks=1
    )
    section = ModelSection(
        backbone=str(save(BigBirdModel(config), tmp_path)),
        max_length=120,
        train=train,
        lora=LoraSection(targets=("query", "value")),
    )
    for seed, check in enumerate((check_apart, lambda model: prove(model, Shapes(120, 16, 30.0)))):
        with pytest.raises(ModelError, match="changes with what it has read"):
            check(load_model(section, 2, seed))
    check_apart(load(tmp_path / "other", "electra", train=train))


def mixtral(experts: int):
    """The configuration of a small mixture of experts; its weights follow from the seed."""
    from transformers import MixtralConfig

    from confide.tests.tiny import VOCABULARY

    torch.manual_seed(0)
    return MixtralConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=experts,
        max_position_embeddings=66,
        pad_token_id=0,
    )


def test_a_model_that_routes_tokens_gets_one_record_at_a_time(tmp_path: Path) -> None:
    """How many tokens an expert multiplies depends on the mates, and so may the kernel that does it."""
    from transformers import MixtralForCausalLM

    from confide.tests.tiny import save

    config = mixtral(4)
    section = ModelSection(
        backbone=str(save(MixtralForCausalLM(config), tmp_path)),
        task="causal-lm",
        max_length=24,
        lora=LoraSection(targets=("q_proj", "v_proj")),
    )
    assert set(prove(load_model(section, 0, 0), SHAPES).found.values()) == {1}


def test_features_of_a_model_that_routes_tokens_are_refused(tmp_path: Path) -> None:
    """A head with large weights, which the server chooses, makes a gradient of 2C of a last bit."""
    from transformers import MixtralModel

    from confide.tests.tiny import save

    config = mixtral(8)
    backbone = str(save(MixtralModel(config), tmp_path))
    model = load_model(ModelSection(backbone=backbone, max_length=24, train="head"), 3, 0)
    with pytest.raises(ModelError, match="changes with the records beside it"):
        prove(model, SHAPES)
    with pytest.raises(ModelError, match="changes with the records beside it"):
        check_apart(model)


def test_a_backbone_is_looked_at_within_its_positions(tmp_path: Path) -> None:
    section = ModelSection(backbone=str(save_architecture("bert", tmp_path)), max_length=64, train="head")
    model = load_model(section, 3, 0)
    assert model.positions is not None
    check_apart(replace(model, max_length=model.positions))


def test_a_last_bit_that_is_lost_further_on_is_seen_where_it_arises(bert: Path) -> None:
    """Kernels for few rows treat the rows of one batch differently, in one number of twenty; beside small logits the
    gradients need not show it. Here one position's logits are one bit longer wherever a record has mates."""
    model = load_model(ModelSection(backbone=str(bert), max_length=24, train="head", lora=LoraSection(rank=2)), 3, 0)
    assert all(rows > 1 for rows in prove(model, Shapes(24, 16, 30.0)).found.values())
    other = load_model(ModelSection(backbone=str(bert), max_length=24, train="head", lora=LoraSection(rank=2)), 3, 1)
    head = next(part for name, part in other.module.named_modules() if name.endswith("modules_to_save.default"))

    def rounded(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        places = torch.arange(len(output)) % 4 == 1
        return torch.where(places[:, None], torch.nextafter(output, output + 1), output) if len(output) > 1 else output

    head.register_forward_hook(rounded)
    assert set(prove(other, Shapes(24, 16, 30.0)).found.values()) == {1}


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_model_that_draws_random_numbers_is_refused(tmp_path: Path, train: Literal["lora", "full"]) -> None:
    """ViT-MAE shuffles its patches by torch's generator, even where it hides none of them: a record that was read moved
    other records' gradients by 4e-6 C, in batches of one row."""
    from transformers import ViTMAEConfig, ViTMAEModel

    from confide.tests.tiny import save

    torch.manual_seed(0)
    size: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTMAEConfig(hidden_size=16, image_size=8, patch_size=4, num_channels=1, mask_ratio=0.0, **size)
    section = ModelSection(
        task="image-classification",
        backbone=str(save(ViTMAEModel(config), tmp_path)),
        train=train,
        lora=LoraSection(targets=("q_proj", "v_proj")),
    )
    for seed, check in enumerate((check_apart, lambda model: prove(model, Shapes(0, 16, 30.0)))):
        with pytest.raises(ModelError, match="draws random numbers while it reads"):
            check(load_model(section, 2, seed))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_in_bfloat16_the_shapes_hold_for_weights_of_more_bits(tmp_path: Path, kind: str) -> None:
    """LoRA's A begins with numbers of eight bits, whose products add up without rounding: any kernel looks alike.
    Two records of five tokens, 48 numbers wide, had other bits the other way round."""
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
    }
    ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 4}
    torch.manual_seed(0)
    made: Any = BertModel(BertConfig(**sizes))
    if kind == "llama":
        made = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, **ends))
    spread_out(made)
    made.save_pretrained(str(tmp_path))
    save_tokenizer(tmp_path, ends=kind == "bert")
    section = {"backbone": str(tmp_path), "max_length": 4, "dtype": "bfloat16", "lora": {"rank": 2, "alpha": 4}}
    task = "causal-lm" if kind == "llama" else "sequence-classification"
    model = load_model(ModelSection.model_validate(section | {"task": task}), 0 if kind == "llama" else 3, 0)
    with proof.filled_in(model):
        for name, array in model.get().items():
            assert not np.array_equal(array, torch.from_numpy(array).bfloat16().float().numpy()), name
    rows, rng = prove(model, Shapes(4, 2, 4.0)).rows(5), np.random.default_rng(3)
    model.set({name: (a + rng.normal(size=a.shape)).astype(np.float32) for name, a in model.initial.items()})
    records = dummy_records(model, [4] * 60, 9)
    for start in range(0, 60, rows):
        bits = []
        for which in (np.arange(start, start + rows), np.arange(start, start + rows)[::-1].copy()):
            with hooked(model):
                found = per_sample.record_gradients(model, model.losses(records, which, 5))
            bits.append(torch.cat(found, dim=1))
        assert torch.equal(bits[0], bits[1].flip(0))

"""A language model, Gemma 3 270M of confide[llm], on the CPU: speed and memory of a step, and what training is worth.

    python -m benchmarks.llm step              seconds and memory of a step of 64 E2E records
    python -m benchmarks.llm weights           memory and gradients of a 0.5B shape in float32, int8 and nf4
    python -m benchmarks.llm e2e [SECONDS]     E2E before and after, by ε; finished runs are kept in llm.json

Needs E2E as csv files: ../shared/data, or the folder in CONFIDE_DATA.
"""

import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.run import DATA, HERE, Table, play, python, write_part
from benchmarks.step import mechanism_of
from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig, load
from confide.common.config.tables import LoraSection, ModelSection
from confide.common.model.dummies import dummy_records
from confide.common.model.loading import FineTuneModel, load_model, model_of
from confide.common.model.per_sample import clipped_sum, hooked, record_gradients
from confide.common.types import Records
from confide.simulations.recipes import find_recipe

RECORDS, REPEATS = 64, 3
KEPT = HERE / "llm.json"
MARK = "# A language model: E2E"
SEEDS = (7, 8, 9)
ROUNDS, PERSONS, VOCABULARY = 6, 547, 151_936
RUNS: dict[str, dict[str, object]] = {
    "none": {"privacy.mode": "none", "training.batch_size": 17},  # as many a step as q·N
    "8": {"privacy.epsilon": 8.0},
    "person 8": {"privacy.epsilon": 8.0, "data.person": "facts"},
    "3": {"privacy.epsilon": 3.0},
}


def config_of(settings: dict[str, object]) -> RunConfig:
    """The recipe on E2E's files, with other settings."""
    files = {f"data.{split}": DATA / "e2e" / f"{split}.csv" for split in ("train", "test")}
    return load(find_recipe("e2e"), [f"{key}={value}" for key, value in (files | settings).items()])


def measured(model: FineTuneModel, records: Records, rows: int) -> dict[str, float]:
    """Seconds of a step over all records in batches of so many, with privacy and without, turn by turn; the peak."""
    parts, _ = records.by_length(np.arange(len(records)), rows)
    mechanism = mechanism_of(model, rate=0.03, steps=100, units=4672)
    seconds: dict[str, list[float]] = {"plain": [], "private": []}
    for _ in range(REPEATS):
        for kind, found in seconds.items():
            started = time.perf_counter()
            if kind == "private":
                mechanism.draw(0)
                mechanism.release(np.sum([_clipped(model, records, part) for part in parts], axis=0))
            else:
                for part in parts:
                    torch.autograd.grad(model.losses(records, part).mean(), list(model.trained.values()))
            found.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    medians = {kind: float(np.median(found[1:])) for kind, found in seconds.items()}
    return {**medians, "peak": peak, "tokens": float(np.diff(records.offsets).mean())}


def _clipped(model: FineTuneModel, records: Records, part: np.ndarray) -> np.ndarray:
    with hooked(model):
        total, _ = clipped_sum(model, model.losses(records, part), 1.0)
    return total.double().numpy()


def one_step(dtype: str, rows: str, result: str) -> None:
    """In a process of its own."""
    config = resolve(config_of({"model.dtype": dtype}))
    model = model_of(config)
    texts = model.rows(str(config.data.train), config.data)
    found = model.encode(texts.take(np.random.default_rng(7).choice(len(texts), RECORDS, replace=False)))
    Path(result).write_text(json.dumps(measured(model, found, int(rows))))


def step(scratch: Path) -> Table:
    table: Table = []
    for dtype, rows in (("float32", 4), ("float32", 32), ("bfloat16", 4), ("bfloat16", 32)):
        python("-W", "ignore", "-m", "benchmarks.llm", "one-step", dtype, rows, scratch / "one.json")
        one = json.loads((scratch / "one.json").read_text())
        speed = [RECORDS / one[kind] for kind in ("private", "plain")]
        table += [
            (f"{dtype}, batches of {rows}: records a second, private", f"{speed[0]:.1f}", ""),
            (f"{dtype}, batches of {rows}: with / without privacy", f"{speed[1] / speed[0]:.2f}×", "≤ 1.15×"),
            (f"{dtype}, batches of {rows}: peak of the process", f"{one['peak']:.1f} GiB", "≤ 4 GiB"),
        ]
    return table


def run(name: str, seed: int) -> dict[str, Any]:
    """Before and after of one run of the recipe, shortened."""
    with tempfile.TemporaryDirectory(prefix="confide-llm-") as scratch:
        recipe, output = Path(scratch) / "recipe.toml", Path(scratch) / "run"
        settings: dict[str, object] = {
            "run.seed": seed,
            "run.rounds": ROUNDS,
            "run.output": output,
            "server.evaluation_limit": 16,
            "evaluation.limit": 64,
            "evaluation.generate": 32,
            **RUNS[name],
        }
        if "data.person" in settings:
            settings |= {"privacy.declared_persons": PERSONS, "privacy.declared_examples": ""}
        recipe.write_text(config_of(settings).to_toml(), encoding="utf-8")
        started = time.perf_counter()
        python("-W", "ignore", "-m", "confide.cli.main", "simulate", recipe)
        report = json.loads((output / "report.json").read_text())
        kept = {key: _figures(report[key]) for key in ("before", "after")}
        noise = report["privacy"]["noise_multiplier"]
        return {
            **kept,
            "noise_multiplier": 0.0 if noise is None else noise,
            "seconds": time.perf_counter() - started,
            "round": float(np.median([row["seconds"] for row in report["rounds"][1:]])),
        }


def _figures(measured: dict[str, Any]) -> dict[str, float]:
    return {"loss": measured["loss"], **{key: measured["generation"][key] for key in ("bleu", "rouge_l")}}


def e2e(seconds: float) -> None:
    until = time.monotonic() + seconds
    found: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for seed in SEEDS:
        for name in RUNS:
            if f"{name}/{seed}" not in found:
                if time.monotonic() > until:
                    break
                found[f"{name}/{seed}"] = run(name, seed)
                KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                print(name, seed, found[f"{name}/{seed}"], flush=True)
    rows = []
    for name in RUNS:
        if own := [one for seed in SEEDS if (one := found.get(f"{name}/{seed}"))]:
            rows.append(
                f"| {_in_words(name)} | {_column(own, 'loss')} | {_column(own, 'bleu')} | "
                f"{_column(own, 'rouge_l')} | {np.mean([one['noise_multiplier'] for one in own]):.2f} | {len(own)} |"
            )
    write_part(
        MARK,
        [
            f"`python -m benchmarks.llm e2e`: recipe `e2e` with T = {ROUNDS}: Gemma 3 270M, LoRA of rank 8 in q and v, "
            "4,672 texts at 8 sites, q = 0.03 (140 texts a round), Adam 0.003, mode distributed, δ = 1e-5; before → "
            "after on 64 rows of the test set (loss) and for 32 of its prompts with all their references (BLEU, "
            "ROUGE-L). Mean of the seeds.",
            "",
            "| ε | loss | BLEU | ROUGE-L | noise multiplier | seeds |",
            "|---|---|---|---|---|---|",
            *rows,
        ],
    )


def _in_words(name: str) -> str:
    return {"none": "∞ (mode none)", "person 8": "8 for a person (all texts of one set of facts)"}.get(name, name)


def _column(runs: list[dict[str, Any]], key: str) -> str:
    before, after = (np.mean([one[when][key] for one in runs]) for when in ("before", "after"))
    return f"{before:.2f} → {after:.2f}"


def save_shape(folder: Path) -> None:
    """Random weights in the shape of Qwen2 0.5B, and a tokenizer of numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    words = [*special.values(), *map(str, range(3, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def one_shape(folder: str, weights: str, result: str) -> None:
    """In a process of its own: what the process holds before and at most within a step, and the records' gradients."""
    lora = LoraSection(rank=8, alpha=16, targets=("q_proj", "v_proj"))
    section = ModelSection(
        backbone=folder, task="causal-lm", max_length=64, lora=lora, dtype="float32", weights=cast(Any, weights)
    )
    before = _held()
    model = load_model(section, 0, 0)
    rng = np.random.default_rng(5)  # B of LoRA is not zero in the middle of a run
    model.set({name: a + 0.02 * rng.normal(size=a.shape).astype(np.float32) for name, a in model.initial.items()})
    records = dummy_records(model, [63] * 4)
    resting, peak, over = _held(), 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, _held())

    watching = threading.Thread(target=look)
    watching.start()
    with hooked(model):
        gradients = torch.cat(record_gradients(model, model.losses(records, np.arange(4), 64), 4), 1)  # (4, d)
    over.set()
    watching.join()
    np.save(f"{result}.npy", gradients.numpy())
    Path(result).write_text(json.dumps({"resting": resting - before, "peak": peak - before}))


def _held() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def weights(scratch: Path) -> Table:
    save_shape(scratch / "shape")
    table: Table = []
    found: dict[str, dict[str, float]] = {}
    for kind, target in (("full", ""), ("int8", "≤ 0.5×"), ("nf4", "≤ 0.4×")):
        result = scratch / f"{kind}.json"
        python("-W", "ignore", "-m", "benchmarks.llm", "one-shape", scratch / "shape", kind, result)
        found[kind] = json.loads(result.read_text())
        one, full = (np.load(scratch / f"{name}.json.npy") for name in (kind, "full"))
        apart = np.linalg.norm(one - full, axis=1) / np.linalg.norm(full, axis=1)
        share = found[kind]["peak"] / found["full"]["peak"]
        table.append((f"{kind}: weights", f"{found[kind]['resting'] / 2**30:.2f} GiB", ""))
        peak = f"{found[kind]['peak'] / 2**30:.2f} GiB, {share:.2f}×"
        table.append((f"{kind}: peak of a private step of 4 × 64 tokens", peak, target))
        if kind != "full":
            table.append((f"{kind}: a record's gradient differs from float32's by", f"{100 * apart.max():.0f} %", ""))
    return table


PARTS = {"step": step, "weights": weights}


def _how(part: str) -> str:
    if part == "weights":
        return (
            "`python -m benchmarks.llm weights`: Qwen2's 0.5B shape, random weights, float32 beside int8 and nf4 (of "
            "linear layers; the table of 151,936 tokens stays), LoRA of rank 8 in q and v; memory beside libraries'."
        )
    return (
        f"`python -m benchmarks.llm {part}`, cpu, {torch.get_num_threads()} threads, torch {torch.__version__}: Gemma "
        f"3 270M, LoRA of rank 8 in q and v, a step of {RECORDS} texts of E2E (64 tokens each), batches by "
        f"length; median of {REPEATS - 1}, private (gradients of each record, clipped, noise) and plain in turns."
    )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    wanted, *others = sys.argv[1:]
    if wanted == "one-step":
        one_step(*others)
    elif wanted == "one-shape":
        one_shape(*others)
    elif wanted == "e2e":
        e2e(float(others[0]) if others else float("inf"))
    else:
        play("A language model", PARTS, [wanted], _how)

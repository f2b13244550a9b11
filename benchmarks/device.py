"""The training loop on the device that torch finds: `python -m benchmarks.device`."""

from pathlib import Path

import torch

from benchmarks.run import Table, play
from benchmarks.step import measured

SHAPES = ((64, 16), (64, 64), (256, 64), (512, 128))
"""(records, tokens of each)"""


def step(scratch: Path) -> Table:
    """A step of MiniLM with LoRA, without privacy and with clipping and noise."""
    table: Table = []
    cuda = torch.cuda.is_available()
    for count, tokens in SHAPES:
        found = []
        for kind in ("plain", "private"):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            seconds = measured(kind, count, tokens)
            memory = f", {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB" if cuda else ""
            found.append((seconds, f"{1e3 * seconds:.1f} ms, {count / seconds:,.0f} records/s{memory}"))
        what = f"{count} × {tokens} tokens"
        table += [(f"{what}, {kind}", text, "") for kind, (_, text) in zip(("plain", "private"), found, strict=True)]
        table.append((f"{what}, with / without", f"{found[1][0] / found[0][0]:.2f}×", "≤ 1.15×"))
    return table


PARTS = {"step": step}


def _how(part: str) -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    return f"`python -m benchmarks.device`, {name}, torch {torch.__version__}: MiniLM, LoRA of rank 8, float32."


if __name__ == "__main__":
    play("Training loop", PARTS, [], _how)

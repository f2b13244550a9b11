"""What fixed shapes of batches cost, by a cost model: python -m benchmarks.shapes

Draws of real texts' lengths, cut into batches of fixed shapes (common/model/shapes.py), against the cheapest batches of
any shape for the same draws (client/train.py). A batch costs as much as 122 tokens beside its own: MiniLM with LoRA and
per-record gradients, fitted to batches of 1 to 64 rows of 8 to 65 tokens on two cores (Intel Xeon with AMX).
"""

import csv
from itertools import pairwise

import numpy as np
from transformers import AutoTokenizer

from benchmarks.run import DATA
from confide.common.model.backbones import DEMO_BACKBONE, resolve_backbone
from confide.common.model.cuts import cheapest_cuts
from confide.common.model.shapes import Shapes

OVERHEAD, LONGEST, ROWS, DRAWS = 122, 64, 64, 40
EXPECTED = (2, 3, 4, 6, 8, 12, 16, 25, 32, 50, 100, 150, 200, 400, 1000)


def lengths_of(name: str) -> np.ndarray:
    """(8000,) tokens of a data set's first texts."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(DEMO_BACKBONE))
    with (DATA / name / "train.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for _, row in zip(range(8000), csv.DictReader(file), strict=False)]
    return np.array([len(ids) for ids in tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]])


def cost(lengths: np.ndarray, expected: int) -> float:
    """Of fixed shapes, in units of the cheapest batches' cost."""
    rng, shapes, fixed, cheapest = np.random.default_rng(0), Shapes(LONGEST, ROWS, float(expected)), 0.0, 0.0
    for _ in range(DRAWS):
        drawn = np.sort(rng.choice(lengths, rng.poisson(expected) + 1))
        fixed += sum(OVERHEAD + len(rows) * length for _, rows, length in shapes.batches(drawn))
        cuts = [*cheapest_cuts(drawn, ROWS), len(drawn)]
        cheapest += sum(OVERHEAD + (end - start) * int(drawn[end - 1]) for start, end in pairwise(cuts))
    return fixed / cheapest


def main() -> None:
    print("| records a step | " + " | ".join(map(str, EXPECTED)) + " |")
    print("|---" * (len(EXPECTED) + 1) + "|")
    for name in ("sst2", "banking77"):
        lengths = lengths_of(name)
        print(f"| {name} | " + " | ".join(f"{cost(lengths, expected):.2f}" for expected in EXPECTED) + " |")


if __name__ == "__main__":
    main()

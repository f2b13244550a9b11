"""One round with many clients and a tiny model: `python -m benchmarks.clients CLIENTS RESULT FOLDER`."""

import csv
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from confide.client import train
from confide.common.config.run import RunConfig
from confide.simulations.run import simulate

WORDS = [f"word{i}" for i in range(200)]
RECORDS_A_CLIENT = 4


def build(folder: Path, clients: int) -> RunConfig:
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=202, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(str(folder / "bert"))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}, unk_token="[UNK]"))  # noqa: S106  # a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(  # noqa: S106
        str(folder / "bert")
    )
    rng = np.random.default_rng(0)
    for name, rows in (("train", 1000 * RECORDS_A_CLIENT), ("test", 50)):  # as many rows, however many clients
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([" ".join(rng.choice(WORDS, 8)), int(rng.integers(2))] for _ in range(rows))
    return RunConfig.parse(
        {
            "run": {"name": "clients", "rounds": 1, "output": str(folder / "run")},
            "model": {"backbone": str(folder / "bert"), "lora": {"rank": 2}},
            "data": {
                "train": str(folder / "train.csv"),
                "test": str(folder / "test.csv"),
                "limit": clients * RECORDS_A_CLIENT,
                "partition": {"clients": clients},
            },
        },
        "benchmark",
    )


def main(clients: int, result: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    spent = 0.0
    real = train.train_plain

    def timed(*args, **kwargs):
        nonlocal spent
        started = time.perf_counter()
        answer = real(*args, **kwargs)
        spent += time.perf_counter() - started
        return answer

    train.train_plain = timed
    run = simulate(build(folder, clients))
    seconds = json.loads((run / "report.json").read_text())["rounds"][0]["seconds"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {"overhead": (seconds - spent) / clients, "training": spent / clients, "peak": peak}
    result.write_text(json.dumps(facts))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))

"""A plain program for the same work: SST-2, 8 clients × 250 records, one local epoch, batch 32, DP-SGD with LoRA.

Written after the manner of Flower's quickstarts (Message API, FedAvg, Ray simulation), PEFT's sequence-classification
guide (`task_type=SEQ_CLS`) and Opacus' text tutorial (padding to 128 tokens, `PrivacyEngine.make_private`): every
message loads the model, wraps it and builds a privacy engine. No trick is withheld from it on purpose: clients run on
all cores, and noise, sampling rate, clip, optimizer and learning rate are those of the run it is compared with.

    python -m benchmarks.plain.app BACKBONE TRAIN TEST NOISE_MULTIPLIER LEARNING_RATE ROUNDS RESULT
"""

import json
import os
import sys
import time
import warnings
from typing import Any

import numpy as np
import pyarrow.csv
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

CLIENTS, RECORDS, BATCH, MAX_LENGTH = 8, 250, 32, 128
LABELS = ["negative", "positive"]


def build_model(backbone: str):
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"]
    )
    return get_peft_model(base, config)


def trained_state(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def load(path: str, backbone: str, start: int, count: int) -> torch.utils.data.TensorDataset:
    from transformers import AutoTokenizer

    table = pyarrow.csv.read_csv(path)
    rows = np.random.default_rng(0).permutation(table.num_rows)[start : start + count]
    table = table.take(rows)
    tokens = AutoTokenizer.from_pretrained(backbone)(
        table["text"].to_pylist(), truncation=True, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt"
    )
    labels = torch.tensor([LABELS.index(name) for name in table["label"].to_pylist()])
    return torch.utils.data.TensorDataset(tokens["input_ids"], tokens["attention_mask"], labels)


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    from opacus import PrivacyEngine

    warnings.filterwarnings("ignore")
    backbone, train_path, _, noise, learning_rate, *_ = json.loads(os.environ["PLAIN"])
    model = build_model(backbone)
    state = message.content.array_records["arrays"].to_torch_state_dict()
    model.load_state_dict(state, strict=False)
    data = load(train_path, backbone, int(context.node_config["partition-id"]) * RECORDS, RECORDS)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=float(learning_rate))
    engine: Any = PrivacyEngine()  # its return type depends on arguments that are not given here
    private, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=float(noise), max_grad_norm=1.0
    )
    for ids, mask, labels in loader:
        if len(labels) == 0:
            continue
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(private(input_ids=ids, attention_mask=mask).logits, labels)
        loss.backward()
        optimizer.step()
    content = RecordDict(
        {"arrays": ArrayRecord(trained_state(model)), "metrics": MetricRecord({"num-examples": RECORDS})}
    )
    return Message(content, reply_to=message)


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    backbone, _, test_path, _, _, rounds, result = json.loads(os.environ["PLAIN"])
    model = build_model(backbone)
    test = load(test_path, backbone, 0, 872)
    finished, accuracies = [time.perf_counter()], []

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        arrived = time.perf_counter()
        model.load_state_dict(arrays.to_torch_state_dict(), strict=False)
        model.eval()
        hits = 0
        with torch.no_grad():
            for ids, mask, labels in torch.utils.data.DataLoader(test, batch_size=64):
                hits += int((model(input_ids=ids, attention_mask=mask).logits.argmax(1) == labels).sum())
        accuracies.append(hits / len(test))
        if number:
            seconds.append(arrived - finished[-1])
        finished.append(time.perf_counter())
        return MetricRecord({"accuracy": accuracies[-1]})

    seconds: list[float] = []
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    strategy.start(grid, ArrayRecord(trained_state(model)), num_rounds=int(rounds), evaluate_fn=evaluate)
    with open(result, "w", encoding="utf-8") as file:
        json.dump({"seconds": seconds, "accuracies": accuracies}, file)


if __name__ == "__main__":
    os.environ["PLAIN"] = json.dumps(sys.argv[1:])
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    run_simulation(
        server_app, client_app, CLIENTS, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    )

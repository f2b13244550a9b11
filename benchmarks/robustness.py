"""Sites and inputs that lie: `python -m benchmarks.robustness [PART …]`, the parts being those of `PARTS`.

All but the first need ../shared/data. SEEDS=3. SWEEPS=folder: where sweeps and runs are kept, and continued.
"""

import csv
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.run import DATA, Table, play
from confide.cli.progress import watch
from confide.common.config.byzantine import ROBUST, default_byzantine
from confide.common.config.run import load, load_content
from confide.common.data.perturbations import characters
from confide.common.model.backbones import DEMO_BACKBONE, resolve_backbone
from confide.common.model.embeddings import ascended, embedding_layer, moved
from confide.server.aggregate import robust
from confide.simulations.attacks.robustness import Subject
from confide.simulations.recipes import find_recipe
from confide.simulations.run import simulate
from confide.simulations.studies import sweep

SITES, COORDINATES = 100, 75_000
LAYERS = 3
SEEDS = int(os.environ.get("SEEDS", "3"))
RADIUS = 0.02
THIN = (0.02, 0.05, 0.1)
SST2 = [f"data.train={DATA / 'sst2' / 'train.csv'}", f"data.test={DATA / 'sst2' / 'validation.csv'}"]
LONGER = [
    *SST2,
    *("privacy.mode=none", "model.max_length=96", "model.lora.rank=16", "model.lora.alpha=32"),
    *('model.lora.targets=["query", "value", "dense"]', "data.limit=16000", "data.partition.clients=4"),
    *("run.rounds=12", "training.local_steps=20", "training.learning_rate=0.002"),
]
COPIES, PUSHED = "copies with 30 % of characters perturbed", "PGD on embeddings, radius 0.05"
SPELLED, BOTH = "spelling 'english'", "spelling 'english', copies with 30 % of characters perturbed"
_ENGLISH, _COPIED = "model.spelling=english", "training.augmentation=0.3"
_VIEWS = {"plain": [], COPIES: [_COPIED]}
TRAINED = {
    "SST-2": (
        [],
        {
            **_VIEWS,
            SPELLED: [_ENGLISH],
            BOTH: [_ENGLISH, _COPIED],
            PUSHED: ["training.adversarial=0.05"],
        },
    ),
    "banking77": (
        [
            *("data.name=banking77", f"data.train={DATA / 'banking77' / 'train.csv'}"),
            *(f"data.test={DATA / 'banking77' / 'test.csv'}", "training.learning_rate=0.003"),
        ],
        _VIEWS,
    ),
}


def aggregators(scratch: Path) -> Table:
    """Seconds for 100 sites."""
    rows = np.random.default_rng(0).normal(size=(SITES, COORDINATES)).astype(np.float32)
    table: Table = []
    for name in ROBUST:
        byzantine = default_byzantine(name, SITES)
        found = []
        for mixing in (False, True):
            times = []
            for _ in range(3):
                started = time.perf_counter()
                robust.aggregate(name, rows, byzantine, mixing=mixing, centre=np.zeros(COORDINATES))
                times.append(time.perf_counter() - started)
            found.append(min(times))
        target = "≤ 5 s" if name == "bulyan" else "≤ 1 s"
        what = f"{name}, f = {byzantine}: {SITES} sites × {COORDINATES:,} numbers, without / with mixing"
        table.append((what, f"{found[0]:.2f} / {found[1]:.2f} s", target))
    return table


def training(scratch: Path) -> Table:
    """What training on views and spelling gain, and cost, without privacy: three hours of one core a seed. The figures
    of noise are of banking questions and film reviews, those of PGD of film reviews."""
    table: Table = []
    for name, (more, kinds) in TRAINED.items():
        found: dict[str, np.ndarray] = {}
        for kind, settings in kinds.items():
            rows = []
            for seed in range(SEEDS):
                folder = _home(scratch) / f"{name}-{len(found)}-{seed}"
                measured = folder / "measured.json"
                if not measured.is_file():
                    own = [f"run.seed={seed}", f"run.output={json.dumps(str(folder))}"]
                    simulate(load(find_recipe("sst2"), [*LONGER, *more, *settings, *own]), overwrite=True)
                    measured.write_text(json.dumps(_measured(folder)))
                rows.append(json.loads(measured.read_text()))
                print(name, kind, seed, rows[-1], flush=True)
            found[kind] = np.array(rows)
            parts = zip(found[kind].mean(0), found[kind].min(0), found[kind].max(0), strict=True)
            spread = "; ".join(f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in parts)
            table.append((f"{name}, {kind}: clean; 20 % of characters perturbed; turned by PGD", spread, ""))
        plain = found["plain"].mean(0)
        for kind, seeds in found.items():
            if kind not in ("plain", PUSHED):
                before, after = (100 * (means[0] - means[1]) for means in (plain, seeds.mean(0)))
                table.append((f"{name}: points lost to noise, plain → {kind}", f"{before:.1f} → {after:.1f}", "half"))
        if PUSHED in found:
            pushed = found[PUSHED].mean(0)
            turned = f"{100 * plain[2]:.0f} → {100 * pushed[2]:.0f} %; {100 * (pushed[0] - plain[0]):+.1f} points"
            what = f"{name}: turned by PGD, plain → PGD training; clean accuracy"
            table.append((what, turned, "half, at ≤ 2 points"))
    return table


def _measured(folder: Path) -> tuple[float, float, float]:
    """Clean accuracy, accuracy with 20 % of characters perturbed, share of right answers that PGD turns."""
    subject = Subject(folder)
    rows = subject.rows(500)
    labels = np.asarray(rows.labels)
    clean = subject.ask(rows.text).argmax(1) == labels
    rng = np.random.default_rng(1)
    noisy = subject.ask([characters(text, 0.2, rng) for text in rows.text]).argmax(1) == labels
    model = subject.model
    records = model.encode(rows)
    right = np.flatnonzero(clean)[:128]
    layer, turned = embedding_layer(model), 0
    model.set(subject.adapter)
    for part in np.array_split(right, 4):
        batch = model.batch(records, part)
        delta = ascended(model, batch, RADIUS, 10)[-1]
        with torch.no_grad(), moved(layer, delta):
            turned += int((model.task.score(model.module, batch)["predicted"] != records.targets[part]).sum())
    return float(clean.mean()), float(noisy.mean()), turned / len(right)


def byzantine(scratch: Path) -> Table:
    """The shipped recipe on film reviews, with the first three layers of its backbone: that halves the time."""
    return _swept("byzantine", scratch, _short(scratch))


def byzantine_banking77(scratch: Path) -> Table:
    """The same on banking questions, 77 classes, with more steps; accuracy on 1,000 test rows."""
    data = DATA / "banking77"
    test = scratch / "test.csv"
    with (data / "test.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    with test.open("w", newline="", encoding="utf-8") as file:
        chosen = np.random.default_rng(0).permutation(len(rows))[:1000]
        csv.writer(file).writerows([header, *(rows[i] for i in chosen)])
    train = ["data.name=banking77", f"data.train={data / 'train.csv'}", f"data.test={test}"]
    more = ["training.local_steps=12", "training.batch_size=16", "training.learning_rate=0.01"]
    return _swept("byzantine-banking77", scratch, [*_short(scratch), *train, *more])


def wider(scratch: Path) -> Table:
    """Other shares of Byzantine sites, more uneven sites, and a backdoor spread thinly, on film reviews."""
    telling = ("none", "sign flip", "inner product", "ALIE", "min-max", "mimic", "backdoor")
    table: Table = []
    for name, settings, defence, attacks in (
        (
            "mixes",
            {
                "1 of 10 sites Byzantine": ["attack.byzantine=1"],
                "2 of 10 lie, Dirichlet 1": ["attack.byzantine=2", "data.partition.alpha=1.0"],
                "2 of 10 lie, Dirichlet 0.3": [
                    *("attack.byzantine=2", "data.partition.alpha=0.3", "data.partition.empty=redistribute"),
                ],
            },
            [],
            telling,
        ),
        ("three", {"3 of 10 sites Byzantine": ["attack.byzantine=3"]}, ["server.byzantine=3"], telling),
        (
            "thin",
            {
                f"all 10 poison {share:.0%} of their records": ["attack.byzantine=10", f"attack.poison={share}"]
                for share in THIN
            },
            [],
            ("none", "backdoor"),
        ),
    ):
        content = load_content(find_recipe("byzantine"), [*_short(scratch), f"sweep.seeds={SEEDS}"])
        content["sweep"]["settings"] = settings
        content["sweep"]["defences"]["mixing + trimmed mean"] += defence
        content["sweep"]["attacks"] = {key: content["sweep"]["attacks"][key] for key in attacks}
        table += _table(content, _home(scratch) / f"byzantine-{name}")
    return table


def privacy(scratch: Path) -> Table:
    """What DP alone gives: the plain mean under noise, on the recipe's film reviews."""
    content = load_content(find_recipe("byzantine"), [*_short(scratch), f"sweep.seeds={SEEDS}"])
    local = ["privacy.mode=local", "privacy.epsilon=8", "privacy.sampling_rate=0.08", "privacy.clip=4"]
    client = ["privacy.mode=client", "privacy.epsilon=100", "privacy.sampling_rate=1", "privacy.clip=0.5"]
    content["sweep"]["defences"] = {
        "mean, `local`, ε = 8": [*local, "privacy.declared_examples=4000"],
        "mean, `client`, ε = 100": [*client, "server.secure_aggregation=false"],
    }
    return _table(content, _home(scratch) / "byzantine-privacy")


def _home(scratch: Path) -> Path:
    """Where what is kept lies."""
    return Path(os.environ.get("SWEEPS", scratch))


def _short(scratch: Path) -> list[str]:
    """Settings of a backbone of the demo's first three layers."""
    folder = _home(scratch) / "three-layers"  # a sweep goes on only with the same settings, this path among them
    source = resolve_backbone(DEMO_BACKBONE)
    model = AutoModel.from_pretrained(source)
    model.encoder.layer = model.encoder.layer[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    names = [f"layer.{LAYERS - 1}.attention.self.{part}" for part in ("query", "value")]
    return [*SST2, f"model.backbone={folder}", f"model.lora.targets={json.dumps(names)}"]


def _swept(name: str, scratch: Path, settings: list[str]) -> Table:
    """Every defence under every attack."""
    content = load_content(find_recipe("byzantine"), [*settings, f"sweep.seeds={SEEDS}"])
    return _table(content, _home(scratch) / name)


def _table(content: dict[str, Any], folder: Path) -> Table:
    """The cells of a sweep that is played in `folder`."""
    sweep.play(content, folder, watch)
    report = json.loads((folder / "report.json").read_text())
    table: Table = []
    for setting in report["settings"]:
        for row in setting["rows"]:
            each = ", ".join(
                f"{attack} {100 * value:.1f} ± {100 * (row['spread'][attack] or 0):.1f}"
                for attack, value in row["accuracy"].items()
                if value is not None
            )
            table.append((f"{setting['name']}, {row['defence']}: accuracy under each attack, %", each, ""))
            lost = 100 * (row["clean"] - row["worst"])
            table.append(
                (f"… points lost to the worst ({row['worst_attack']})", f"{lost:.1f}", "≤ 3 (mixing + trimmed mean)")
            )
            if row["backdoor"] is not None:
                turned = f"{100 * row['backdoor']:.0f} %"
                table.append(
                    ("… texts that the trigger turns, most of any run", turned, "≤ 10 % (mixing + trimmed mean)")
                )
    return table


PARTS: dict[str, Callable[[Path], Table]] = {
    "aggregators": aggregators,
    "training": training,
    "byzantine": byzantine,
    "byzantine-banking77": byzantine_banking77,
    "wider": wider,
    "privacy": privacy,
}


def _how(part: str) -> str:
    seeds = "" if part == "aggregators" else f"SEEDS={SEEDS} "
    return f"`{seeds}python -m benchmarks.robustness {part}`, {os.cpu_count()} cores."


if __name__ == "__main__":
    play("Robustness", PARTS, sys.argv[1:], _how)

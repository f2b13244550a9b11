"""The optimizers of a run, for a site's local steps and for the server's step alike."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from ..config.run import RunConfig
from ..errors import RoundError

OPTIMIZERS = ("sgd", "momentum", "adam")


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """torch's SGD, SGD with momentum 0.9, or Adam with its defaults. Raises ValueError for another name."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate)
    if name == "momentum":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate)
    raise ValueError(f"optimizer: received '{name}'; allowed: {', '.join(OPTIMIZERS)}")


def rate_of_round(config: RunConfig, number: int) -> float:
    """The learning rate of round t = `number` of T, with the W rounds of `training.warmup`.

    t ≤ W: rate·t/(W + 1). Later, with s = (t − W − 1)/(T − W), which is 0 in round W + 1 and below 1 in round T:
    constant: rate; linear: rate·(1 − s); cosine: rate·(1 + cos πs)/2. Nothing but t, T and the declaration decides, so
    a run that is resumed, or that ends early, has had the rates of the uninterrupted one. Raises RoundError for a round
    that the run does not have.
    """
    training, rounds = config.training, config.run.rounds
    if not 1 <= number <= rounds:
        raise RoundError(f"round {number} received; the run has the rounds 1 to {rounds}")
    if number <= training.warmup:
        return training.learning_rate * number / (training.warmup + 1)
    past = (number - training.warmup - 1) / (rounds - training.warmup)
    left = {"constant": 1.0, "linear": 1 - past, "cosine": (1 + math.cos(math.pi * past)) / 2}
    return training.learning_rate * left[training.schedule]


def shrink(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """What comes before a step: every array times 1 − rate·λ. Decoupled from the gradient (Loshchilov and Hutter 2019,
    algorithm 2): with Adam this is AdamW."""
    if not weight_decay:
        return
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * weight_decay)


def warmed_up(
    parameters: Iterable[nn.Parameter], learning_rate: float, steps: int, rise: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW for training from nothing or from a teacher: the rate rises linearly for `rise` steps, then falls to 0.

    Fused: all arrays of a step in one pass over memory, which of a backbone of 22 million numbers takes a tenth of it.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise))
    )
    return optimizer, schedule

"""The optimizers of a run, for a site's local steps and for the server's step alike."""

from collections.abc import Iterable

import torch
from torch import nn

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


def warmed_up(
    parameters: Iterable[nn.Parameter], learning_rate: float, steps: int, rise: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW for training from nothing or from a teacher: the rate rises linearly for `rise` steps, then falls to 0."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise))
    )
    return optimizer, schedule

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

"""Which layers `model.lora.targets = "all-linear"` stands for.

The string is PEFT's, but PEFT leaves the output layer out only where the model that it is given is a transformers model
itself; confide's tasks wrap a backbone together with a head. So the layers are named here, by the same rule.
"""

import re

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from ..tasks import Task

ALL_LINEAR = "all-linear"
_OTHER_INPUTS = re.compile(r"(^|\.)(vision|visual|image|audio|speech|multi_modal)[\w]*(\.|$)")
"""towers of a backbone that reads more than text, which no text passes through"""


def linear_layers(base: nn.Module, task: Task, but: list[str]) -> list[str]:
    """The names of a model's linear layers (of GPT-2's Conv1D, too), in order.

    Left out: what is under a name of `but` (parts that are trained whole, and stand-ins), the layer that turns vectors
    into words, and, where the task reads texts alone, towers for images and sound. Raises ModelError where none is
    left.
    """
    outputs = [m.get_output_embeddings() for m in base.modules() if isinstance(m, PreTrainedModel)]
    skipped = {id(layer) for layer in outputs if layer is not None}
    found = [
        name
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and id(layer) not in skipped
        and name.split(".")[0] not in but
        and (task.READS.images or not _OTHER_INPUTS.search(name))
    ]
    if not found:
        raise ModelError(f"model.lora.targets: '{ALL_LINEAR}' received; this model has no linear layer; name modules")
    return found

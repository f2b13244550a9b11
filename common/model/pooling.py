"""One vector a record, and a head over it: what the tasks share that give one answer for a whole record.

Each takes `features` (B, F) instead of its inputs: the vectors of records that a frozen backbone has seen before.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ..data.images import ImageForm
from ..errors import ModelError

_FUSED = 128
_CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")
"""what transformers calls the array; one in a head is no part of what the backbone gives"""


class _Classifier(nn.Module):
    """Something that represents a record, and a head."""

    base_model_prefix = "backbone"  # PEFT asks for it where transformers renamed an architecture's modules
    head: nn.Module

    def represent(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(B, F)."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        **_: object,
    ) -> SequenceClassifierOutput:
        """Returns logits (B, K). input_ids, attention_mask, token_type_ids: (B, T), padded on the right. pixel_values:
        (B, C, H, W), 0 to 255."""
        if features is None:
            given = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "pixel_values": pixel_values,
            }
            features = self.represent(**{name: value for name, value in given.items() if value is not None})
        return SequenceClassifierOutput(logits=self.head(features))


class PooledClassifier(_Classifier):
    """A backbone, one vector a text by mean, first or last token, and a linear head.

    Mean pooling is the default because many checkpoints carry an untrained pooler on [CLS].
    """

    def __init__(self, backbone: PreTrainedModel, pooling: str, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.config = backbone.config
        self.head = nn.Linear(_width(backbone), outputs)

    def represent(self, **inputs: torch.Tensor) -> torch.Tensor:
        return pooled(self.backbone, self.pooling, **inputs)


def pooled(
    backbone: nn.Module,
    pooling: str,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **more: torch.Tensor,
) -> torch.Tensor:
    """(B, h): one vector a text, or two texts."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    hidden = backbone(input_ids=input_ids, attention_mask=mask, **more).last_hidden_state.float()  # (B, T, h)
    if pooling == "mean":
        weights = mask.unsqueeze(-1).float()
        return (hidden * weights).sum(1) / weights.sum(1)
    if pooling == "first":
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]


def _width(backbone: PreTrainedModel) -> int:
    """Numbers of a vector that a backbone gives."""
    config = backbone.config  # transformers maps `dim`, `n_embd` to `hidden_size`; OPT's may end in another width
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


class _ImageEncoder(nn.Module):
    """A vision backbone and one vector an image."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, backbone: PreTrainedModel, form: ImageForm, pooling: str) -> None:
        super().__init__()
        self.tower = backbone  # not `backbone`: PEFT finds modules by the end of their names
        self.pooling = pooling
        self.patches_from = 1 if has_class_token(backbone) else 0
        if pooling == "first" and not self.patches_from:
            raise ModelError(
                f"model.pooling: 'first' received, and {type(backbone).__name__} has no class token: its first vector "
                "is one patch of the image; set model.pooling = 'mean'"
            )
        for name in ("mean", "deviation"):
            values = torch.tensor(getattr(form, name), dtype=torch.float32)
            self.register_buffer(name, values[None, :, None, None], persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        scaled = (pixel_values / 255 - self.mean) / self.deviation
        hidden = self.tower(pixel_values=scaled.to(self.tower.dtype)).last_hidden_state.float()  # (B, T, h)
        return hidden[:, 0] if self.pooling == "first" else hidden[:, self.patches_from :].mean(1)


def has_class_token(backbone: nn.Module) -> bool:
    """Whether the first vector that a vision backbone gives is that of a token of its own (ViT, CLIP, DINOv2), and no
    patch (SigLIP, Swin, Hiera, I-JEPA): such a token is an array that the backbone has learned."""
    learned = (name.split(".") for name, _ in backbone.named_parameters())
    return any(name[-1] in _CLASS_TOKENS and "head" not in name for name in learned)


class ImageClassifier(_Classifier):
    """The same for images: the mean over patches, or the class token (`first`), where there is one."""

    def __init__(self, backbone: PreTrainedModel, form: ImageForm, pooling: str, outputs: int) -> None:
        super().__init__()
        self.form = form
        self.image_encoder = _ImageEncoder(backbone, form, pooling)
        self.config = backbone.config
        self.head = nn.Linear(_width(backbone), outputs)

    def represent(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.image_encoder(inputs["pixel_values"])


class ImageTextClassifier(_Classifier):
    """Both, side by side, and a head of two layers that can weigh one against the other."""

    def __init__(
        self, backbone: PreTrainedModel, images: PreTrainedModel, form: ImageForm, pooling: str, outputs: int
    ) -> None:
        super().__init__()
        self.form = form
        self.backbone = backbone
        self.pooling = pooling
        self.image_encoder = _ImageEncoder(images, form, pooling)
        self.config = backbone.config
        width = _width(backbone) + _width(images)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, _FUSED), nn.GELU(), nn.Linear(_FUSED, outputs))

    def represent(self, **inputs: torch.Tensor) -> torch.Tensor:
        text = pooled(self.backbone, self.pooling, inputs["input_ids"], inputs.get("attention_mask"))
        return torch.cat([text, self.image_encoder(inputs["pixel_values"])], dim=1)

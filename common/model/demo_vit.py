"""The small vision transformer of the demonstration."""

import torch
from transformers import PreTrainedModel, ViTConfig, ViTModel

_SIZE, _WIDTH, _DEPTH, _PATCH = 8, 64, 4, 2


def demo_vit() -> PreTrainedModel:
    """A vision transformer of 8 × 8 pixels and 0.2 million weights, drawn from torch's generator: train it whole.

    Its positions are fixed sines, as in Beyer, Zhai and Kolesnikov 2022: nothing outside a layer has to be learned.
    """
    config = ViTConfig(
        hidden_size=_WIDTH,
        num_hidden_layers=_DEPTH,
        num_attention_heads=4,
        intermediate_size=2 * _WIDTH,
        image_size=_SIZE,
        patch_size=_PATCH,
        num_channels=1,
        initializer_range=_WIDTH**-0.5,  # 0.02 is for a width of 768: at this one learning would hardly begin
    )
    model = ViTModel(config, add_pooling_layer=False)
    with torch.no_grad():
        model.embeddings.cls_token.zero_()
        positions = model.embeddings.position_embeddings
        positions.zero_()
        positions[0, 1:] = _sines(_SIZE // _PATCH, _WIDTH)
    return model


def _sines(side: int, width: int) -> torch.Tensor:
    """(side², width): sine and cosine of row and column at width / 4 frequencies."""
    frequencies = 1.0 / 10_000 ** (torch.arange(width // 4) / (width // 4))
    places = torch.arange(side)[:, None] * frequencies  # (side, width / 4)
    row = torch.cat([places.sin(), places.cos()], 1).repeat_interleave(side, 0)
    column = torch.cat([places.sin(), places.cos()], 1).repeat(side, 1)
    return torch.cat([row, column], 1)

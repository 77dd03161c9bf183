"""Floating-point operations of a step's forward and backward pass: counted, never computed."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vse_scale.config import Config
from vse_scale.model.blueprint import blueprint
from vse_scale.planning.activations import forward_and_backward

_IMAGES = 32  # averaged over, so that the part that does not grow with the batch is small


def count_flops(config: Config, *, tokens: int) -> float:
    """Return the operations of a pair in a batch whose longest caption has ``tokens`` tokens.

    Matrix products, convolutions and attention are counted, a multiplication and an addition as
    two; everything trains. Operations that activation checkpointing repeats are not counted, since
    they are no progress.

    Raises:
        ModelError: there is no such model.
    """
    model, _ = blueprint(config)
    pairs = _IMAGES * config.data.captions_per_image
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        model.to_empty(device="cpu").train()
        counter = FlopCounterMode(display=False)
        with counter:
            forward_and_backward(model, config, pairs, tokens, bfloat16=False)
    return counter.get_total_flops() / pairs

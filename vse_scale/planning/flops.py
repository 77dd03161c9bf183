"""The floating-point operations of a step's forward and backward pass: counted, never computed."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vse_scale.config import Config
from vse_scale.model.blueprint import blueprint
from vse_scale.planning.activations import forward_and_backward

_IMAGES = 32  # of which an average is taken: what does not grow with the batch is small beside them


def count_flops(config: Config, *, tokens: int) -> float:
    """Return the operations of a pair in a batch whose longest caption has ``tokens`` tokens.

    Those of matrix products, convolutions and attention, a multiplication and an addition being
    two; everything trains. What activation checkpointing computes again is not among them: it is
    no progress.

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

"""The layers of an encoder, from the top, for rates that decay from layer to layer."""

from __future__ import annotations

from torch import nn
from torch.nn import Parameter


def layers_above(encoder: nn.Module) -> dict[Parameter, int]:
    """Return the number of layers above each parameter of ``encoder``.

    The layers are its largest list of modules of one type. Parameters before them, such as
    embeddings, are below all; those after them, such as a last norm, have none above. Without such
    a list the result is empty.
    """
    stacks = [
        module
        for module in encoder.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 1
        and len(set(map(type, module))) == 1
    ]
    if not stacks:
        return {}
    layers = max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()))
    inside = {p: len(layers) - 1 - n for n, layer in enumerate(layers) for p in layer.parameters()}
    above: dict[Parameter, int] = {}
    outside = len(layers)
    for parameter in encoder.parameters():
        above[parameter] = inside.get(parameter, outside)
        if parameter in inside:
            outside = 0
    return above

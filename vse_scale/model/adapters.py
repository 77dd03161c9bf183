"""The part of an encoder that trains: all, its last layers, or adapters of low rank beside it.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, by the package peft.
An exported model has the adapters merged into its weights, and needs no peft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vse_scale.bounds import Count, Fraction, Positive
from vse_scale.errors import ModelError

_BASE = "base_layer."  # peft's name of the weights that an adapter stands beside


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Settings of adapters of low rank.

    Attributes:
        rank: of each adapter's product.
        alpha: its factor is alpha / rank.
        dropout: of an adapter's inputs in training.
        targets: names, or ends of names, of the layers that get one; (): those that peft chooses
            for this kind of encoder.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # pydantic looks for this very form

    rank: Count = 8
    alpha: Positive = 16.0
    dropout: Fraction = 0.0
    targets: tuple[str, ...] = ()


def choose_trained(
    encoder: nn.Module,
    key: str,
    *,
    frozen: bool,
    last: int | None,
    lora: LoRA | None,
    layers_above: Mapping[Parameter, int],
) -> None:
    """Let of ``encoder`` train what its settings say; the rest requires no gradient.

    Args:
        encoder: of one side.
        key: of its section, such as "model.text", for messages.
        frozen: whether nothing of it trains.
        last: how many of its last layers do; None: all.
        lora: adapters that do, in place of its weights.
        layers_above: the number of layers above each parameter.

    Raises:
        ModelError: the settings contradict each other, the encoder has fewer layers, or adapters
            cannot be put into it.
    """
    given = {"frozen": frozen, "train_last": last is not None, "lora": lora is not None}
    if sum(given.values()) > 1:
        one, other = [f"{key}.{name}" for name, is_set in given.items() if is_set][:2]
        raise ModelError(f"{one} and {other} are both set, and say two things; take one out")
    if frozen:
        encoder.requires_grad_(False)
    if last is not None:
        _keep_last(encoder, key, last, layers_above)
    if lora is not None:
        _adapt(encoder, key, lora)


def _keep_last(
    encoder: nn.Module, key: str, last: int, layers_above: Mapping[Parameter, int]
) -> None:
    layers = max((layers_above.get(p, 0) for p in encoder.parameters()), default=0)
    if last > layers:
        raise ModelError(
            f"{key}.train_last is {last}, and the encoder has {layers} layers with something below "
            f"them; give {layers} or fewer, or take it out, which trains all"
            if layers
            else f"{key}.train_last is {last}, and the encoder has no layers that can be told "
            "apart; take it out, which trains all"
        )
    for parameter in encoder.parameters():
        parameter.requires_grad_(layers_above.get(parameter, 0) < last)


def _adapt(encoder: nn.Module, key: str, lora: LoRA) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError(
            f"{key}.lora needs the package peft, which cannot be imported ({error}); "
            f"pip install 'vse-scale[lora]', or set {key}.lora=null"
        ) from error
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or None,
        bias="none",
    )
    try:
        inject_adapter_in_model(config, encoder)
    except (ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        names = {name.rpartition(".")[2] for name, one in encoder.named_modules() if _linear(one)}
        raise ModelError(
            f"{key}.lora: {reason}; set {key}.lora.targets to some of {', '.join(sorted(names))}"
        ) from error


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def trained_numbers(model: nn.Module) -> int:
    """Return how many numbers of ``model`` train."""
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


def has_adapters(model: nn.Module) -> bool:
    """Return whether adapters stand beside weights of ``model``."""
    return any(hasattr(module, "get_delta_weight") for module in model.modules())


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers of ``model`` by name, adapters merged into what they adapt.

    The model stays as it is. Without adapters it is the model's own state dict.
    """
    adapted: dict[str, Any] = {
        f"{name}.": module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        at = next((prefix for prefix in adapted if name.startswith(prefix)), None)
        if at is None:
            state[name] = value
        elif name.startswith(at + _BASE):
            own = name.removeprefix(at + _BASE)
            delta = adapted[at].get_delta_weight("default") if own == "weight" else 0.0
            state[at + own] = value + delta
    return state


def merge(model: nn.Module) -> None:
    """Put plain layers with merged weights in place of adapted ones."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_delta_weight"):
            with torch.no_grad():
                module.merge()
            above, _, own = name.rpartition(".")
            setattr(model.get_submodule(above), own, module.get_base_layer())
    model.requires_grad_(True)

"""Models of timm (pytorch-image-models): found by name, and built with weights or new."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vse_scale.errors import ModelError
from vse_scale.model.huggingface import first_line
from vse_scale.model.limits import check_memory
from vse_scale.model.weights import read_state_dict
from vse_shards.errors import PartError
from vse_shards.notes import shown

_PREFIX = "timm/"
_WITH_THE_LAST = 99_999  # timm's mark of parameters that belong to the group before them


@functools.cache
def listed(backbone: str) -> Any:
    """Return timm's entry for the model that ``backbone`` names: a ``PretrainedCfg``.

    Raises:
        PartError: timm cannot be imported, or has no such model.
    """
    timm, name = _timm(backbone), backbone.removeprefix(_PREFIX)
    # Other names would have timm read a folder or fetch a model that it does not list.
    if re.fullmatch(r"[\w.-]+", name) and timm.is_model(name):
        with contextlib.suppress(RuntimeError):  # it has the model, and no such tag
            if (entry := timm.get_pretrained_cfg(name)) is not None:
                return entry
    tagged = timm.list_pretrained()
    of_model = [one for one in tagged if one.startswith(f"{name.partition('.')[0]}.")]
    near = difflib.get_close_matches(name, of_model or [*timm.list_models(), *tagged], 3, 0.4)
    hint = f"did you mean {' or '.join(_PREFIX + one for one in near)}? " if near else ""
    raise PartError(
        f"timm {timm.__version__} has no model {shown(name)!r}; {hint}"
        "`timm.list_models(include_tags=True)` lists its models"
    )


def _timm(backbone: str) -> Any:
    try:
        return importlib.import_module("timm")
    except Exception as error:  # torchvision, which it needs, fails in many ways beside a torch
        raise PartError(
            f"{shown(backbone)} needs the package timm, which cannot be imported "
            f"({first_line(error)}); pip install 'vse-scale[timm]'"
        ) from error


def build(
    backbone: str, size: int, *, weights: str | None, pretrained: bool, drop_path: float
) -> Any:
    """Build the model that ``backbone`` names, without its classifier.

    Args:
        backbone: "timm/" and its name.
        size: pixels of an image's side, for models that are made for one size.
        weights: file of a state dict with timm's names; None: random ones.
        pretrained: whether to fetch those that timm lists under the name, in place of a file.
        drop_path: rate of the last block; 0 drops none, whatever the model's own default is.

    Raises:
        ModelError: it cannot be built, is too large for this machine, or its weights do not fit.
    """
    timm, name, entry = _timm(backbone), backbone.removeprefix(_PREFIX), listed(backbone)
    given: dict[str, Any] = {"num_classes": 0}
    if entry.fixed_input_size:
        given["img_size"] = size
    if drop_path:
        given["drop_path_rate"] = drop_path
    start = {"pretrained": pretrained} if weights is None else _from_file(Path(weights), entry)
    laid_out = torch.get_default_device().type == "meta"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                model = timm.create_model(name, **given)
        except Exception as error:  # whatever a model makes of its settings
            reason = first_line(error)
            remedy = "drop_path=0" if "drop_path" in reason else "size to another"
            raise ModelError(
                f"{backbone} cannot be built with model.image.size={size} ({reason}); set "
                f"model.image.{remedy}"
            ) from error
        if not laid_out:
            check_memory(backbone, model)
            try:
                model = timm.create_model(name, **given, **start)
            except Exception as error:  # keys and shapes that differ, or of the hub's client
                reason = first_line(error)
                if weights is not None:
                    raise ModelError(f"{weights}: does not fit {backbone}; {reason}") from error
                if not pretrained:
                    raise ModelError(f"{backbone} cannot be built ({reason})") from error
                raise ModelError(
                    f"the weights of {backbone} cannot be fetched ({reason}); set "
                    "model.image.weights=FILE, or try again where the hub can be reached"
                ) from error
    # It keeps the tensors that it was given: twice the memory, in every copy too.
    model.pretrained_cfg.pop("state_dict", None)
    if not drop_path:
        for module in model.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
    return model


def _from_file(path: Path, entry: Any) -> dict[str, Any]:
    """Return what timm needs to know to start from the weights in ``path``."""
    given = entry.classifier
    names = (given,) if isinstance(given, str) else tuple(given or ())
    classifiers = tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))
    tensors = {k: v for k, v in read_state_dict(path).items() if k not in classifiers}
    # timm renames the keys of publishers, and resizes tables of positions. Where the numbers of
    # classes differ it is content with missing weights, so both are 0.
    overlay = {"state_dict": tensors, "num_classes": 0, "custom_load": False}
    return {"pretrained": True, "pretrained_cfg_overlay": overlay}


def stage_names(model: Any) -> list[list[str]]:
    """Return the names of a model's parameters by stage, in order, as timm groups them."""
    try:
        matcher = model.group_matcher(coarse=True)
    except Exception:  # some models have none
        return [[name for name, _ in model.named_parameters()]]
    if isinstance(matcher, dict):
        matcher = {**matcher, "rest": [(r".", (_WITH_THE_LAST,))]}
    groups = importlib.import_module("timm.models").group_parameters(model, matcher)
    return [names for _, names in sorted(groups.items())]


def features_alone(model: Any, pixels: Tensor, name: str) -> Tensor:
    """Return the model's features of an image, and leave out what its head alone runs.

    Left in, that would be weights that never get a gradient.

    Args:
        model: in evaluation mode.
        pixels: (1, 3, H, W).
        name: of the model, for messages.

    Raises:
        ModelError: the features are no vector per cell.
        Exception: the model takes no such image; of any type.
    """
    with _seen(model) as of_features:
        out = model.forward_features(pixels)
    if not isinstance(out, Tensor) or out.dim() not in (3, 4):
        given = f"a tensor {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ModelError(
            f"{name} gives {given} for an image, not a vector per cell; give another model"
        )
    if out.dim() == 3 and out.shape[1] == 1 and not hasattr(model, "num_prefix_tokens"):
        raise ModelError(f"{name} gives its class token alone, no cells; give another model")
    if not (out.is_meta or out.isfinite().all()):
        raise ModelError(f"{name} gives values that are not finite; its weights are damaged")
    with _seen(model) as of_head:
        model.forward_head(out)
    for own in of_head - of_features:
        setattr(model, own, nn.Identity())
    return out


@contextlib.contextmanager
def _seen(model: Any) -> Iterator[set[str]]:
    """Collect the names of the model's own modules that run, or have a part that does."""
    seen: set[str] = set()

    def note(name: str, *_: Any) -> None:
        seen.add(name.partition(".")[0])

    handles = [
        module.register_forward_pre_hook(functools.partial(note, name))
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()

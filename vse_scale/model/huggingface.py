"""Encoders of the transformers library: opened from a local folder, complete, or made new."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from vse_scale.errors import ModelError
from vse_scale.model.weights import complain

Prepare = Callable[[Any], Any]
"""Takes a transformers configuration and returns the one to build from."""


def new_model(architecture: dict[str, Any], kind: str, key: str, prepare: Prepare) -> Any:
    """Build an encoder with random weights.

    Args:
        architecture: keys of its transformers configuration; ``model_type`` says of which.
        kind: ``model_type`` where it does not.
        key: where ``architecture`` stands in the configuration, for messages.
        prepare: has the last word on the configuration.

    Raises:
        ModelError: there is no such kind or key, or the values do not fit together.
    """
    given = dict(architecture)
    kind = given.pop("model_type", kind)
    try:
        known = AutoConfig.for_model(kind).to_dict()
    except ValueError as error:
        raise ModelError(f"{key}.model_type is {kind!r}, which is unknown") from error
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ModelError(f"unknown key {key}.{name}; did you mean {near[0]}?")
    config = prepare(AutoConfig.for_model(kind, **given))
    try:
        return AutoModel.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{key}: {first_line(error)}") from error


def open_model(folder: Path, key: str, prepare: Prepare, *, unused: Iterable[str] = ()) -> Any:
    """Open the encoder in ``folder``, its weights complete; heads beside it are left out.

    Args:
        folder: with ``config.json`` and the weights.
        key: where ``folder`` stands in the configuration, for messages.
        prepare: has the last word on the configuration.
        unused: submodules that may be missing, since the caller leaves them out.

    Raises:
        ModelError: there is no such folder, it holds no encoder, or weights are missing, surplus
            or of another shape; the message lists them.
    """
    if not folder.is_dir():
        raise ModelError(f"{key} is {folder}: no such folder; it is never downloaded")
    try:
        config = prepare(AutoConfig.from_pretrained(folder, local_files_only=True))
        model, found = AutoModel.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # to list them below
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = first_line(error)
        raise ModelError(f"{folder}: cannot be opened as an encoder ({reason})") from error
    own = {name for name, _ in model.named_children()} - set(unused)
    prefix = f"{model.base_model_prefix}."

    def counts(name: str) -> bool:
        """Whether a key is the encoder's own rather than a head's, or a table of positions."""
        part = name.removeprefix(prefix).split(".")[0]
        return part in own and not name.endswith("position_ids")

    complain(
        str(folder),
        missing=sorted(filter(counts, found["missing_keys"])),
        surplus=sorted(filter(counts, found["unexpected_keys"])),
        differing=[
            f"{name} {tuple(theirs)} for {tuple(ours)}"
            for name, theirs, ours in sorted(found["mismatched_keys"])
            if counts(name)
        ],
    )
    return model


def describe(model: Any) -> dict[str, Any]:
    """Return what builds ``model`` again, without weights: the ``architecture`` of `new_model`."""
    known = AutoConfig.for_model(model.config.model_type).to_dict()
    # A configuration keeps what it does not know; and where it came from means nothing elsewhere.
    left_out = {"_name_or_path", *(model.config.to_dict().keys() - known.keys())}
    return {k: v for k, v in model.config.to_dict().items() if k not in left_out}


def architecture_of(folder: Path, usual: str, prepare: Prepare) -> tuple[dict[str, Any], list[str]]:
    """Return the ``architecture`` of the encoder in ``folder``, without reading its weights.

    Args:
        folder: with ``config.json``.
        usual: ``model_type`` to assume where there is no such folder.
        prepare: picks the encoder's part of a configuration.

    Returns:
        The keys of `new_model`, and what was assumed, one line each.
    """
    assumed = []
    if folder.is_dir():
        found = prepare(AutoConfig.from_pretrained(folder, local_files_only=True))
    else:
        found = AutoConfig.for_model(usual)
        assumed.append(f"{folder} is not there: counted as transformers' default {usual}")
    known = AutoConfig.for_model(found.model_type).to_dict()
    return {key: value for key, value in found.to_dict().items() if key in known}, assumed


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

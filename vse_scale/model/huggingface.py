"""Encoders of the transformers library: opened from a local folder, complete, or made new."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig

from vse_scale.console import without_reports
from vse_scale.errors import ModelError
from vse_scale.model.limits import check_architecture
from vse_scale.model.weights import complain
from vse_shards.json_text import read_json
from vse_shards.notes import shown

Prepare = Callable[[Any], Any]
"""Takes a transformers configuration and returns the one to build from."""

# Joint models (CLIP, SigLIP, BLIP, ALIGN, FLAVA) keep a configuration for each of their towers.
_TOWERS = {"image": ("vision_config", "image_config"), "text": ("text_config",)}


def tower_config(config: Any, side: Literal["image", "text"]) -> Any:
    """Return the configuration of a joint model's image or text tower, or else ``config``."""
    found = (getattr(config, name, None) for name in _TOWERS[side])
    return next((part for part in found if isinstance(part, PreTrainedConfig)), config)


def new_model(
    architecture: dict[str, Any],
    kind: str,
    key: str,
    prepare: Prepare,
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Build an encoder with random weights.

    Args:
        architecture: keys of its transformers configuration; ``model_type`` says of which.
        kind: ``model_type`` where it does not.
        key: where ``architecture`` stands in the configuration, for messages.
        prepare: has the last word on the configuration.
        defaults: of keys that ``architecture`` leaves out, as far as the kind has them.

    Raises:
        ModelError: there is no such kind or key, or the values do not fit together.
    """
    given = dict(architecture)
    kind = given.pop("model_type", kind)
    try:
        known = AutoConfig.for_model(kind).to_dict()
    except ValueError as error:
        raise ModelError(f"{key}.model_type is {kind!r:.80}, which is unknown") from error
    except Exception as error:  # a kind that needs a package, or that has no defaults
        raise ModelError(f"{key}.model_type is {kind!r:.80}: {first_line(error)}") from error
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ModelError(f"unknown key {shown(f'{key}.{name}')}; did you mean {near[0]}?")
    given = {name: value for name, value in (defaults or {}).items() if name in known} | given
    try:
        config = prepare(AutoConfig.for_model(kind, **given))
        check_architecture(config, key, build)
        return build(config)
    except ModelError:
        raise
    except Exception as error:  # whatever a kind of model makes of its settings
        raise ModelError(f"{key}: {first_line(error)}") from error


def build(config: Any) -> Any:
    """Build the encoder of ``config`` with random float32 weights.

    Raises:
        ModelError: transformers has no encoder of that kind.
    """
    if type(config) in MODEL_MAPPING:
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return _class_of(config)._from_config(config, dtype=torch.float32)


def _class_of(config: Any) -> Any:
    """Return the model class of a joint model's tower, which ``AutoModel`` may not know.

    Raises:
        ModelError: there is none.
    """
    if type(config) in MODEL_MAPPING:
        listed = MODEL_MAPPING[type(config)]
        return listed[0] if isinstance(listed, tuple) else listed
    package = import_module(type(config).__module__.rpartition(".")[0])
    # transformers names them alike: BlipTextConfig, BlipTextModel.
    name = f"{type(config).__name__.removesuffix('Config')}Model"
    for file in sorted(Path(package.__path__[0]).glob("modeling_*.py")):
        found = getattr(import_module(f"{package.__name__}.{file.stem}"), name, None)
        if found is not None:
            return found
    raise ModelError(f"{config.model_type}: transformers has no encoder of this kind alone")


def open_model(folder: Path, key: str, prepare: Prepare, *, unused: Iterable[str] = ()) -> Any:
    """Open the encoder in ``folder``, its weights complete; heads beside it are left out.

    Code in the folder is never run.

    Args:
        folder: with ``config.json`` and the weights.
        key: where ``folder`` stands in the configuration, for messages.
        prepare: has the last word on the configuration.
        unused: submodules that may be missing, since the caller leaves them out.

    Raises:
        ModelError: there is no such folder, it holds no encoder or one that needs code of its own,
            or weights are missing, surplus or of another shape; the message lists them.
    """
    if not folder.is_dir():
        raise ModelError(f"{key} is {folder}: no such folder; it is never downloaded")
    whole = read_config(folder)
    try:
        config = prepare(whole)
        check_architecture(config, str(folder), build)
        model, found = _read(folder, config)
        at = f"{model.base_model_prefix}."
        if config is not whole and found["missing_keys"]:
            # The names in a joint model's file lead through the joint model.
            at, model, found = _read_tower(folder, whole, _class_of(config))
    except ModelError:
        raise
    except Exception as error:  # whatever a kind of model makes of its files
        reason = first_line(error)
        raise ModelError(f"{folder}: cannot be opened as an encoder ({reason})") from error
    own = {name for name, _ in model.named_children()} - set(unused)

    def counts(name: str) -> bool:
        """Whether a key is the encoder's own rather than a head's, or a table of positions."""
        part = name.removeprefix(at).split(".")[0]
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


def _read(folder: Path, config: Any) -> tuple[Any, dict[str, Any]]:
    """Return the model of ``config`` with the weights in ``folder``, and which did not fit."""
    kind = AutoModel if type(config) in MODEL_MAPPING else _class_of(config)
    with without_reports():
        opened: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # the caller lists them
            output_loading_info=True,
        )
    return opened


def _read_tower(folder: Path, whole: Any, kind: Any) -> tuple[str, Any, dict[str, Any]]:
    """Return the prefix of a joint model's tower, the tower, and which weights did not fit.

    Raises:
        ModelError: the joint model has no such tower.
    """
    joint, found = _read(folder, whole)
    towers = ((name, part) for name, part in joint.named_modules() if type(part) is kind)
    name, tower = next(towers, ("", None))
    if tower is None:
        raise ModelError(f"{folder}: {type(joint).__name__} has no {kind.__name__} in it")
    at = f"{name}."
    ours = {
        key: [entry for entry in entries if _name(entry).startswith(at)]
        for key, entries in found.items()
        if key != "error_msgs"
    }
    return at, tower, ours


def _name(entry: str | tuple[str, Any, Any]) -> str:
    return entry if isinstance(entry, str) else entry[0]


def read_config(folder: Path) -> Any:
    """Read the transformers configuration in ``folder``; code beside it is never run.

    Raises:
        ModelError: it is missing or damaged, or describes a model that transformers does not have.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a kind of model makes of its settings
        if asked := _own_code(folder):
            raise ModelError(
                f"{folder}: config.json asks for code of its own (auto_map: {asked}), which is "
                "never run; give an encoder of a kind that transformers has"
            ) from error
        reason = first_line(error)
        raise ModelError(f"{folder}: cannot be opened as an encoder ({reason})") from error


def _own_code(folder: Path) -> str | None:
    """Return the class in Python code that ``config.json`` asks for, shortened; None: no such."""
    try:
        asked = read_json(folder / "config.json")["auto_map"]
        return str(next(iter(asked.values())))[:60]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None


def describe(model: Any) -> dict[str, Any]:
    """Return what builds ``model`` again, without weights: the ``architecture`` of `new_model`."""
    return _known_settings(model.config)


def _known_settings(config: Any) -> dict[str, Any]:
    known = AutoConfig.for_model(config.model_type).to_dict()
    # A configuration keeps what it does not know; and where it came from means nothing elsewhere.
    return {
        key: value
        for key, value in config.to_dict().items()
        if key in known and key != "_name_or_path"
    }


def architecture_of(folder: Path, usual: str, prepare: Prepare) -> tuple[dict[str, Any], list[str]]:
    """Return the ``architecture`` of the encoder in ``folder``, without reading its weights.

    Args:
        folder: with ``config.json``.
        usual: ``model_type`` to assume where there is no such folder.
        prepare: picks the encoder's part of a configuration.

    Returns:
        The keys of `new_model`, and what was assumed, one line each.

    Raises:
        ModelError: the folder is damaged.
    """
    if folder.is_dir():
        return _known_settings(prepare(read_config(folder))), []
    assumed = f"{folder} is not there: counted as transformers' default {usual}"
    return _known_settings(AutoConfig.for_model(usual)), [assumed]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, 300 characters of it, or its kind without one.

    A line that ends in a colon is followed by the next one.
    """
    lines = [line.strip()[:300] for line in str(error).strip().splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(error).__name__

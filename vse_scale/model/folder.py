"""The folder of a model: ``config.json``, ``model.safetensors`` and the tokenizer's files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from vse_scale.errors import ModelError
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.model.weights import load_exactly, read_state_dict

if TYPE_CHECKING:
    from vse_scale.inputs.tokens import CaptionTokenizer
    from vse_scale.model.vse import VSEModel

_FORMAT = "vse-scale-model"
_VERSION = 1
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"


def save(model: VSEModel, folder: Path, tokenizer: CaptionTokenizer | None = None) -> None:
    """Write ``model`` to ``folder``, complete: nothing in it refers to another place."""
    folder.mkdir(parents=True, exist_ok=True)
    config = _plain(model.config)
    config["init_from"] = None
    config["image"] |= {"weights": None, "path": None, "architecture": model.image.architecture()}
    config["text"] |= {"path": None, "tokenizer": None, "architecture": model.text.architecture()}
    described = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": config,
        "image_spec": model.image_spec.to_dict(),
        "vocab_size": model.vocab_size,
        "pad_id": model.pad_id,
    }
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder)


def load(kind: type[VSEModel], folder: Path) -> VSEModel:
    """Build the model that ``folder`` holds, in evaluation mode, on the CPU.

    Raises:
        ModelError: the folder is missing or damaged, or holds something else.
    """
    described = _read_config(folder)
    path = folder / _CONFIG
    for key in ("model", "image_spec", "vocab_size", "pad_id"):
        if key not in described:
            raise ModelError(f"{path}: {key!r} is missing")
    try:
        config: Any = _stored(described["model"])
        model = kind(config, int(described["vocab_size"]), int(described["pad_id"]))
        model.image_spec = ImageSpec.from_dict(described["image_spec"])
        if model.image_spec.size != config.image.size:
            raise ModelError(
                f"image_spec.size is {model.image_spec.size} and model.image.size "
                f"{config.image.size}; they must be equal"
            )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: does not describe a model ({reason})") from error
    load_weights(model, folder)
    return model.eval()


def load_weights(model: VSEModel, folder: Path) -> None:
    """Copy the weights of the model in ``folder`` into ``model``, which must be of its shape.

    Raises:
        ModelError: the folder is missing or damaged, or its model is another.
    """
    _read_config(folder)
    path = folder / _WEIGHTS
    load_exactly(model, read_state_dict(path), str(path))


def _stored(described: dict[str, Any]) -> SimpleNamespace:
    """Turn a stored configuration into attributes, as a run's own has them.

    Its values are not validated one by one, which would need pydantic where a model is only used:
    the weights must fit the network that it describes, to the last key. What would read from
    another place is dropped.
    """
    image = SimpleNamespace(**(described["image"] | {"weights": None, "path": None}))
    text = SimpleNamespace(**(described["text"] | {"path": None, "tokenizer": None}))
    return SimpleNamespace(**(described | {"init_from": None, "image": image, "text": text}))


def _plain(config: Any) -> dict[str, Any]:
    """Return a configuration for JSON, one of a run's or one that `_stored` made."""
    if isinstance(config, SimpleNamespace):
        return {
            key: _plain(value) if isinstance(value, SimpleNamespace) else value
            for key, value in vars(config).items()
        }
    plain: dict[str, Any] = config.model_dump(mode="json")
    return plain


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder")
    if not path.is_file():
        raise ModelError(f"{folder}: is no model folder, {_CONFIG} is missing")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: is not JSON ({error})") from error
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise ModelError(f"{path}: describes no model of this kind; give a folder made by export")
    if described.get("version") != _VERSION:
        raise ModelError(
            f"{path}: has version {described.get('version')!r}, this release reads {_VERSION}; "
            "upgrade vse-scale"
        )
    return described

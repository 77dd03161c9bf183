"""The folder of a model: ``config.json``, ``model.safetensors`` and the tokenizer's files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vse_scale.config.model import ModelConfig
from vse_scale.console import log
from vse_scale.errors import ModelError, UserError
from vse_scale.files import system_error
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import MAX_TOKENS, InputSpec
from vse_scale.model.adapters import LoRA, has_adapters, merge, merged_state
from vse_scale.model.beside import auto_keys, write_code, write_modules
from vse_scale.model.limits import MOST_PIXELS, MOST_TOKENS, MOST_WIDTH, check_most
from vse_scale.model.weights import check_tensors, load_exactly, open_tensors, read_state_dict
from vse_scale.run.folder import run_folder
from vse_shards.json_text import read_json
from vse_shards.yaml_text import read_yaml

if TYPE_CHECKING:
    from vse_scale.inputs.tokens import CaptionTokenizer
    from vse_scale.model.vse import VSEModel

_FORMAT = "vse-scale-model"
_VERSION = 1
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_STATE = "state.safetensors"  # of a checkpoint: the weights among a run's other tensors
# The later counts: where a run averages its weights, the average is what it validated.
_OF_MODEL = ("model.", "average.")


def save(model: VSEModel, folder: Path, tokenizer: CaptionTokenizer | None = None) -> None:
    """Write ``model`` to ``folder``, complete: nothing in it refers to another place."""
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(
        model.config,
        init_from=None,
        image=model.image.standalone(),
        text=model.text.standalone(),
    )
    described = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": config.to_dict(),
        # Earlier releases refuse a folder without it.
        "image_spec": model.image_spec.to_dict(),
        "input_spec": model.input_spec.to_dict(),
        "vocab_size": model.vocab_size,
        "pad_id": model.pad_id,
        **auto_keys(),
    }
    tensors = {name: value.cpu().contiguous() for name, value in merged_state(model).items()}
    try:
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        if (found := system_error(error)) is None:
            raise
        raise OSError(found.errno, found.strerror, str(folder / _WEIGHTS)) from error
    (folder / _CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    shutil.copymode(folder / _CONFIG, folder / _WEIGHTS)  # safetensors' is for its owner alone
    write_code(folder)
    if tokenizer is not None:
        tokenizer.save(folder)
        write_modules(folder, pictures=model.input_spec.pixels is not None)


def load(kind: type[VSEModel], folder: Path) -> VSEModel:
    """Build the model that ``folder`` holds, in evaluation mode, on the CPU.

    Args:
        kind: the class.
        folder: of a model, or of a checkpoint in its run.

    Raises:
        ModelError: the folder is missing or damaged, or holds something else.
    """
    described_in = settings_folder(folder)
    described = _read_config(described_in)
    path = described_in / _CONFIG
    for key in ("model", "image_spec", "vocab_size", "pad_id"):
        if key not in described:
            raise ModelError(f"{path}: {key!r} is missing")
    try:
        config = _with_adapters(ModelConfig.read(described["model"]), folder)
        vocab_size, pad_id = int(described["vocab_size"]), int(described["pad_id"])
        check_most(
            "",
            vocab_size=(vocab_size, MOST_TOKENS),
            embed_dim=(config.embed_dim, MOST_WIDTH),
            size=(getattr(config.image, "size", 0), MOST_PIXELS),
        )
        stored = InputSpec.from_dict(described["input_spec"]) if "input_spec" in described else None
        limit = stored.max_tokens if stored else _trained_limit(described_in)
        model = kind(config, vocab_size, pad_id, limit)
        pixels = ImageSpec.from_dict(described["image_spec"])
        _take_inputs(model, described_in, pixels, stored)
    except UserError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # values that nobody checked fail anywhere
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: does not describe a model ({reason})") from error
    load_weights(model, folder)
    if has_adapters(model):
        merge(model)
        sides = {"image": model.config.image, "text": model.config.text}
        plain = {k: replace(v, lora=None) for k, v in sides.items() if hasattr(v, "lora")}
        model.config = replace(model.config, **plain)
    return model.eval()


def input_spec(folder: Path) -> InputSpec:
    """Return what the model in ``folder`` expects of its inputs, without opening its weights.

    Raises:
        ModelError: the folder is missing or damaged, or of a release that did not store it.
    """
    described = _read_config(folder)
    if "input_spec" not in described:
        raise ModelError(
            f"{folder / _CONFIG}: 'input_spec' is missing; `vse-scale export` writes it"
        )
    return InputSpec.from_dict(described["input_spec"])


def tokenizer_of(folder: Path) -> CaptionTokenizer | None:
    """Open the tokenizer of the model in ``folder``; None where there is none.

    Raises:
        ModelError: its files are damaged, or it has tokens that the model does not know.
    """
    from vse_scale.inputs.tokens import CaptionTokenizer  # only those who embed texts need it

    found, known = CaptionTokenizer.find(folder), _read_config(folder).get("vocab_size")
    if found is not None and isinstance(known, int) and found.vocab_size > known:
        raise ModelError(
            f"{folder}: its tokenizer has {found.vocab_size:,} tokens, and the model knows "
            f"{known:,}; restore the tokenizer's files, or export the model anew"
        )
    return found


def _with_adapters(config: ModelConfig, folder: Path) -> ModelConfig:
    """Return ``config`` with the adapters of the run that a checkpoint in ``folder`` is of."""
    if weights_file(folder).name != _STATE:
        return config
    stored = read_json(folder / "state.json").get("config", {}).get("model", {})
    for side in ("image", "text"):
        if (lora := (stored.get(side) or {}).get("lora")) is not None:
            if find_spec("peft") is None:
                raise ModelError(
                    f"checkpoint {folder.name} has adapters (model.{side}.lora), which need the "
                    "package peft; pip install 'vse-scale[lora]', or open the run's best model, "
                    "which has them merged and needs no peft"
                )
            given = LoRA(**{**lora, "targets": tuple(lora["targets"])})
            config = replace(config, **{side: replace(getattr(config, side), lora=given)})
    return config


def _take_inputs(
    model: VSEModel, folder: Path, pixels: ImageSpec, stored: InputSpec | None
) -> None:
    """Give ``model`` the pixels of its folder, and check them and ``stored`` against its settings.

    Raises:
        ModelError: they contradict each other.
    """
    size = getattr(model.config.image, "size", pixels.size)  # regions have none
    if pixels.size != size:
        raise ModelError(
            f"image_spec.size is {pixels.size} and model.image.size {size}; they must be equal"
        )
    if model.input_spec.pixels is not None:
        model.input_spec = replace(model.input_spec, pixels=pixels)
    if stored is None:
        log.info(
            "%s: of an earlier release, which did not store how long captions may be; %d tokens "
            "are assumed. `vse-scale export` writes a folder that says so",
            folder, model.input_spec.max_tokens,
        )  # fmt: skip
    elif stored != model.input_spec:
        raise ModelError(
            f"input_spec is {stored}, and its model and image_spec say {model.input_spec}; they "
            "must be equal"
        )


def _trained_limit(folder: Path) -> int:
    """Return the most tokens of a caption that the run of an older model folder was trained with.

    The run's configuration tells, while the folder lies in it; elsewhere the default is assumed.
    """
    run = run_folder(folder)
    if run is None:
        return MAX_TOKENS
    try:
        found = read_yaml(run.config_file)
        return int(found["data"]["max_caption_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return MAX_TOKENS


def load_weights(model: VSEModel, folder: Path) -> None:
    """Copy the weights of the model in ``folder`` into ``model``, which must be of its shape.

    Raises:
        ModelError: the folder is missing or damaged, or its model is another.
    """
    path = weights_file(folder)
    if path.name == _STATE:
        load_exactly(model, _read_state(path, model.state_dict()), str(path))
        return
    _read_config(folder)
    load_exactly(model, read_state_dict(path), str(path))


def weights_file(folder: Path) -> Path:
    """Return the file of a model's weights, or of a checkpoint's."""
    state = folder / _STATE
    return state if state.is_file() else folder / _WEIGHTS


def settings_folder(folder: Path) -> Path:
    """Return the folder with a model's settings and tokenizer: of a checkpoint, its run's model.

    Raises:
        ModelError: it is a checkpoint, and its run has no model yet.
    """
    if weights_file(folder).name != _STATE:
        return folder
    run = run_folder(folder)
    if run is None or not run.model_folder.is_dir():
        raise ModelError(
            f"{folder}: is a checkpoint, and the run's folder above it holds no model, which the "
            "first validation writes; leave the checkpoint in its run, or wait for it"
        )
    return run.model_folder


def _read_state(path: Path, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a model's weights out of a checkpoint, whose other tensors are the optimizer's."""
    try:
        with open_tensors(path) as file:
            held = set(file.keys())
            places = {n: kind + n for kind in _OF_MODEL for n in wanted if kind + n in held}
            read = {name: file.get_tensor(place) for name, place in places.items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as weights ({error})") from error
    return check_tensors(read, str(path))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder; give a model's, or a run.dir")
    if not path.is_file():
        raise ModelError(f"{folder}: is no model folder, {_CONFIG} is missing")
    try:
        described = read_json(path)
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

"""The pixels that an image encoder of transformers expects, out of the files beside its weights."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from vse_scale.console import log
from vse_scale.errors import ModelError
from vse_shards.json_text import mapping, read_json

# Releases of transformers write the one or the other; in the second, images have a part.
_FILES = ("preprocessor_config.json", "processor_config.json")


def read_pixels(folder: Path, *, assumed: str) -> dict[str, Any] | None:
    """Return the fields of an `ImageSpec` that the files in ``folder`` say.

    Args:
        folder: of an image encoder.
        assumed: name of the statistics that are used where no file says any, for the message.

    Returns:
        ``channel_order``, ``scale``, ``mean`` and ``std``; None where there is no such file.

    Raises:
        ModelError: the file is damaged, or does not say mean and standard deviation.
    """
    for name in _FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            raw = mapping(read_json(file))
            raw = raw.get("image_processor", raw)
            if name == _FILES[0] or "image_mean" in raw or "do_normalize" in raw:
                return _fields(raw)
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file}: does not say image_mean and image_std ({error})") from error
    if folder.is_dir():
        _say_assumed(folder, assumed)
    return None


def _fields(raw: dict[str, Any]) -> dict[str, Any]:
    flips = bool(raw.get("do_flip_channel_order", False))
    mean, std = [0.0] * 3, [1.0] * 3
    # What turns the channels round, as MobileViT's, never normalises.
    if raw.get("do_normalize", not (flips and "image_mean" not in raw)):
        mean, std = _channels(raw["image_mean"]), _channels(raw["image_std"])
    if raw.get("rescale_offset", False):
        mean = [value + 1 for value in mean]
    return {
        "channel_order": "BGR" if flips else "RGB",
        "scale": raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1.0,
        "mean": mean,
        "std": std,
    }


def _channels(value: Any) -> list[Any]:
    return [value] * 3 if isinstance(value, int | float) else list(value)


@functools.cache
def _say_assumed(folder: Path, assumed: str) -> None:
    log.warning(
        "%s: has neither %s nor %s; its pixels are taken to be normalised as %s's. Put the file "
        "there, or set model.image.pixels",
        folder, *_FILES, assumed,
    )  # fmt: skip

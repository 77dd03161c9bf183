"""Names of the parts of a run.

These are stand-ins until the parts answer for themselves; no other module of the report compares
a part's name.
"""

from __future__ import annotations

from pathlib import PurePath

from vse_scale.run.folder import RunRecords


def image_tower(run: RunRecords) -> str:
    """Return the image encoder in words; empty where the run holds no configuration."""
    backbone = run.setting("model.image.backbone")
    if backbone == "regions":
        return "region features"
    if backbone == "huggingface":
        path, kind = (run.setting(f"model.image.{k}") for k in ("path", "architecture.model_type"))
        backbone = PurePath(path).name if path else kind
    size = run.setting("model.image.size")
    return f"{backbone}, {size} px" if backbone else ""


def text_tower(run: RunRecords) -> str:
    """Return the text encoder in words; empty where the run holds no configuration."""
    if run.setting("model.text.encoder") == "bigru":
        return "BiGRU"
    path = run.setting("model.text.path")
    if path:
        return PurePath(path).name
    kind = run.setting("model.text.architecture.model_type", "BERT")
    layers = run.setting("model.text.architecture.num_hidden_layers")
    return f"{kind} of {layers} layers" if layers else (kind if run.config else "")

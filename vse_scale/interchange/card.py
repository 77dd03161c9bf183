"""The model card of an exported folder: data, recipe, figures, and the licences of the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from vse_scale.model.vse import VSEModel

FILE = "README.md"

# Of public weights that towers start from, by what their names contain. What is not listed is
# asked of the reader rather than guessed.
_LICENCES = {
    "wsl": "CC-BY-NC-4.0 (Facebook's weakly supervised ResNeXt): no commercial use",
    "bert-base": "Apache-2.0 (Google's BERT)",
    "bert-large": "Apache-2.0 (Google's BERT)",
    "detector": "MIT (bottom-up attention; trained on Visual Genome, CC-BY-4.0)",
}
_UNKNOWN = "not recorded: state it before you pass the model on"
_RECIPE = (
    "objective.margin", "objective.mode", "objective.warmup_epochs", "data.global_batch",
    "data.mode", "data.captions_per_image", "optim.lr", "optim.text_scale", "optim.backbone_scale",
    "optim.weight_decay", "optim.drop_epochs", "train.epochs", "run.seed",
)  # fmt: skip


def model_card(
    model: VSEModel,
    *,
    name: str,
    licence: str | None = None,
    run: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    origin: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    sources: Mapping[str, str] | None = None,
) -> str:
    """Return the card as Markdown with the front matter that model hubs read.

    Args:
        model: what it describes.
        name: the title.
        licence: of the whole, an SPDX identifier.
        run: the configuration of the run that trained it, sections of keys.
        results: its figures, as ``results.json`` has them.
        origin: in words, where the weights came from if no run of ours trained them.
        recipe: in that case, what is known of the recipe.
        sources: in that case, what each tower started from.
    """
    run, results = run or {}, results or {}
    front = {
        "library_name": "vse-scale",
        "pipeline_tag": "feature-extraction",
        "tags": ["image-text-retrieval", "vse-infinity"],
    }
    if licence:
        front["license"] = licence.lower()
    if run:
        recipe = {key: value for key in _RECIPE if (value := _value(run, key)) is not None}
        sources = _started_from(run)
    opened = f"from vse_scale import VSEModel\n\nmodel = VSEModel.from_pretrained({name!r})"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}",
        "Embeds images and captions in one space, where their inner product says how well they "
        "match. The method is VSE-infinity (Chen et al., CVPR 2021, "
        "https://arxiv.org/abs/2011.04305).",
        f"```python\n{opened}\n```",
        "## Model",
        _table(_model_rows(model)),
        "## Training data",
        _data(run) or origin or "Not recorded.",
        "## Recipe",
        _table([(f"`{key}`", json.dumps(value)) for key, value in (recipe or {}).items()])
        if recipe
        else "Not recorded.",
        "## Results",
        _results(results),
        "## Weights and their licences",
        _weights(sources, licence),
    ]
    return "\n\n".join(parts) + "\n"


def _model_rows(model: VSEModel) -> list[tuple[str, str]]:
    config, spec = model.config, model.image_spec
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = [
        ("parameters", f"{parameters:,}"),
        ("embedding", f"{config.embed_dim} channels, unit length"),
    ]
    if config.image.backbone == "regions":
        rows.append(("images", f"regions of {config.image.region_channels} channels"))
    else:
        rows.append(
            (
                "images",
                f"{config.image.backbone}, {spec.size} x {spec.size} pixels, {spec.channel_order}",
            )
        )
    rows.append(("captions", f"{model.vocab_size:,} token ids"))
    return rows


def _data(run: Mapping[str, Any]) -> str:
    path = _value(run, "data.path")
    if path is None:
        return ""
    return f"Split `{_value(run, 'data.split')}` of the dataset `{PurePath(path).name}`."


def _results(results: Mapping[str, Any]) -> str:
    if "i2t" not in results:
        return "Not evaluated."
    lines = [
        f"On split `{results.get('split', 'unknown')}`, recalls in percent:",
        "",
        "| | R@1 | R@5 | R@10 |",
        "|---|---:|---:|---:|",
    ]
    for way, name in (("i2t", "image to text"), ("t2i", "text to image")):
        figures = " | ".join(f"{results[way][key]:.1f}" for key in ("r1", "r5", "r10"))
        lines.append(f"| {name} | {figures} |")
    return "\n".join([*lines, "", f"RSUM {results['rsum']:.1f}"])


def _started_from(run: Mapping[str, Any]) -> dict[str, str]:
    whole = _value(run, "model.init_from")
    given = {
        "images": whole or _value(run, "model.image.weights"),
        "captions": whole or _value(run, "model.text.path"),
    }
    return {side: str(source or "") for side, source in given.items()}


def _weights(sources: Mapping[str, str] | None, licence: str | None) -> str:
    rows = [] if sources else [("all", _UNKNOWN)]
    for side, source in (sources or {}).items():
        what = "trained from scratch"
        if source:
            what = f"started from `{PurePath(source).name}`: {_licence_of(source)}"
        rows.append((side, what))
    if licence:
        rows.append(("this model", licence))
    return _table(rows)


def _licence_of(source: str) -> str:
    lowered = source.lower()
    return next((text for part, text in _LICENCES.items() if part in lowered), _UNKNOWN)


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)])


def _value(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value

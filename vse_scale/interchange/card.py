"""The model card of an exported folder: data, recipe, figures, and licenses of the weights."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml

from vse_scale.config.model import IMAGE, TEXT
from vse_scale.model.vse import VSEModel
from vse_scale.objective.registry import recorded_objective
from vse_scale.retrieval.metrics import DIRECTIONS, percentages
from vse_scale.run.records import EvaluationRecord

FILE = "README.md"

_LONGEST = 80  # characters of a name or value that is not ours
_NOT_RECORDED = "Not recorded."
_UNKNOWN = "not recorded: state it before you pass the model on"
_RECIPE = (
    "data.global_batch", "data.mode", "data.captions_per_image", "optim.lr", "optim.text_scale",
    "optim.backbone_scale", "optim.weight_decay", "optim.warmup_steps", "optim.decay_norms",
    "optim.layer_decay", "optim.average", "optim.schedule",
)  # fmt: skip
# Only the keys of the chosen schedule.
_LENGTH = ("optim.schedule_epochs", "optim.schedule_steps")
_RECIPE_OF_SCHEDULE = {
    "steps": ("optim.drop_epochs", "optim.drop_factor"),
    "cosine": (*_LENGTH, "optim.final_factor"),
    "cooldown": (*_LENGTH, "optim.cooldown", "optim.final_factor"),
}
_RECIPE_OF_RUN = ("train.epochs", "run.seed")


@dataclass(frozen=True)
class Origin:
    """The provenance of a model's weights.

    Attributes:
        data: the training data, in a sentence.
        recipe: options of the training, by their names.
        sources: the weights that each tower started from, by "images" and "captions"; empty for
            random ones.
        dataset: the name of the training data.
    """

    data: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    dataset: str = ""


def origin_of_run(config: Mapping[str, Any]) -> Origin:
    """Return the provenance that a run's configuration tells, sections of keys."""
    path = _value(config, "data.path")
    data = dataset = ""
    if path is not None:
        folders = [path] if isinstance(path, str) else path
        named = " and ".join(_code(PurePath(folder).name) for folder in folders)
        dataset = _plain(" and ".join(PurePath(folder).name for folder in folders))
        kind = "dataset" if len(folders) == 1 else "datasets"
        data = f"Split {_code(_value(config, 'data.split'))} of the {kind} {named}."
    objective = recorded_objective(config.get("objective"))
    keys = [f"objective.{key}" for key in (objective.recipe_keys if objective else ())]
    schedule = _value(config, "optim.schedule") or "steps"  # earlier releases had no other
    keys += (*_RECIPE, *_RECIPE_OF_SCHEDULE.get(schedule, ()), *_RECIPE_OF_RUN)
    whole = _value(config, "model.init_from")
    towers = {
        "images": IMAGE.recorded(_value(config, "model.image")),
        "captions": TEXT.recorded(_value(config, "model.text")),
    }
    return Origin(
        data,
        {key: value for key in keys if _tells(key, value := _value(config, key))},
        {
            side: str(whole or settings.source or "")
            for side, settings in towers.items()
            if settings is not None
        },
        dataset,
    )


def _tells(key: str, value: Any) -> bool:
    """Tell whether a setting has a value; an objective's empty list is none."""
    return value is not None and not (value == [] and key.startswith("objective."))


def model_card(
    model: VSEModel,
    *,
    name: str,
    license: str | None = None,
    origin: Origin | None = None,
    results: EvaluationRecord | None = None,
) -> str:
    """Return the card as Markdown with the front matter that model hubs read.

    Args:
        model: the model.
        name: the title.
        license: of the whole, an SPDX identifier.
        origin: where the weights came from; None if that is not known.
        results: its validation; None if there was none.
    """
    origin = origin or Origin()
    front: dict[str, Any] = {
        "library_name": "vse-scale",
        "pipeline_tag": "feature-extraction",
        "tags": ["image-text-retrieval", "vse-infinity"],
    }
    if license:
        front["license"] = license.lower()
    if origin.dataset and results is not None and results.recalls:
        front["model-index"] = [{"name": _plain(name), "results": [_indexed(origin, results)]}]
    opened = f"from vse_scale import VSEModel\n\nmodel = VSEModel.from_pretrained({name!r})"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {text(name)}",
        "Embeds images and captions in one space, where their inner product says how well they "
        "match. The method is VSE-infinity (Chen et al., CVPR 2021, "
        "https://arxiv.org/abs/2011.04305).",
        f"```python\n{opened}\n```",
        "## Model",
        _table(_model_rows(model)),
        "## Training data",
        origin.data or _NOT_RECORDED,
        "## Recipe",
        _table([(_code(key), text(json.dumps(value))) for key, value in origin.recipe.items()])
        if origin.recipe
        else _NOT_RECORDED,
        "## Results",
        _results(results),
        "## Weights and their licenses",
        _weights(model, origin.sources, license),
    ]
    return "\n\n".join(parts) + "\n"


def _model_rows(model: VSEModel) -> list[tuple[str, str]]:
    config, spec = model.config, model.input_spec
    images, captions = config.image.describe(), config.text.describe()
    if spec.pixels is not None:
        images += f", {spec.pixels.channel_order}"
    if spec.regions is not None:
        images += f" of {spec.regions.channels} channels, at most {spec.regions.most}"
    tokens = f"{model.vocab_size:,} token ids, at most {spec.max_tokens} each"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [
        ("parameters", f"{parameters:,}"),
        ("embedding", f"{config.embed_dim} channels, unit length"),
        ("images", text(images)),
        ("captions", f"{text(captions)}, {tokens}"),
    ]


def _results(results: EvaluationRecord | None) -> str:
    if results is None or not results.recalls:
        return "Not evaluated."
    metrics = percentages()
    lines = [
        f"On split {_code(results.split or 'unknown')}, recalls in percent:",
        "",
        f"| | {' | '.join(metric.label for metric in metrics)} |",
        f"|---|{'---:|' * len(metrics)}",
    ]
    for key, direction in DIRECTIONS.items():
        if key in results.recalls:
            figures = " | ".join(metric.text(results.recalls[key]) for metric in metrics)
            lines.append(f"| {direction.label} | {figures} |")
    if not math.isnan(results.rsum):
        lines += ["", f"RSUM {results.rsum:.1f}"]
    return "\n".join(lines)


def _indexed(origin: Origin, results: EvaluationRecord) -> dict[str, Any]:
    """Return the validation in the hub's schema of results, recalls in percent."""
    metrics = [
        {
            "type": "recall",
            "name": f"{metric.label} {direction.label}",
            "value": float(metric.text(results.recalls[key])),
        }
        for key, direction in DIRECTIONS.items()
        if key in results.recalls
        for metric in percentages()
    ]
    dataset = {"name": origin.dataset, "type": _plain(origin.dataset)}
    if results.split:
        dataset["split"] = _plain(results.split)
    return {"task": {"type": "image-text-retrieval"}, "dataset": dataset, "metrics": metrics}


def _weights(model: VSEModel, sources: Mapping[str, str], license: str | None) -> str:
    rows = [] if sources else [("all", _UNKNOWN)]
    towers = {"images": model.config.image, "captions": model.config.text}
    for side, source in sources.items():
        origin = "trained from scratch"
        if source:
            origin = f"started from {_code(PurePath(source).name)}: "
            origin += _license_of(source, towers[side].licenses)
        rows.append((side, origin))
    if license:
        rows.append(("this model", text(license)))
    return _table(rows)


def _license_of(source: str, known: Mapping[str, str]) -> str:
    """Return the license of weights; of others the card asks, since a guess could be wrong."""
    lowered = source.lower()
    return next((text for part, text in known.items() if part in lowered), _UNKNOWN)


def text(value: Any) -> str:
    """Return ``value`` as one line of Markdown that shows it and does nothing else, shortened.

    Names and options come out of files that others wrote: no tag, link, heading or table of theirs
    may become one of the card's.
    """
    return html.escape(re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", _plain(value)), quote=False)


def _code(value: Any) -> str:
    """Return ``value`` as a span of code, which has no escapes of its own."""
    return f"`{_plain(value).translate(str.maketrans('`|', '  '))}`"


def _plain(value: Any) -> str:
    """Return ``value`` on one line, of printable characters, shortened."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)])


def _value(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value

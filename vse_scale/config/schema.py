"""A run's configuration: one YAML file, dotted overrides, checked before anything starts.

Defaults are the published VSE-infinity recipe for grid features (Chen et al., CVPR 2021, and the
training scripts of its code) unless a comment says otherwise.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vse_scale.config.recipe import apply_override, read_recipe
from vse_scale.config.resume import MAY_CHANGE
from vse_scale.errors import ConfigError
from vse_scale.run.folder import model_folder

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of every section: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """What is trained on, in which order, and how it is varied."""

    # A folder that `vse-shards build` wrote, or its URL, such as s3://bucket/folder; or several
    # folders to be mixed: each once an epoch, or with weights, by which the pairs of an epoch (in
    # mode "images": its images) are shared out.
    path: Annotated[
        str | tuple[str, ...], BeforeValidator(lambda given: _folders(given)), MAY_CHANGE
    ]
    weights: tuple[Positive, ...] | None = None
    split: str = "train"
    global_batch: Count = 128  # counts (image, caption) pairs, over all ranks
    # "pairs": an epoch visits each (image, caption) pair once, as published. "images": each image
    # once, with `captions_per_image` of its captions, so that one encoding serves several pairs.
    mode: Literal["pairs", "images"] = "pairs"
    captions_per_image: Count = 1
    last_batch: Literal["drop", "wrap"] = "drop"
    shuffle_window: int = Field(default=0, ge=0)  # shards; 0 shuffles all of the split at once
    crop_scale: tuple[Fraction, Fraction] = (0.6, 1.0)  # one ratio for both sides
    flip: Fraction = 0.5
    word_drop: Fraction = 0.2  # share of words masked, replaced or removed
    max_caption_tokens: Annotated[int, Field(ge=3)] = 128  # longer captions are cut; ours
    threads: Annotated[Count, MAY_CHANGE] = (
        2  # that decode, per rank; on a CPU as many again stretch the images
    )
    prefetch: Annotated[Count, MAY_CHANGE] = 3  # batches decoded ahead
    # Shards of a remote dataset are staged on each node. With shuffle_window=0 a step reads from
    # all of them, so all must fit; with W, about 3 W + cache_ahead.
    # None: in the system's temporary folder, which TMPDIR moves.
    cache_dir: Annotated[str | None, MAY_CHANGE] = None
    # Units of 10**9 bytes; the shards used longest ago go first.
    cache_gb: Annotated[Positive, MAY_CHANGE] = 100.0
    # Shards fetched before they are asked for.
    cache_ahead: Annotated[int, Field(ge=0), MAY_CHANGE] = 2

    @property
    def folders(self) -> tuple[str, ...]:
        """The dataset folders, one or several, or the URL of one."""
        return (self.path,) if isinstance(self.path, str) else self.path


class ImageConfig(Section):
    """The image tower."""

    # "tiny" is a three-stage residual network for demonstrations and tests; "resnet152_caffe" has
    # the detector's strides, see launch/recipes/coco_imagenet_bert.yaml; "huggingface" is a vision
    # model of the transformers library; "regions" takes a detector's features in place of pixels.
    backbone: Literal[
        "tiny", "resnet50", "resnet101", "resnet152", "resnet152_caffe", "resnext101_32x8d",
        "detector", "huggingface", "regions",
    ] = "resnet152"  # fmt: skip
    # A state dict with torchvision's names, or the published detector's file; None: random.
    weights: str | None = None
    path: str | None = None  # huggingface: folder with config.json and weights
    architecture: dict[str, Any] = Field(default_factory=dict)  # huggingface without path: random
    size: Annotated[int, Field(ge=16)] = 512  # pixels, both sides
    # huggingface: what the folder's preprocessor_config.json says comes first.
    pixels: Literal["imagenet", "detector"] = "imagenet"
    antialias: bool = False  # the published pipeline resizes with OpenCV, which does not
    drop_cells: bool = True  # size augmentation of the grid, or of the regions, in training
    max_regions: Count = 36  # of an image; 36 as in bottom-up attention's fixed features
    region_channels: Count = 2048  # of a region's features


class TextConfig(Section):
    """The text tower: an encoder from a local Hugging Face folder or a new one, or a BiGRU."""

    encoder: Literal["huggingface", "bigru"] = "huggingface"
    path: str | None = None  # folder with config.json and weights; None: `architecture`, random
    tokenizer: str | None = None  # folder or file; None: `path`'s, or one made from the captions
    # A made vocabulary is of word pieces, at most so many (ours), or for a BiGRU of the words that
    # occur so often (as SCAN's, which the published code reads).
    vocab_size: Annotated[int, Field(ge=32)] = 8000
    min_count: Count = 4
    architecture: dict[str, Any] = Field(default_factory=dict)  # keys of its transformers config
    word_channels: Count = 300  # of a BiGRU's word embedding


class ModelConfig(Section):
    """The joint embedding."""

    embed_dim: Count = 1024
    pool: Literal["gpo", "mean"] = "gpo"  # of both towers; mean: VSE++
    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()
    dropout: Fraction | None = None  # of the text encoder; None keeps the encoder's own
    # A model folder to start from, or the folder of the run that made it.
    init_from: Annotated[
        Annotated[str, AfterValidator(lambda given: _model_of(given))] | None, MAY_CHANGE
    ] = None


class ObjectiveConfig(Section):
    """Hinge loss with margin, first over all violations, then over the hardest negative."""

    margin: Positive = 0.2
    reduction: Literal["sum", "mean"] = "sum"
    mode: Literal["hardest", "all"] = "hardest"
    warmup_epochs: int = Field(default=1, ge=0)  # epochs with all violations before `mode`
    # Published: in the epoch after the warm-up the loss is scaled by i / n at step i of n.
    ramp: bool = True


class OptimConfig(Section):
    """AdamW with one learning rate per part of the model."""

    algorithm: Literal["adamw", "sgd"] = "adamw"  # sgd: for tests of the gradient's scale
    lr: Positive = 5e-4  # embedding heads
    text_scale: Annotated[float, Field(ge=0.0)] = 0.1
    backbone_scale: Annotated[float, Field(ge=0.0)] = 0.01  # 0.1 for ImageNet weights
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # rates rise linearly; for untrained encoders
    drop_epochs: tuple[Annotated[float, Field(gt=0.0)], ...] = (15,)  # may be fractions of an epoch
    drop_factor: Positive = 0.1
    clip: Annotated[float, Field(ge=0.0)] = 2.0  # norm of the loss's gradient; 0: never clip


class TrainConfig(Section):
    """How long, and what is frozen at first."""

    epochs: Annotated[Count, MAY_CHANGE] = 25
    max_steps: Annotated[Count | None, MAY_CHANGE] = None  # stop earlier than `epochs`
    frozen_backbone_epochs: int = Field(default=1, ge=0)
    # After that the backbone's last stage trains alone for so many epochs, then the last two, then
    # three, then all of it. Published: 0, all at once.
    backbone_warmup_epochs: int = Field(default=0, ge=0)
    calibration_images: Annotated[int, Field(ge=2)] = 256  # BatchNorm of an untrained backbone
    max_skipped_steps: Count = 10  # non-finite steps in a row that end the run


class EvalConfig(Section):
    """Validation during training."""

    split: str | None = None  # None: "val" where the dataset has one
    every_epochs: Count = 1
    every_steps: Count | None = None  # in place of every_epochs, where an epoch is long
    # Evaluations without a better RSUM after which training ends; None: it runs to its end.
    patience: Count | None = None
    batch: Count = 64  # images or captions encoded at once, per rank


class EngineConfig(Section):
    """DeepSpeed."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], MAY_CHANGE] = 2
    # Above 1 a rank encodes its part of the batch in so many pieces, twice each, in the memory of
    # one: gradients are cached, and negatives still come from the whole global batch.
    micro_batches: Annotated[Count, MAY_CHANGE] = 1
    # "auto": bfloat16 autocast on a GPU, float32 on a CPU.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # A third more computing for much less memory.
    activation_checkpointing: Annotated[bool, MAY_CHANGE] = False
    compile: bool = False  # torch.compile for both encoders; minutes at the start of a run
    # A rank silent for so long in a collective ends the run.
    timeout_seconds: Annotated[Positive, MAY_CHANGE] = 600.0


class TelemetryConfig(Section):
    """Observers of a run while it goes."""

    # Each rank serves Prometheus on this port plus its local rank, on all interfaces; null: none
    # does. 9840 to 9855 are away from the exporters of machines (9100) and of GPUs (9400).
    prometheus_port: Annotated[int, Field(ge=1, le=65535)] | None = 9840
    tensorboard: bool = True  # curves in `tensorboard/` of the run's folder
    # Further observers on the main rank: entry points of the group vse_scale.observers, or
    # module:Class.
    observers: tuple[str, ...] = ()


class RunConfig(Section):
    """Where a run keeps its files, and its seed."""

    dir: Annotated[str, MAY_CHANGE]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    checkpoint_epochs: Annotated[Count, MAY_CHANGE] = 1
    # In place of checkpoint_epochs, where an epoch is long.
    checkpoint_steps: Annotated[Count | None, MAY_CHANGE] = None
    keep_checkpoints: Annotated[Count, MAY_CHANGE] = 2


class Config(Section):
    """All of a run. ``Config.load`` reads it from YAML with overrides."""

    data: DataConfig
    run: RunConfig
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: Annotated[EvalConfig, MAY_CHANGE] = EvalConfig()
    engine: EngineConfig = EngineConfig()
    telemetry: Annotated[TelemetryConfig, MAY_CHANGE] = TelemetryConfig()

    @model_validator(mode="after")
    def _compiled_weights_are_whole(self) -> Config:
        if self.engine.compile and self.engine.zero_stage == 3:
            raise ValueError(
                "engine.compile is true, and torch.compile cannot follow what gathers weights at "
                "engine.zero_stage=3; set engine.zero_stage=2, or engine.compile=false"
            )
        return self

    @model_validator(mode="after")
    def _captions_need_images_mode(self) -> Config:
        if self.data.captions_per_image > 1 and self.data.mode != "images":
            raise ValueError(
                f"data.captions_per_image is {self.data.captions_per_image}, which needs "
                "data.mode=images; set it, or captions_per_image=1"
            )
        return self

    @model_validator(mode="after")
    def _a_backbone_has_one_source(self) -> Config:
        image = self.model.image
        if image.backbone == "huggingface":
            if image.weights is not None:
                raise ValueError(
                    "model.image.weights is of the built-in backbones; give a huggingface backbone "
                    "its folder as model.image.path"
                )
            if not image.path and "model_type" not in image.architecture:
                raise ValueError(
                    "model.image.backbone is huggingface; set model.image.path to a folder, or "
                    "model.image.architecture.model_type and what differs from its defaults"
                )
        elif image.path or image.architecture:
            raise ValueError(
                f"model.image.backbone is {image.backbone}, which has neither path nor "
                "architecture; take them out, or set model.image.backbone=huggingface"
            )
        return self

    @model_validator(mode="after")
    def _a_bigru_is_made_here(self) -> Config:
        text = self.model.text
        if text.encoder == "bigru" and (text.path or text.architecture):
            raise ValueError(
                "model.text.encoder is bigru, which has neither path nor architecture; take them "
                "out, or set model.text.encoder=huggingface"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_of_the_datasets(self) -> Config:
        folders, weights = len(self.data.folders), self.data.weights
        if weights is not None and len(weights) != folders:
            raise ValueError(
                f"data.weights has {len(weights)} values, and data.path {folders} "
                f"folder{'s'[: folders - 1]}; give one weight per folder"
            )
        return self

    @model_validator(mode="after")
    def _live_statistics_need_the_whole_batch(self) -> Config:
        if self.model.image.backbone == "regions" and self.engine.micro_batches > 1:
            raise ValueError(
                "model.image.backbone is regions, whose BatchNorm takes its statistics from the "
                f"whole batch; engine.micro_batches is {self.engine.micro_batches}, set 1"
            )
        return self

    @model_validator(mode="after")
    def _crop_scale_is_a_range(self) -> Config:
        low, high = self.data.crop_scale
        if not 0 < low <= high:
            raise ValueError(
                f"data.crop_scale is [{low}, {high}]; give [low, high], 0 < low <= high"
            )
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | None = None) -> Config:
        """Read ``path`` and apply ``section.key=value`` overrides, values as YAML.

        A file states what differs from others with ``base: other.yaml``, or a list of them, each
        relative to the file itself: sections are merged key by key, a later file's value counts,
        and the file's own comes last.

        Raises:
            ConfigError: the file or a base is missing or is no YAML mapping, a base leads back to
                the file, or a key or value is wrong; the message names the file or override, the
                key, its value and the remedy.
        """
        path = Path(path)
        raw = read_recipe(path)
        for override in overrides or []:
            apply_override(raw, override)
        return cls.parse(raw, origin=str(path))

    @classmethod
    def parse(cls, raw: dict[str, Any], origin: str = "config") -> Config:
        """Validate a nested mapping; ``origin`` is what an error message calls it."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {_explain(error)}") from error

    def check_layout(self, ranks: int) -> None:
        """Raise ConfigError where the global batch does not divide over ``ranks``."""
        factors = [(ranks, "rank" if ranks == 1 else "ranks")]
        if self.engine.micro_batches > 1:
            factors.append((self.engine.micro_batches, "micro-batches"))
        if self.data.captions_per_image > 1:
            factors.append((self.data.captions_per_image, "captions per image"))
        unit, batch = math.prod(count for count, _ in factors), self.data.global_batch
        if batch % unit:
            parts = " x ".join(f"{count} {what}" for count, what in factors)
            below, above = batch // unit * unit, (batch // unit + 1) * unit
            choice = f"{below} or {above}" if below else str(above)
            raise ConfigError(
                f"data.global_batch is {batch}, not divisible by {parts}; set {choice}"
            )

    def to_yaml(self) -> str:
        """Return the resolved configuration, one that ``load`` reads back as equal."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _model_of(folder: str) -> str:
    """Return the model's folder, given it or a run's folder."""
    own = model_folder(Path(folder))
    return folder if own == Path(folder) else str(own)


def _folders(given: object) -> str | tuple[str, ...]:
    if isinstance(given, str):
        return given
    if isinstance(given, list | tuple) and given and all(isinstance(p, str) for p in given):
        return tuple(given)
    raise ValueError("Give a folder, or a list of folders")


def _explain(error: ValidationError) -> str:
    """Turn pydantic's first complaint into one line in the words of the user's own keys."""
    details = error.errors(include_url=False)
    # An unknown key explains a missing one (a misspelt name), so it is said first.
    first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    dotted = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(Config)
        near = difflib.get_close_matches(dotted, known, n=1, cutoff=0.0)
        return f"unknown key {dotted}; did you mean {near[0]}?"
    if first["type"] == "missing":
        return f"{dotted} is missing; set it in the file or as {dotted}=VALUE"
    message = first["msg"].removeprefix("Value error, ")
    if not dotted:
        return message
    return f"{dotted} is {first['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        keys.append(prefix + name)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += _known_keys(kind, f"{prefix}{name}.")
    return keys

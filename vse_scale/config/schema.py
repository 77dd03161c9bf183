"""A run's configuration: one YAML file, dotted overrides, checked before anything starts.

Defaults are the published VSE-infinity recipe for grid features (Chen et al., CVPR 2021, and the
training scripts of its code) unless a comment says otherwise.
"""

from __future__ import annotations

import math
import os
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

from vse_scale.bounds import (
    MAY_CHANGE,
    MOST_THREADS,
    ON_PURPOSE,
    Count,
    Fraction,
    Le,
    Positive,
)
from vse_scale.config.model import ModelConfig, model_keys
from vse_scale.config.parts import OBJECTIVE, Choice, complaint
from vse_scale.config.recipe import apply_override, find_recipe, read_recipe
from vse_scale.config.synonyms import nearest_key
from vse_scale.errors import ConfigError
from vse_scale.inputs.spec import MAX_TOKENS
from vse_shards.masking import masked_values
from vse_shards.notes import shown


class Section(BaseModel):
    """Base of every section: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """The training data, its order and its augmentation."""

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
    # Parts of the permuted shards that every batch takes equally much of, so that a node reads from
    # its own parts alone. None: up to 8 from 2**20 units on where there is a window, else 1; set as
    # many as there are nodes, or a multiple, beyond eight.
    streams: Count | None = None
    crop_scale: tuple[Fraction, Fraction] = (0.6, 1.0)  # one ratio for both sides
    flip: Fraction = 0.5
    word_drop: Fraction = 0.2  # share of words masked, replaced or removed
    # "positives": images that share a caption in a batch, word for word, are no negatives of each
    # other. Published: what is another image's is a negative.
    equal_captions: Literal["negatives", "positives"] = "negatives"
    # Shards, evenly spread, whose captions a vocabulary is made from where the model names none; a
    # run over a remote dataset then reads no others before it starts. None: all of them.
    vocabulary_shards: Count | None = None
    max_caption_tokens: Annotated[int, Field(ge=3)] = MAX_TOKENS  # longer captions are cut
    threads: Annotated[Count, Le(MOST_THREADS), MAY_CHANGE] = (
        2  # that decode, per rank; on a CPU as many again resize the images
    )
    prefetch: Annotated[Count, MAY_CHANGE] = 3  # batches decoded ahead
    # A folder for the features of a frozen image tower (model.image.frozen): they are computed once
    # and read from then on, in place of decoding and encoding images. The states of held captions
    # are kept there too. None: neither is kept.
    feature_cache: Annotated[str | None, ON_PURPOSE] = None
    # The states of a frozen text encoder (model.text.frozen) are computed before the first step and
    # held in memory by each rank, 2 bytes x its width for every token of every caption; under mean
    # or first pooling 4 bytes x its width for every caption.
    hold_captions: Annotated[bool, ON_PURPOSE] = False
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


class OptimConfig(Section):
    """AdamW with one learning rate per part of the model."""

    algorithm: Literal["adamw", "sgd"] = "adamw"  # sgd: for tests of the gradient's scale
    lr: Annotated[Positive, ON_PURPOSE] = 5e-4  # embedding heads
    text_scale: Annotated[float, Field(ge=0.0), ON_PURPOSE] = 0.1
    # 0.1 for ImageNet weights
    backbone_scale: Annotated[float, Field(ge=0.0), ON_PURPOSE] = 0.01
    weight_decay: Annotated[float, Field(ge=0.0), ON_PURPOSE] = 1e-4
    # Rates rise linearly; for untrained encoders.
    warmup_steps: Annotated[int, Field(ge=0), ON_PURPOSE] = 0
    # May be fractions of an epoch.
    drop_epochs: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], ON_PURPOSE] = (15,)
    drop_factor: Annotated[Positive, ON_PURPOSE] = 0.1
    # "steps": published, the drops above. "cosine": falls along half a cosine. "cooldown": stays,
    # and falls in a line over the last `cooldown` of the schedule. Both end at `final_factor` of
    # the rate, and have a length of their own, so that a run with more epochs takes the same steps.
    schedule: Annotated[Literal["steps", "cosine", "cooldown"], ON_PURPOSE] = "steps"
    schedule_epochs: Annotated[Positive | None, ON_PURPOSE] = None  # may be fractions
    schedule_steps: Annotated[Count | None, ON_PURPOSE] = None  # in place of schedule_epochs
    cooldown: Annotated[Fraction, ON_PURPOSE] = 0.2
    final_factor: Annotated[Fraction, ON_PURPOSE] = 0.0
    # Published: norms' scales and biases decay as weights do.
    decay_norms: bool = True
    # Each layer of an encoder, or stage of a ResNet, learns at this times the rate of the one above
    # it. Published: 1, all alike.
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0), ON_PURPOSE] = 1.0
    # Weights are averaged over steps by this decay, such as 0.999; the average is validated and
    # exported. 0: there is none.
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    # Norm of the loss's gradient; 0: never clip.
    clip: Annotated[float, Field(ge=0.0), ON_PURPOSE] = 2.0

    @model_validator(mode="after")
    def _a_schedule_has_one_length(self) -> OptimConfig:
        given = [key for key in ("schedule_epochs", "schedule_steps") if getattr(self, key)]
        if self.schedule == "steps" and given:
            raise ValueError(
                f"optim.{given[0]} is the length of another schedule than optim.schedule=steps, "
                "which has optim.drop_epochs; take it out, or set optim.schedule=cosine"
            )
        if self.schedule_steps and self.warmup_steps >= self.schedule_steps:
            raise ValueError(
                f"optim.warmup_steps is {self.warmup_steps}, and optim.schedule_steps "
                f"{self.schedule_steps}, the warm-up included; set a shorter warm-up"
            )
        if self.schedule != "steps" and len(given) != 1:
            raise ValueError(
                f"optim.schedule is {self.schedule}, which needs one length; set "
                "optim.schedule_epochs, such as to train.epochs, or optim.schedule_steps"
            )
        return self


class TrainConfig(Section):
    """The length of training, and the parts that are frozen at first."""

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

    # Each rank serves Prometheus on this port plus its local rank; null: none does. 9840 to 9855
    # are away from the exporters of machines (9100) and of GPUs (9400).
    prometheus_port: Annotated[int, Field(ge=1, le=65535)] | None = 9840
    # The address that it is served at: this machine alone, unless another is given. 0.0.0.0 is all
    # of the machine's.
    address: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    tensorboard: bool = True  # curves in `tensorboard/` of the run's folder
    # Further observers on the main rank: wandb, mlflow, trackio, entry points of the group
    # vse_scale.observers, or module:Class.
    observers: tuple[str, ...] = ()


def _folder_of_run(given: str) -> str:
    """Fill in the home folder and variables, and refuse what is no folder of this machine."""
    if "://" in given:
        raise ValueError("Is a URL, and a run is written to a folder; copy it there afterwards")
    if not given.strip() or any(ord(letter) < 32 for letter in given):
        raise ValueError("Is no name of a folder: it is empty, or has a line break in it")
    filled = os.path.expanduser(os.path.expandvars(given))
    if "$" in filled or filled.startswith("~"):
        raise ValueError(
            "Names a variable, or a user, that is not set here; set it, or write it out"
        )
    return filled


class RunConfig(Section):
    """The folder of a run, its seed and its checkpoints."""

    # `~` and variables such as $SCRATCH are filled in.
    dir: Annotated[str, AfterValidator(_folder_of_run), MAY_CHANGE]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    checkpoint_epochs: Annotated[Count, MAY_CHANGE] = 1
    # Keys that change where the run goes on: `--resume-with KEY=VALUE` names them here.
    resume_with: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    # In place of checkpoint_epochs, where an epoch is long.
    checkpoint_steps: Annotated[Count | None, MAY_CHANGE] = None
    keep_checkpoints: Annotated[Count, MAY_CHANGE] = 2
    # The first rank gathers a checkpoint of up to so many GB, and writes it; of a larger one each
    # rank writes its own part, into one file, where all ranks see run.dir.
    gather_gb: Annotated[float, Field(ge=0), MAY_CHANGE] = 8.0


class Config(Section):
    """All of a run. ``Config.load`` reads it from YAML with overrides."""

    data: DataConfig
    run: RunConfig
    model: ModelConfig = ModelConfig()
    objective: Annotated[Any, OBJECTIVE] = Field(default_factory=OBJECTIVE.make_default)
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
    def _averaged_weights_are_whole(self) -> Config:
        if self.optim.average and self.engine.zero_stage == 3:
            raise ValueError(
                f"optim.average is {self.optim.average}, and weights are averaged whole on each "
                "rank, which engine.zero_stage=3 takes apart; set engine.zero_stage=2"
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
    def _a_batch_has_negatives(self) -> Config:
        batch, k = self.data.global_batch, self.data.captions_per_image
        if batch <= k:
            raise ValueError(
                f"data.global_batch is {batch}, the captions of one image, so that no pair has a "
                f"negative and nothing is learnt; set {2 * k} or more"
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
        image = self.model.image
        if image.live_statistics and self.engine.micro_batches > 1:
            raise ValueError(
                f"model.image.backbone is {image.backbone}, whose BatchNorm takes its statistics "
                f"from the whole batch; engine.micro_batches is {self.engine.micro_batches}, set 1"
            )
        return self

    @model_validator(mode="after")
    def _sizes_end_in_the_whole_embedding(self) -> Config:
        sizes = getattr(self.objective, "matryoshka", ())
        if sizes and max(sizes) != self.model.embed_dim:
            raise ValueError(
                f"objective.matryoshka is {list(sizes)}, and its largest size must be that of the "
                f"embeddings, model.embed_dim, which is {self.model.embed_dim}; end it with that"
            )
        return self

    @model_validator(mode="after")
    def _what_is_frozen_is_there(self) -> Config:
        image, data = self.model.image, self.data
        if image.frozen and image.takes != "images":
            raise ValueError(
                f"model.image.frozen is true, and model.image.backbone={image.backbone} has no "
                "backbone of its own; set model.image.frozen=false"
            )
        if data.feature_cache is None:
            return self
        if not image.frozen:
            raise ValueError(
                f"data.feature_cache is {data.feature_cache!r:.80}, and features change while the "
                "backbone trains; set model.image.frozen=true, or data.feature_cache=null"
            )
        if data.crop_scale != (1.0, 1.0) or data.flip:
            raise ValueError(
                f"data.feature_cache is {data.feature_cache!r:.80}, and images are cropped or "
                f"flipped at random (data.crop_scale is {list(data.crop_scale)}, data.flip is "
                f"{data.flip:g}); set data.crop_scale=[1,1] data.flip=0, or "
                "data.feature_cache=null"
            )
        return self

    @model_validator(mode="after")
    def _held_captions_stay(self) -> Config:
        if self.data.hold_captions and not (self.model.text.frozen and not self.data.word_drop):
            raise ValueError(
                "data.hold_captions is true, and the states of captions change while their encoder "
                f"trains, or words are dropped (model.text.frozen is {self.model.text.frozen}, "
                f"data.word_drop {self.data.word_drop:g}); set model.text.frozen=true "
                "data.word_drop=0, or data.hold_captions=false"
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

        A name without a folder or an ending, such as ``small``, is that of a recipe of the package.

        Raises:
            ConfigError: the file or a base is missing or is no YAML mapping, a base leads back to
                the file, or a key or value is wrong; the message names the file or override, the
                key, its value and the remedy.
        """
        path = find_recipe(path)
        raw = read_recipe(path)
        for override in overrides or []:
            apply_override(raw, override)
        return cls.parse(raw, origin=str(path))

    @classmethod
    def parse(cls, raw: dict[str, Any], origin: str = "config", *, stored: bool = False) -> Config:
        """Validate a nested mapping.

        Args:
            raw: sections of keys.
            origin: the name of the mapping in error messages.
            stored: whether a run wrote it, perhaps in an earlier release, which kept the keys of
                all parts in every section: those of parts that are not chosen are then left out.

        Raises:
            ConfigError: a key or value is wrong.
        """
        try:
            return cls.model_validate(raw, context={"stored": stored})
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

    def recorded(self) -> dict[str, Any]:
        """Return the resolved configuration as a run keeps it: without passwords in URLs."""
        content: dict[str, Any] = masked_values(self.model_dump(mode="json"))
        return content

    def to_yaml(self, *, recorded: bool = False) -> str:
        """Return the resolved configuration, one that ``load`` reads back as equal."""
        content = self.recorded() if recorded else self.model_dump(mode="json")
        return yaml.safe_dump(content, sort_keys=False)


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
    first = next((d for d in details if d["type"] in _UNKNOWN_KEY), details[0])
    dotted = ".".join(str(part) for part in first["loc"])
    if first["type"] in _UNKNOWN_KEY:
        return f"unknown key {shown(dotted)}; did you mean {nearest_key(dotted, known_keys())}?"
    if first["type"] == "missing":
        return f"{dotted} is missing; set it in the file or as {dotted}=VALUE"
    sections = {key.rpartition(".")[0] for key in known_keys()}
    return complaint(first, dotted, section=dotted in sections)


_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return the dotted keys of a section, those of every built-in part included."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        keys.append(prefix + name)
        choice = next((one for one in field.metadata if isinstance(one, Choice)), None)
        if choice is not None:
            keys += [f"{prefix}{name}.{key}" for key in choice.setting_names()]
        elif kind is ModelConfig:
            keys += [f"{prefix}{name}.{key}" for key in model_keys()]
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
    return keys

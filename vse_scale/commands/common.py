"""Parts of several commands: their common options, devices, models and outputs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from vse_scale.bounds import MOST_THREADS
from vse_scale.errors import ConfigError, OutputError
from vse_scale.files import whole_folder
from vse_scale.model import hub
from vse_scale.run.folder import model_folder, run_folder

if TYPE_CHECKING:
    import torch

    from vse_scale.data.staging import StagingOptions
    from vse_scale.retrieval.encoder import Encoder

Batch: TypeAlias = Annotated[int, typer.Option(min=1, help="items encoded at once")]
CacheDir: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="local copies of a remote dataset; default: in $TMPDIR"),
]
Threads: TypeAlias = Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="decoding threads")]

Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE", help="settings in place of the configuration's: optim.lr=1e-4"
    ),
]
Dim: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="cut embeddings to so many dimensions (objective.matryoshka)"),
]

Checkpoint: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="best|step-N|DIR", help="of the run in place of its best model"),
]


def chosen_model(model: Path | None, checkpoint: str | None) -> Path | None:
    """Return the folder of the model or checkpoint that was asked for.

    Args:
        model: a model's folder, or a run's, or the name of a model on the hub.
        checkpoint: "best", "step-N" of the run, or a checkpoint's folder; None: ``model``.

    Raises:
        OutputError: there is no such checkpoint; the message names those that there are.
    """
    if checkpoint is None:
        if model is not None and hub.is_hub_name(model):
            return hub.fetch(str(model))
        return model
    number = re.fullmatch(r"step-(\d+)", checkpoint)
    if checkpoint != "best" and number is None:
        if not Path(checkpoint).is_dir():
            raise OutputError(f"--checkpoint {checkpoint}: no such folder; give best or step-N too")
        return Path(checkpoint)
    if model is None:
        raise OutputError(f"--checkpoint {checkpoint} needs the folder of its run; give it too")
    if number is None:
        return model_folder(model)
    run = run_folder(model)
    there = {int(p.name[5:]): p for p in run.checkpoints_folder.glob("step-*")} if run else {}
    if (found := there.get(int(number[1]))) is None:
        steps = ", ".join(f"step-{step}" for step in sorted(there)) or "no other"
        raise OutputError(f"--checkpoint {checkpoint}: {model} has {steps}, and best; give one")
    return found


def best_device() -> torch.device:
    """Return this process's GPU where there is one, else the CPU."""
    from vse_scale.world.join import local_device

    return local_device()


def check_writable(option: str, path: Path | None) -> None:
    """Raise OutputError where ``path`` cannot be written, before anything is computed for it."""
    if path is not None and not path.parent.is_dir():
        raise OutputError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if path is not None and path.is_dir():
        raise OutputError(f"{option} {path}: is a folder; name a file")


def staged_in(cache_dir: Path | None) -> StagingOptions:
    """Return the options of the local copies of a remote dataset."""
    from vse_scale.data.staging import StagingOptions

    return StagingOptions(None if cache_dir is None else str(cache_dir), folder_name="--cache-dir")


@contextmanager
def new_folder(path: Path, option: str = "--out") -> Iterator[Path]:
    """Yield a folder to fill, which becomes ``path`` when the block ends well.

    Args:
        path: of the folder.
        option: that named it, for messages.

    Raises:
        OutputError: ``path`` exists and is not an empty folder, or cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{option} {path}: exists already; name a new folder, or remove it")
    try:
        with whole_folder(path) as partial:
            yield partial
    except OSError as error:
        raise OutputError(f"{option} {path}: cannot be written ({error.strerror})") from error


def weights_sha256(model: Path) -> str:
    """Return the digest of a model's weights, given its folder, a run's or a name of the hub."""
    from vse_scale.model.folder import weights_file

    with weights_file(model_folder(chosen_model(model, None) or model)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_encoder(model: Path, batch: int, threads: int, dim: int | None = None) -> Encoder:
    """Open a model, given its folder or a run's, with what it needs to embed.

    Raises:
        ConfigError: ``dim``, to which embeddings are cut, is more than they have.
    """
    from vse_scale.model.vse import VSEModel
    from vse_scale.retrieval.encoder import Encoder

    device = best_device()
    opened = VSEModel.from_pretrained(model).to(device)
    if dim is not None and dim > opened.config.embed_dim:
        raise ConfigError(
            f"--dim is {dim}, and the model's embeddings have {opened.config.embed_dim} "
            "dimensions; give fewer"
        )
    opened.output_dim = dim
    # None where there is none; a damaged one is an error that names its file.
    return Encoder(opened, opened.tokenizer, device, batch, threads)

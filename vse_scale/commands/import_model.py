"""``vse-scale import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vse_scale.commands.common import new_folder
from vse_scale.console import log
from vse_scale.errors import ModelError
from vse_shards.terminal import tell


def import_model(
    checkpoint: Annotated[Path, typer.Argument(help="a published VSE-infinity model_best.pth")],
    out: Annotated[Path, typer.Option(help="the model folder to write")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder of its tokenizer, or its vocabulary file")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="grid backbone; default: as the file says")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=16, help="image size in pixels; default: as the file says")
    ] = None,
) -> None:
    """Convert a published checkpoint to a model folder.

    Every tensor is used or listed.
    """
    log.info("importing %s", checkpoint)
    from vse_scale.inputs.tokens import CaptionTokenizer
    from vse_scale.interchange.card import FILE, Origin, model_card, text
    from vse_scale.interchange.published import import_published

    words = CaptionTokenizer.load(tokenizer) if tokenizer is not None else None
    pad_id = words.pad_id if words is not None else 0
    imported = import_published(checkpoint, backbone=backbone, size=size, pad_id=pad_id)
    if words is not None and words.vocab_size != imported.model.vocab_size:
        raise ModelError(
            f"--tokenizer {tokenizer}: has {words.vocab_size:,} entries, and the model knows "
            f"{imported.model.vocab_size:,} token ids; give the tokenizer that it was trained with"
        )
    with new_folder(out) as folder:
        imported.model.save_pretrained(folder, tokenizer=words)
        notes = "; ".join(f"{key} {text(value)}" for key, value in imported.notes.items())
        origin = Origin(
            f"Imported from a checkpoint of the published VSE-infinity code ({notes}).",
            imported.recipe,
            imported.sources,
        )
        card = model_card(imported.model, name=out.name, origin=origin)
        (folder / FILE).write_text(card, encoding="utf-8")
    used = len(imported.model.state_dict())
    tell(f"{out}: {used} tensors, {imported.model.config.image.describe()}")
    for reason, count in imported.left_out.items():
        tell(f"left out: {count} ({reason})")
    if words is None:
        tell("no tokenizer: encode_captions takes token ids; give --tokenizer DIR for text")

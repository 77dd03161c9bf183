"""``vse-scale export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vse_scale.commands.common import Checkpoint, chosen_model, new_folder
from vse_scale.console import log, size
from vse_scale.run.folder import RunRecords, model_folder, run_folder
from vse_shards.terminal import tell, tell_json

if TYPE_CHECKING:
    from vse_scale.model.vse import VSEModel


def export_model(
    model: Annotated[Path, typer.Option(help="a model folder, or a run's folder")],
    out: Annotated[Path, typer.Option(help="the folder to write")],
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="also write both encoders as ONNX, compared with it"),
    ] = False,
    license: Annotated[
        str | None,
        typer.Option("--license", help="SPDX identifier of the model's license, for its card"),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="also upload it to this repository of the hub"),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="a repository that --push makes is private")
    ] = False,
    checkpoint: Checkpoint = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Write a model to a folder that needs nothing else.

    The folder has its tokenizer and a model card too.
    """
    model = chosen_model(model, checkpoint) or model
    log.info("exporting %s", model)
    from vse_scale.interchange.card import FILE, model_card, origin_of_run
    from vse_scale.interchange.onnx import export_onnx
    from vse_scale.model.vse import VSEModel

    source = model_folder(model)
    opened = VSEModel.from_pretrained(source)
    words = opened.tokenizer
    trained_in = run_folder(model)
    if trained_in is not None:
        run = RunRecords.load(trained_in.path)
        origin = origin_of_run(run.config)
        # Of another checkpoint than the best, no validation is known.
        best = run.results.best if source == trained_in.model_folder else None
        card = model_card(opened, name=out.name, license=license, origin=origin, results=best)
    elif (source / FILE).is_file() and license is None:
        card = (source / FILE).read_text(encoding="utf-8")
    else:
        card = model_card(opened, name=out.name, license=license)
    if push is not None and _written_before(out, opened, card, onnx=onnx):
        log.info("%s holds this export already; pushing it", out)
    else:
        with new_folder(out) as folder:
            opened.save_pretrained(folder, tokenizer=words)
            (folder / FILE).write_text(card, encoding="utf-8")
            if onnx:
                export_onnx(opened, folder)
    written = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    if not as_json:
        _tell_written(out, written)
    address = None
    if push is not None:
        from vse_scale.model.hub import push as push_folder

        address = push_folder(out, push, private=private)
    if as_json:
        tell_json({"model": str(out), "files": written, "pushed": address}, indent=1)
    elif address is not None:
        tell(f"pushed: {address}")


def _tell_written(out: Path, files: dict[str, int]) -> None:
    """Print which files there are, given their bytes by name, and the way to use them."""
    tell(f"model: {out} ({len(files)} files, {size(sum(files.values()))}; README.md is its card)")
    if graphs := [name for name in files if name.endswith(".onnx")]:
        tell(f"ONNX: {' and '.join(graphs)}")
    tell(f"open it: VSEModel.from_pretrained({str(out)!r}), or --model {out} of a command")


def _written_before(out: Path, model: VSEModel, card: str, *, onnx: bool) -> bool:
    """Tell whether ``out`` is this very export, of an earlier call that could not push it."""
    import torch

    from vse_scale.interchange.card import FILE
    from vse_scale.model.folder import weights_file
    from vse_scale.model.weights import read_state_dict

    weights, described = weights_file(out), out / FILE
    if not weights.is_file() or not described.is_file() or (onnx and not any(out.glob("*.onnx"))):
        return False
    own, there = model.state_dict(), read_state_dict(weights)
    return (
        described.read_text(encoding="utf-8") == card
        and own.keys() == there.keys()
        and all(torch.equal(value.cpu(), there[name]) for name, value in own.items())
    )

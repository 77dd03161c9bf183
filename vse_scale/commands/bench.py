"""``vse-scale bench``."""

from __future__ import annotations

import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vse_scale.commands.common import best_device, check_writable
from vse_scale.console import heartbeat, log
from vse_scale.errors import ConfigError, OutputError
from vse_scale.run.extras import require
from vse_shards.terminal import tell_json, tell_page

if TYPE_CHECKING:
    from vse_scale.bench.job import Job
    from vse_scale.bench.rows import Row
    from vse_scale.config import Config


def bench(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STAGE|SECTION.KEY=VALUE",
            help="default: all stages that this machine can run",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="a run's configuration; default: a small model, or a GPU's")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="a dataset folder; default: synthetic photos, made for it")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="timed rounds")] = 5,
    out: Annotated[Path | None, typer.Option(metavar="CSV", help="append the results")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="draw them; ends in .svg or .png")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="a rehearsal: as little work as shows that it runs")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure this project and its peers on the same work.

    Stages: loader, decode, loss, kernels, step, train, eval, shards.
    """
    check_writable("--out", out)
    check_writable("--plot", plot)
    require("train", "vse-scale bench")
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise OutputError(f"--plot {plot}: ends in neither .svg nor .png; name such a file")
    from vse_scale.bench import table
    from vse_scale.bench.job import Job
    from vse_scale.bench.stages import choose

    given = arguments or []
    stages, left_out = choose([argument for argument in given if "=" not in argument])
    for line in left_out:
        log.info("left out: %s", line)
    # As Ctrl-C does, this ends the implementations and removes the scratch folder.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="vse-bench-") as scratch:
        overrides = [argument for argument in given if "=" in argument]
        resolved = _config(config, overrides, data, Path(scratch), small=small)
        job = Job(resolved, 1 if small else repeats, small, best_device(), Path(scratch))
        found = _measure(stages, job, out, quiet=as_json)
    if plot is not None:
        table.plot(found, plot)
    if as_json:
        tell_json({"small": small, "rows": [asdict(row) for row in found]}, indent=1)


def _measure(stages: list[str], job: Job, out: Path | None, *, quiet: bool) -> list[Row]:
    """Return the rows of all stages, after each case is printed and appended to ``out``."""
    from vse_scale.bench import rows, table
    from vse_scale.bench.stages import STAGES

    found: list[Row] = []
    for stage in stages:
        log.info("measuring %s", stage)
        for case in STAGES[stage].measure(job):
            found += case
            if out is not None:
                rows.append(out, case)
            if not quiet:
                tell_page(f"{table.text(case)}\n")
    return found


def _config(
    path: Path | None, overrides: list[str], data: Path | None, scratch: Path, *, small: bool
) -> Config:
    """Return the configuration to measure, given or default, on given or synthetic data."""
    from vse_scale.bench.defaults import default_config
    from vse_scale.bench.synthetic import make_dataset
    from vse_scale.config import Config
    from vse_scale.data.shards import ShardDataset

    if data is None:
        with heartbeat("making photos"):
            data = make_dataset(scratch / "data", images=24 if small else 512, side=640)
    ShardDataset(data, "train").check_holds("images")
    own = [f"data.path={data}", f"run.dir={scratch / 'run'}"]
    if path is not None:
        config = Config.load(path, [*overrides, *own])
    else:
        config = default_config(overrides + own, gpu=best_device().type == "cuda", small=small)
    image = config.model.image
    if image.takes != "images":
        raise ConfigError(
            f"model.image.backbone is {image.backbone}; the benchmark is of pixels, choose another "
            "backbone"
        )
    return config

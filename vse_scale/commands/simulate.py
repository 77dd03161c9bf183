"""``vse-scale simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vse_scale.commands.common import Overrides
from vse_scale.console import Progress
from vse_scale.errors import ConfigError
from vse_shards.terminal import tell_json, tell_page


def simulate(
    config: Annotated[Path, typer.Option(help="a run's configuration, such as a recipe")],
    nodes: Annotated[int, typer.Option(min=1, help="machines that share the run")],
    node_mb_s: Annotated[
        float,
        typer.Option(
            min=0.001, help="MB/s of shards into a node: its network, or its disk if less"
        ),
    ],
    step_ms: Annotated[
        float, typer.Option(min=0.001, help="a step that waits for nothing, as plan estimates it")
    ],
    overrides: Overrides = None,
    ranks_per_node: Annotated[int, typer.Option(min=1, help="ranks of a node")] = 8,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="a made dataset of as many shards, in place of data.path"),
    ] = None,
    shard_images: Annotated[int, typer.Option(min=1, help="images of a made shard")] = 10_000,
    shard_mb: Annotated[float, typer.Option(min=0.001, help="size of a made shard")] = 500.0,
    image_captions: Annotated[
        int, typer.Option(min=1, max=255, help="captions of a made shard's image")
    ] = 1,
    storage_mb_s: Annotated[
        float | None,
        typer.Option(min=0.001, help="MB/s of the storage to all nodes; default: never binds"),
    ] = None,
    request_ms: Annotated[
        float, typer.Option(min=0, help="until the first byte of a shard comes")
    ] = 50.0,
    steps: Annotated[int, typer.Option(min=1, help="to simulate, of each start")] = 1000,
    lose_at: Annotated[
        int | None,
        typer.Option(min=0, help="step after which a node and its disk are lost"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Simulate how the shards of a run reach many nodes.

    Prints stalls, traffic, and the effect of caches and of a lost node. Order and streams are
    those of training, staging follows its rules, and no data is read.
    """
    from vse_scale.planning.made_shards import ShardList
    from vse_scale.planning.simulate import Cluster
    from vse_scale.planning.simulated_page import simulate as run
    from vse_scale.planning.staged_nodes import Storage
    from vse_scale.training.setup import load_config

    checked = load_config(str(config), list(overrides or []), nodes * ranks_per_node)
    if shards is None:
        listed = ShardList.of(checked.data)
    elif checked.data.weights is not None or len(checked.data.folders) > 1:
        raise ConfigError(
            "--shards makes one dataset, and the configuration mixes several; leave it out, or set "
            "data.path=ONE data.weights=null"
        )
    else:
        listed = ShardList.made(shards, shard_images, image_captions, round(shard_mb * 1e6))
    storage = Storage(
        link=node_mb_s * 1e6,
        storage=float("inf") if storage_mb_s is None else storage_mb_s * 1e6,
        request=request_ms / 1e3,
        limit=checked.data.cache_gb * 1e9,
    )
    cluster = Cluster(nodes, ranks_per_node, storage, step_ms / 1e3)
    total = steps + (0 if lose_at is None else lose_at + 1)
    with Progress("simulating", total, unit="steps") as progress:
        found = run(checked, listed, cluster, steps, lose_at, progress.advance)
    tell_json(found.as_json(), indent=1) if as_json else tell_page(found.text())

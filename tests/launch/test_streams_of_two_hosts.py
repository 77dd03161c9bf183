"""Two hosts and one S3 bucket: the shards that a host fetches, and the seconds that they take."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from commandline import installed
from groups import Group
from hosts import Cable, Host, limit

from vse_scale.config import Config
from vse_scale.data.mixing import caption_texts
from vse_scale.data.producer import batches_apart
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.planning.made_shards import ShardList
from vse_scale.planning.simulate import Cluster, Simulation
from vse_scale.planning.staged_nodes import Storage
from vse_scale.run.journal import read_journal
from vse_scale.training.setup import make_plan
from vse_shards.build import BuildOptions, build
from vse_shards.demo import make_demo
from vse_shards.sources.jsonl import JsonlSource

pytestmark = pytest.mark.slow
pytest.importorskip("moto.server")

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests" / "small.yaml"
PORT = 5601
SHARDS = 16
CALIBRATION = {0, 1}  # each host reads the first two images, and fetches one shard ahead
TRAINING = """
base: {small}
data: {{path: "s3://bucket/set", streams: 2, shuffle_window: 4, cache_ahead: 1}}
objective: {{warmup_epochs: 0}}
model: {{text: {{tokenizer: {tokenizer}}}}}
train: {{epochs: 1, frozen_backbone_epochs: 0, calibration_images: 2}}
run: {{dir: {folder}}}
engine: {{timeout_seconds: 120}}
telemetry: {{prometheus_port: null, tensorboard: false}}
"""
SERVE = """
import sys, threading
from moto.server import ThreadedMotoServer
ThreadedMotoServer(ip_address=sys.argv[1], port=int(sys.argv[2])).start()
threading.Event().wait()
"""
UPLOAD = """
import sys, time, fsspec
for _ in range(600):  # until the server listens
    try:
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.mkdir("bucket")
        break
    except OSError:
        time.sleep(0.2)
files.put(sys.argv[1] + "/", "bucket/set", recursive=True)
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 16 shards of eight images to train on, and none to validate on."""
    folder = tmp_path_factory.mktemp("streams")
    make_demo(folder / "source", images=SHARDS * 10)
    rows = (folder / "source" / "captions.jsonl").read_text().splitlines()
    kept = [row for row in rows if '"train"' in row][: SHARDS * 8]
    (folder / "source" / "kept.jsonl").write_text("\n".join(kept) + "\n")
    source = JsonlSource(str(folder / "source" / "kept.jsonl"), str(folder / "source"))
    build(source, str(folder / "shards"), BuildOptions(shard_samples=8))
    return folder / "shards"


@contextmanager
def bucket_on(host: Host, shards: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Serve ``shards`` as s3://bucket/set; give the variables by which a host finds it.

    The server's requests are in ``server.log`` of ``folder``.
    """
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host.address}:{PORT}",
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    serve = [sys.executable, "-c", SERVE, host.address, str(PORT)]
    upload = [sys.executable, "-c", UPLOAD, str(shards)]
    with (
        within(host, variables, serve, folder / "server.log"),
        within(host, variables, upload, folder / "up.log") as uploading,
    ):
        assert uploading.wait(300) == 0, (folder / "up.log").read_text()[-4000:]
        yield variables


def configured(shards: Path, folder: Path) -> Path:
    """Write a configuration and the vocabulary that it names; return its file.

    A vocabulary that a run makes itself is made of all captions, for which one host reads all.
    """
    captions = caption_texts(ShardDataset(shards, "train"))
    CaptionTokenizer.train(captions, 120).save(folder / "bert")
    file = folder / "streams.yaml"
    file.write_text(TRAINING.format(small=SMALL, folder=folder / "run", tokenizer=folder / "bert"))
    return file


def within(host: Host, variables: dict[str, str], command: list[str], log: Path) -> Group:
    return host.start(["env", *(f"{k}={v}" for k, v in variables.items()), *command], log)


def test_each_host_fetches_its_own_shards_and_no_others(shards: Path, tmp_path: Path) -> None:
    config_file, requests = configured(shards, tmp_path), tmp_path / "server.log"
    dataset = ShardDataset(shards, "train")
    with (
        Cable() as hosts,
        ExitStack() as started,
        bucket_on(hosts[0], shards, tmp_path) as variables,
    ):
        logs = [tmp_path / f"host-{n}.log" for n in range(2)]
        training = [
            within(
                host,
                variables | {"TMPDIR": str(make(tmp_path / f"disk-{n}"))},
                [
                    str(installed("torchrun")), "--nnodes", "2", "--node-rank", str(n),
                    "--nproc-per-node", "1", "--master-addr", hosts[0].address,
                    "--master-port", "29521", "-m", "vse_scale.training",
                    "--config", str(config_file),
                ],
                logs[n],
            )
            for n, host in enumerate(hosts)
        ]  # fmt: skip
        for process in training:
            started.enter_context(process)
        codes = [process.wait(600) for process in training]
        assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)

    config = Config.load(config_file)
    assert len(dataset.shard_sizes) == SHARDS
    plan = make_plan(config, dataset)
    # The server's log has colours.
    asked = re.compile(r"^(\S+) - - .*GET /bucket/set/train-(\d+)\.tar ", re.MULTILINE)
    fetched = asked.findall(requests.read_text())
    epoch = [(0, step) for step in range(plan.steps_per_epoch)]
    # The loader is ahead of the last step.
    after = [(1, step) for step in range(batches_apart(config.data.prefetch))]
    local = config.data.model_copy(update={"path": shards.as_uri()})
    simulation = Simulation(config, ShardList.of(local), Cluster(2, 1, Storage(1e9), 0.1))
    simulated = simulation.run(0, plan.steps_per_epoch)
    for rank, host in enumerate(hosts):
        own, more = (
            {
                shard
                for position in positions
                for some in plan.shards(*position, config.data.cache_ahead, rank=rank, ranks=2)
                for shard in some
            }
            for positions in (epoch, after)
        )
        assert 0 < len(own) <= SHARDS // 2 + 1  # the spans of two streams may share one shard
        found = [int(number) for address, number in fetched if address == host.address]
        assert own | CALIBRATION <= set(found) <= own | CALIBRATION | more
        assert len(found) == len(set(found))
        # Of what comes after the epoch a host has more or less begun to fetch.
        aside = CALIBRATION | (more - own)
        assert set(simulated.counted[rank].fetched) - aside == set(found) - aside
    steps = list(read_journal(tmp_path / "run" / "metrics.jsonl"))
    assert sum(step.get("staging", {}).get("fetched_shards", 0) for step in steps) > 0
    assert "staging: " in logs[0].read_text()


def test_shards_take_the_simulated_seconds_over_a_slow_link(shards: Path, tmp_path: Path) -> None:
    """A host of one rank, that the storage reaches at a stated rate."""
    config_file = configured(shards, tmp_path)
    config = Config.load(config_file)
    listed = ShardList.of(config.data.model_copy(update={"path": shards.as_uri()}))
    rate = sum(listed.shard_bytes) / 20  # bytes a second: an epoch takes twenty
    with Cable() as hosts, bucket_on(hosts[0], shards, tmp_path) as variables:
        try:
            limit(hosts[0], rate)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs tc's token bucket, which is not there: {error.stderr}")
        log = tmp_path / "host.log"
        train = [str(installed("vse-scale")), "train", "--config", str(config_file)]
        variables |= {"TMPDIR": str(make(tmp_path / "disk"))}
        with within(hosts[1], variables, train, log) as training:
            assert training.wait(600) == 0, log.read_text()[-3000:]
    steps = list(read_journal(tmp_path / "run" / "metrics.jsonl"))
    waits = [step["seconds"]["data"] for step in steps]
    busy = sum(step["seconds"]["step"] for step in steps) - sum(waits)
    cluster = Cluster(1, 1, Storage(rate), busy / len(steps))
    simulated = Simulation(config, listed, cluster).run(0, len(steps)).stalls
    # Two shards are here before: BatchNorm's images were read of the first. Headers take a part of
    # the link, the server some milliseconds a shard.
    assert sum(waits) == pytest.approx(sum(simulated), rel=0.3)
    assert sum(simulated) > 10


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder

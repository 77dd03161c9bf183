"""Two hosts through DeepSpeed's launcher, without ssh; one of them is cut off and comes back."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from commandline import installed
from groups import Group
from hosts import Cable, Host
from warm import vse_scale

from vse_scale.run.journal import read_journal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TIMEOUT = 20  # engine.timeout_seconds: a silent peer is noticed within it
# For two ranks to leave and the launcher to see it, on a machine that has more to do.
GRACE = 90
STEPS = 60  # 10 an epoch

SMALL = ROOT / "tests" / "small.yaml"
TRAINING = """
base: {small}
data: {{path: {scenes}}}
model: {{dropout: 0.1}}
train: {{epochs: 6}}
eval: {{every_epochs: 6}}
engine: {{timeout_seconds: {timeout}}}
run: {{dir: {folder}/unused, checkpoint_epochs: 1}}
telemetry: {{prometheus_port: null, tensorboard: false}}
"""


def launch(
    hosts: tuple[Host, Host], config: Path, folder: Path, port: int, logs: tuple[Path, Path]
) -> list[Group]:
    hostfile = folder.parent / "hostfile"
    hostfile.write_text("".join(f"{host.address} slots=2\n" for host in hosts))
    return [
        host.start(
            [
                str(installed("deepspeed")), "--quiet",
                *("--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(number)),
                *("--master_addr", hosts[0].address, "--master_port", str(port)),
                *(str(ROOT / "launch" / "train.py"), "--config", str(config), f"run.dir={folder}"),
            ],
            logs[number],
        )
        for number, host in enumerate(hosts)
    ]  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_journal(folder / "metrics.jsonl")]


@pytest.mark.timeout(1800)
def test_two_hosts_train_as_one_does_and_go_on_after_one_was_cut_off(
    scenes: Path, tmp_path: Path
) -> None:
    config = tmp_path / "hosts.yaml"
    config.write_text(TRAINING.format(small=SMALL, scenes=scenes, folder=tmp_path, timeout=TIMEOUT))
    folder, logs = tmp_path / "two", (tmp_path / "first.log", tmp_path / "second.log")
    with Cable() as hosts, ExitStack() as started:
        processes = launch(hosts, config, folder, 29_511, logs)
        for process in processes:
            started.enter_context(process)
        deadline = time.monotonic() + 600
        while not list((folder / "checkpoints").glob("step-*")):
            assert time.monotonic() < deadline, logs[0].read_text()[-4000:]
            assert all(p.code() is None for p in processes), logs[0].read_text()[-4000:]
            time.sleep(0.1)

        hosts[1].link("down")
        cut = time.monotonic()
        hosts[1].kill()
        processes[1].wait(60)
        code = processes[0].wait(TIMEOUT + GRACE)
        noticed = time.monotonic() - cut
        assert code not in (0, 2, 75), logs[0].read_text()[-4000:]
        reached = int(max((folder / "checkpoints").glob("step-*")).name.removeprefix("step-"))
        print(f"noticed after {noticed:.1f} s, exit code {code}, checkpoint {reached}")
        assert reached < STEPS  # else the run was over before it was cut

        hosts[1].link("up")
        processes = launch(hosts, config, folder, 29_512, logs)
        for process in processes:
            started.enter_context(process)
        codes = [process.wait(600) for process in processes]
        assert codes == [0, 0], logs[0].read_text()[-4000:]
    assert "resumed from" in logs[0].read_text()

    alone = vse_scale(
        "train", "--ranks", "4", "--config", config, f"run.dir={tmp_path / 'one'}", timeout=600
    )
    assert alone.returncode == 0, alone.stderr[-4000:]
    assert len(losses(folder)) == STEPS
    assert losses(folder) == losses(tmp_path / "one")
    recalls = [
        json.loads((tmp_path / w / "results.json").read_text())["i2t"] for w in ("one", "two")
    ]
    assert recalls[0] == recalls[1]

"""Another user of the machine reads and writes nothing of ours beyond its modes.

The other user is a shell of ``nobody``, started by root; elsewhere these tests skip.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from vse_scale import cli
from vse_scale.config import Config, ModelConfig
from vse_scale.data.cache_files import (
    compiled_folder,
    default_folder,
    make_own,
    own_compiled_code,
)
from vse_scale.data.staging import StagingCache
from vse_scale.errors import DatasetError
from vse_scale.files import whole_folder, write_json, write_text
from vse_scale.model.vse import VSEModel
from vse_scale.run.lock import RunLock
from vse_scale.training.contract import FAILURES
from vse_scale.training.supervisor import Supervisor
from vse_shards.build import BuildOptions, build
from vse_shards.errors import OutputError as ShardsOutputError
from vse_shards.manifest import Manifest
from vse_shards.sources.jsonl import JsonlSource

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to act as another user")


@pytest.fixture
def commons(monkeypatch):
    """A folder like /tmp, in which every user may make files."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=[0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def other(script: str, *paths: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell as another user; the paths are $1, $2 and so on."""
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", *map(str, paths)],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True,
        timeout=60,
    )  # fmt: skip


def dataset_of_ours(folder: Path) -> JsonlSource:
    """Make a dataset of one row; return its source."""
    (folder / "in").mkdir()
    rows = [{"image": "x.png", "captions": ["a cat"]}]
    (folder / "in" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(folder / "in" / "x.png")
    source = JsonlSource(str(folder / "in" / "rows.jsonl"), str(folder / "in"))
    build(source, str(folder / "data"), BuildOptions(workers=1))
    return source


def things_of_ours(folder: Path) -> list[Path]:
    """Make a run's folder with its lock held, records and a model, and a dataset."""
    dataset_of_ours(folder)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 64}
    described = {"embed_dim": 24, "image": {"backbone": "tiny", "size": 32}}
    config = ModelConfig.model_validate(described | {"text": {"architecture": text}})
    torch.manual_seed(0)
    model = VSEModel(config, 60, 0)
    run = folder / "run"
    with RunLock(run):
        write_json(run / "results.json", {"steps": 1})
        with whole_folder(run / "model") as partial:
            model.save_pretrained(partial)
    return [path for path in folder.rglob("*") if path.is_relative_to(run) or "data" in path.parts]


def test_modes_are_as_the_umask_has_them(commons, umask):
    found = things_of_ours(commons)
    wrong = {
        str(path.relative_to(commons)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in found
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}
    for path in found:
        readable = other('cat "$1" || ls "$1"', path).returncode == 0
        assert readable == (umask == 0o022), path
        assert other('echo x >> "$1" || touch "$1/x"', path).returncode, path
        assert other('mv "$1" "$1.moved"', path).returncode, path


def test_a_link_in_a_predictable_place_is_not_followed(commons):
    """As in tarfile's and tempnam's reports of old (CWE-377): the name is guessed, and taken."""
    secret = commons / "secret"
    secret.mkdir(mode=0o700)
    (secret / "kept").write_text("as it was")
    shared = commons / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert other('ln -s "$1" "$2"', secret / "kept", shared / ".page.html.partial").returncode == 0
    assert other('ln -s "$1" "$2"', secret, shared / ".model.partial").returncode == 0
    write_text(shared / "page.html", "new")
    with pytest.raises(OSError, match="File exists"), whole_folder(shared / "model") as partial:
        (partial / "x").touch()
    assert (secret / "kept").read_text() == "as it was"
    assert [one.name for one in secret.iterdir()] == ["kept"]
    assert (shared / "page.html").read_text() == "new"
    assert not (shared / "page.html").is_symlink()


@pytest.mark.parametrize("plant", ['mkdir "$1"', 'ln -s /etc "$1"', 'touch "$1"'])
def test_a_cache_that_another_user_made_is_refused(commons, plant):
    assert other(plant, default_folder()).returncode == 0
    with pytest.raises(DatasetError, match="cannot hold staged shards"):
        make_own(default_folder(), "data.cache_dir")


@pytest.mark.parametrize("before", [None, "torchinductor_root", "mine"])
def test_compiled_code_lies_where_no_other_user_can_put_any(commons, monkeypatch, before):
    """As NVIDIA/cuda-python#2399 and triton-lang/triton#518 ask of theirs: such a cache is code."""
    named = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv(named, "")
    monkeypatch.delenv(named)
    if before is not None:
        monkeypatch.setenv(named, str(commons / before))
    own_compiled_code()
    assert not torch._inductor.config.cpp_cache_precompile_headers
    found = Path(os.environ[named])
    if before == "mine":
        assert found == commons / "mine"
        return
    assert found == compiled_folder()
    for script in ('ls "$1"', 'touch "$1/x.py"', 'mv "$1" "$1.x"'):
        assert other(script, found).returncode
    found.rmdir()
    monkeypatch.delenv(named)
    assert other('mkdir "$1"', found).returncode == 0
    with pytest.raises(
        DatasetError, match=f"cannot hold compiled code: .* set {named} to a folder"
    ):
        own_compiled_code()


@pytest.mark.parametrize("place", ["default", "named", "made by its owner"])
def test_copies_of_shards_are_closed_to_others(commons, place):
    """After vllm-project/vllm#2179 and systemd/systemd#30760: locks that all can open, or make."""
    dataset_of_ours(commons)
    folder = default_folder() if place == "default" else commons / "cache"
    if place == "made by its owner":
        folder.mkdir(0o755)
    cache = StagingCache((commons / "data").as_uri(), folder, 10**9)
    (shard,) = Manifest.load(commons / "data").splits["train"].shards
    cache.prepare([shard])
    cache.fetch(shard)
    cache.index(shard)
    inside = [folder / path.name for path in folder.iterdir()]
    assert {path.suffix for path in inside} == {".tar", ".idx", ".lock"}
    for path in inside:
        for script in ('cat "$1"', 'echo x >> "$1"', 'mv "$1" "$1.x"', 'flock -n "$1" true'):
            assert other(script, path).returncode, (script, path)
    assert other('touch "$1/x"', folder).returncode
    if place != "made by its owner":
        assert other('ls "$1"', folder).returncode
        assert other('flock -n "$1" true', folder).returncode
    cache.close()


# Prints the files and folders that the commands make directly in TMPDIR.
MADE = """
import os, sys, tempfile
made, common = set(), tempfile.gettempdir()
def see(event, arguments):
    flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
    if event in ("os.mkdir", "os.symlink", "os.rename") or flags & (os.O_CREAT | os.O_WRONLY):
        for path in arguments[:2]:
            if isinstance(path, str) and os.path.dirname(path) == common:
                made.add(os.path.basename(path))
sys.addaudithook(see)
from vse_shards.cli import main
folder = sys.argv[1]
rows = ["--source", "jsonl", "--input", "in/rows.jsonl", "--workers", "1"]
for arguments in (
    ["build", *rows, "--out", f"{folder}/one"], ["build", *rows, "--out", "memory://one"],
    ["build", *rows, "--out", f"{folder}/none", "--dry-run"],
    ["append", f"{folder}/one", *rows], ["verify", f"{folder}/one", "--deep"],
    ["plan", f"{folder}/two", *rows], ["make", f"{folder}/two", "--workers", "1"],
    ["seal", f"{folder}/two"], ["merge", f"{folder}/one", f"{folder}/two", "--out",
    f"{folder}/both", "--prefix-ids"], ["preview", f"{folder}/one", "--out", f"{folder}/page.html"],
):
    sys.argv = ["vse-shards", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, arguments
print(*sorted(made), file=sys.__stdout__)
"""


@pytest.mark.slow
def test_no_name_in_the_common_folder_can_be_guessed(commons):
    """After backintime's bit-team/backintime#1676 and timbertson/runix#2."""
    dataset_of_ours(commons)
    found = []
    for name in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-c", MADE, commons / name], cwd=commons, capture_output=True,
            env={**os.environ, "TMPDIR": str(commons)}, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(set(done.stdout.splitlines()[-1].split()) - {name})
    assert all(len(names) > 3 for names in found)
    assert not found[0] & found[1]
    left = {path.name for path in commons.iterdir()}
    assert left == {"in", "data", "first", "second"}, "nothing is left of an ordinary end"


def test_who_holds_the_lock_of_a_folder_ends_a_build_in_one_line(commons):
    """Who may read a folder may lock it: the kernel's flock asks for no more."""
    source = dataset_of_ours(commons)
    before = {path: path.read_bytes() for path in (commons / "data").iterdir()}
    holder = subprocess.Popen(
        ["flock", commons / "data", "sh", "-c", "echo; sleep 60"],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(ShardsOutputError, match="another build is running in this folder"):
            build(source, str(commons / "data"), BuildOptions(workers=1))
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()
    assert {path: path.read_bytes() for path in (commons / "data").iterdir()} == before
    build(source, str(commons / "data"), BuildOptions(workers=1))


def test_what_a_supervisor_hears_of_its_ranks_is_its_own(commons, monkeypatch):
    """A note that another user leaves would end the run, or start it again."""
    seen = []

    def look(watched: Supervisor) -> int:
        folder = Path(watched._environment[FAILURES])
        seen.append(folder)
        for script in ('ls "$1"', 'touch "$1/1.refused"', 'ln -s /etc/passwd "$1/1.json"'):
            assert other(script, folder).returncode
        return 0

    monkeypatch.setattr(Supervisor, "_launch", look)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    config = Config.parse({"data": {"path": "none"}, "run": {"dir": str(commons / "run")}})
    assert Supervisor(config, [], ranks=1, max_restarts=0).run() == 0
    assert seen[0].parent == commons
    assert [path.name for path in commons.iterdir()] == ["run"]
    for name in ("lock", "metrics.jsonl", "evaluations.jsonl"):
        (commons / "run" / name).touch()
        assert other('echo x >> "$1"', commons / "run" / name).returncode
        assert other('rm -f "$1"', commons / "run" / name).returncode


def test_modules_that_another_user_left_in_the_current_folder_do_not_run(commons, monkeypatch):
    """python/cpython#157916: ``python -c``, and so each spawned worker, looks for modules there."""
    dataset_of_ours(commons)
    rows = [{"image": "x.png", "image_id": n, "captions": [f"words {n}"]} for n in range(4)]
    (commons / "in" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("multiprocessing", "pickle", "re", "torch", "hjson"):
        planted = "import os; os.write(2, b'planted'); os._exit(9)"
        assert other(f'echo "{planted}" > "$1"', commons / f"{name}.py").returncode == 0
    done = subprocess.run(
        [
            Path(sys.executable).with_name("vse-shards"), "build", "--source", "jsonl", "--input",
            "in/rows.jsonl", "--out", "new", "--workers", "2", "--shard-samples", "1",
        ],
        cwd=commons, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 shards with 2 workers" in done.stderr
    assert "planted" not in done.stderr

    seen = []
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr(cli, "app", lambda **_: seen.append(os.environ.get("PYTHONSAFEPATH")))
    with pytest.raises(SystemExit):
        cli.main()
    assert seen == ["1"], "so are all processes that vse-scale starts"
    assert "PYTHONSAFEPATH" not in os.environ

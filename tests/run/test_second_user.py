"""Another user of the machine reads and writes nothing of ours beyond its modes.

The other user is a shell of ``nobody``, started by root; elsewhere these tests skip.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from vse_scale.config import ModelConfig
from vse_scale.data.cache_files import default_folder, make_own
from vse_scale.errors import DatasetError
from vse_scale.files import whole_folder, write_json, write_text
from vse_scale.model.vse import VSEModel
from vse_scale.run.lock import RunLock
from vse_shards.build import BuildOptions, build
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


def things_of_ours(folder: Path) -> list[Path]:
    """Make a run's folder with its lock held, records and a model, and a dataset."""
    (folder / "in").mkdir()
    rows = [{"image": "x.png", "captions": ["a cat"]}]
    (folder / "in" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(folder / "in" / "x.png")
    source = JsonlSource(str(folder / "in" / "rows.jsonl"), str(folder / "in"))
    build(source, str(folder / "data"), BuildOptions(workers=1))
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


def test_a_cache_of_ours_is_closed_to_others(commons):
    make_own(default_folder(), "data.cache_dir")
    write_text(default_folder() / "shard.tar", "bytes")
    for script in ('ls "$1"', 'cat "$1/shard.tar"', 'touch "$1/x"', 'mv "$1" "$1.x"'):
        assert other(script, default_folder()).returncode

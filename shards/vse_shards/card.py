"""Dataset card: the ``README.md`` by which Hugging Face's ``datasets`` reads a dataset's shards."""

from __future__ import annotations

import re

from vse_shards.manifest import Manifest
from vse_shards.output import OutputFolder
from vse_shards.progress import say

CARD_NAME = "README.md"
_MARK = "<!-- vse-shards writes this file anew; take this line out to keep a text of your own. -->"


def card_of(manifest: Manifest) -> str:
    """Return the text of a dataset's card.

    Without it ``datasets`` takes the records of the shards, which are JSON, for the data.
    """
    splits = sorted(manifest.splits)  # as the manifest has them
    names = _split_names(splits)
    files = "".join(
        f"  - split: {names[split]}\n    path: {split}-[0-9][0-9][0-9][0-9][0-9][0-9].tar\n"
        for split in splits
    )
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n{_MARK}\n\n"
        "Images with captions in WebDataset shards, built by `vse-shards`; `manifest.json` has\n"
        "their digests. `datasets.load_dataset(FOLDER)` gives `jpg` and `json` of each image; its\n"
        "captions are `json.captions`.\n"
    )


def write_card(folder: OutputFolder, manifest: Manifest) -> None:
    """Write a dataset's card, unless its owner has put a text in its place.

    Raises:
        OutputError: it cannot be written.
    """
    found = folder.read(CARD_NAME)
    if not is_own(found):
        say(f"{folder.path}/{CARD_NAME} is not of vse-shards, and stays; see to its configs:")
    elif found != card_of(manifest).encode():
        folder.write(CARD_NAME, card_of(manifest).encode())


def is_own(text: bytes | None) -> bool:
    """Return whether a card may be written over: there is none, or it is of this program."""
    return text is None or _MARK.encode() in text


def card_problem(text: bytes | None, manifest: Manifest) -> str:
    """Return in which way a card of this program is not the dataset's, "" if it is."""
    # Datasets of earlier versions have none.
    if text is None or not is_own(text) or text == card_of(manifest).encode():
        return ""
    return "is not the card of this dataset: run the same vse-shards build again, or remove it"


def _split_names(splits: list[str]) -> dict[str, str]:
    """Return a name for each split that ``datasets`` takes: of letters, digits and underscores."""
    names: dict[str, str] = {}
    for split in splits:
        name = re.sub(r"\W", "_", split)
        while name in names.values():
            name += "_"
        names[split] = name
    return names

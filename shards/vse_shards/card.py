"""Dataset card: the ``README.md`` by which Hugging Face's ``datasets`` reads a dataset's shards."""

from __future__ import annotations

import json
import re

from vse_shards.manifest import Manifest, Split
from vse_shards.notes import shown
from vse_shards.output import OutputFolder
from vse_shards.progress import say
from vse_shards.yaml_text import parse_yaml

CARD_NAME = "README.md"
_MARK = "<!-- vse-shards writes this file anew; take this line out to keep a text of your own. -->"


def card_of(manifest: Manifest) -> str:
    """Return the text of a dataset's card.

    Without it ``datasets`` takes the records of the shards, which are JSON, for the data.
    """
    splits = sorted(manifest.splits)  # as the manifest has them
    names = _split_names(splits)
    files = "".join(
        f"  - split: {_yaml_text(names[split])}\n"
        f"    path:{_patterns(split, manifest.splits[split])}\n"
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
        say(staying(folder.path, manifest))
    elif found != card_of(manifest).encode():
        folder.write(CARD_NAME, card_of(manifest).encode())


def is_own(text: bytes | None) -> bool:
    """Return whether a card may be written over: there is none, or it is of this program."""
    return text is None or _MARK.encode() in text


def staying(folder: str, manifest: Manifest) -> str:
    """Return a line about a card that is its owner's."""
    names = ", ".join(_split_names(sorted(manifest.splits)).values())
    return (
        f"{folder}/{CARD_NAME} is not of vse-shards, and stays; datasets.load_dataset reads the "
        f"splits that `configs:` in it lists: it should list {shown(names)}"
    )


def card_problem(text: bytes | None, manifest: Manifest) -> str:
    """Return in which way a card of this program is not the dataset's, "" if it is."""
    # Datasets of earlier versions have none.
    if text is None or not is_own(text) or text == card_of(manifest).encode():
        return ""
    return (
        "is not the card of this dataset: run the last vse-shards command that wrote there (build, "
        "append, merge) again, or remove it"
    )


def _yaml_text(name: str) -> str:
    """Return a name as YAML reads it as a text: 2014 and no are quoted."""
    try:
        plain = parse_yaml(name) == name
    except ValueError:  # such as of 0x_
        plain = False
    return name if plain else json.dumps(name)


def _patterns(name: str, split: Split) -> str:
    """Return the pattern of a split's tars; more than one where there are a million and more."""
    last = split.shards[-1].stem.removeprefix(f"{name}-") if split.shards else ""
    digits = len(last) if last.isdecimal() and len(last) < 20 else 6
    # A star would also match the shards of a split whose name goes on with a number.
    patterns = [f"{name}-{'[0-9]' * count}.tar" for count in range(6, max(6, digits) + 1)]
    return f" {patterns[0]}" if len(patterns) == 1 else "".join(f"\n    - {p}" for p in patterns)


def _split_names(splits: list[str]) -> dict[str, str]:
    """Return a name for each split that ``datasets`` takes: of letters, digits and underscores."""
    names: dict[str, str] = {}
    for split in splits:
        name = re.sub(r"\W", "_", split)
        while name in names.values():
            name += "_"
        names[split] = name
    return names

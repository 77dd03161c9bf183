"""Claim of an output folder by a build, and removal of what a build before it left."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection
from typing import Any

from vse_shards.card import CARD_NAME, is_own
from vse_shards.columns import COLUMN_FILE
from vse_shards.errors import OutputError
from vse_shards.json_text import parse_json
from vse_shards.manifest import FILE_NAME
from vse_shards.notes import shown
from vse_shards.output import PLAN_NAME, OutputFolder
from vse_shards.plan_folder import remove_plan
from vse_shards.progress import say

_SHARD_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*-\d{6,}\.(tar|idx|idx\.npy|json)")
_OURS = re.compile(
    rf"{_SHARD_FILE.pattern}|{COLUMN_FILE.pattern}|manifest\.json|rejects\.jsonl|duplicates\.jsonl|\.build\.json|\.plan"
)


def refuse_foreign(folder: OutputFolder) -> None:
    """Refuse a folder that contains files of anything but a dataset.

    Raises:
        OutputError: it contains such a file.
    """
    names = folder.names()
    foreign = [name for name in names if not _OURS.fullmatch(name) and name != CARD_NAME]
    # Beside a manifest or a plan it is the owner's text about the dataset.
    dataset = FILE_NAME in names or PLAN_NAME in names
    if CARD_NAME in names and not dataset and not is_own(folder.read(CARD_NAME)):
        foreign.append(CARD_NAME)
    if foreign:
        raise OutputError(
            f"{folder.path}: contains other files ({shown(foreign[0])}); choose an empty or new "
            "folder"
        )


def claim(folder: OutputFolder, recorded: dict[str, Any], overwrite: bool, owner: str = "") -> None:
    """Claim the folder for this build, unless it contains another dataset.

    A plan without a manifest is no dataset: the build that wrote it failed or was stopped. Its
    shards are kept where they fit.

    Args:
        folder: folder of the dataset.
        recorded: sections ``build`` and ``source`` of its manifest.
        overwrite: remove another dataset.
        owner: name of a plan for several machines; "" is a build by this one.

    Raises:
        OutputError: the folder's dataset was built from other rows, or with other options.
    """
    sealed = folder.read(FILE_NAME)
    if overwrite and sealed is not None:
        say(
            f"{folder.path}: the dataset there is removed before the new one is built, as no "
            "other folder can take its name"
        )
    elif not overwrite:
        _check_other(folder, sealed, recorded, planned=bool(owner))
    # Before any shard: an interrupted build must not resume with other options.
    if overwrite or owner or sealed is None:
        owner = owner or (uuid.uuid4().hex if folder.remote else "")
        plan = {**recorded, "owner": owner} if owner else recorded
        folder.write(PLAN_NAME, json.dumps(plan, sort_keys=True).encode())
        folder.owner = owner
    if overwrite:  # after the plan, by which the same command goes on if it ends here
        _clear(folder)


def _check_other(
    folder: OutputFolder, sealed: bytes | None, recorded: dict[str, Any], *, planned: bool
) -> None:
    """Refuse a folder that contains another dataset, and say that a build there is replaced."""
    if difference := _difference(sealed, recorded):
        last = "remove that dataset" if planned else "replace it with --overwrite"
        raise OutputError(
            f"{folder.path}: contains a dataset of another build ({difference}); add new rows to "
            f"it with vse-shards append, choose another folder, or {last}"
        )
    if sealed is None and (unfinished := _difference(folder.read(PLAN_NAME), recorded)):
        say(f"replacing an unfinished build ({unfinished}); shards that fit are kept")


def _clear(folder: OutputFolder) -> None:
    """Remove a dataset, its manifest first, but neither the plan nor the text of its owner."""
    remove_plan(folder)
    for name in sorted(folder.names(), key=lambda name: name != FILE_NAME):
        if name == PLAN_NAME or (name == CARD_NAME and not is_own(folder.read(name))):
            continue
        folder.remove(name)


def remove_strays(folder: OutputFolder, kept: Collection[str]) -> None:
    """Remove the shards of earlier plans, with their indices and records.

    Args:
        folder: folder of the dataset.
        kept: names of its files.
    """
    for name in folder.names():
        if _SHARD_FILE.fullmatch(name) and name not in kept:
            folder.remove(name)


def _difference(earlier: bytes | None, recorded: dict[str, Any]) -> str:
    """Return the first difference from an earlier build in the folder, "" if there is none."""
    if earlier is None:
        return ""
    try:
        content = parse_json(earlier)
        for section, values in recorded.items():
            for key in {**values, **content[section]}:
                was, now = content[section].get(key), values.get(key)
                if was != now and key == "rows_sha256":
                    return "rows of the source differ"
                if was != now:
                    return f"{section} {key} was {shown(str(was))}, now {shown(str(now))}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return ""

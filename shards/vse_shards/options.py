"""Options of a build, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vse_shards.carve import Carving
from vse_shards.filling import REPEATED
from vse_shards.images import ImageOptions
from vse_shards.manifest import Manifest
from vse_shards.sources.base import INCOMPLETE
from vse_shards.threshold import RejectLimit


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        image: conversion of images.
        shard_samples: rows per shard; rejected rows leave it smaller.
        seed: seed of the shuffle.
        splits: new name of each selected split of the source; None selects all, under their names.
        carvings: splits to carve out of ``train``.
        prefix_ids: put the source's file and folder before each id.
        limit: number of rows to read; None reads all.
        workers: number of processes.
        max_rejects: rejected rows that are accepted.
        allow_missing: reject rows whose image does not exist, instead of refusing to build.
        allow_outside: read images outside the folder of the images, if a row names them.
        allow_leaks: build even if an image is in two splits.
        overwrite: replace a dataset that was built from other rows or with other options.
    """

    image: ImageOptions = field(default_factory=ImageOptions)
    shard_samples: int = 1000
    seed: int = 0
    splits: dict[str, str] | None = None
    carvings: tuple[Carving, ...] = ()
    prefix_ids: bool = False
    limit: int | None = None
    workers: int = 1
    max_rejects: RejectLimit = field(default_factory=RejectLimit)
    allow_missing: bool = False
    allow_leaks: bool = False
    allow_outside: bool = False
    overwrite: bool = False

    def recorded(self) -> dict[str, Any]:
        """Return the options that determine the files, as the manifest lists them."""
        content = {
            **self.image.recorded(),
            "shard_samples": self.shard_samples,
            "seed": self.seed,
            "splits": self.splits,
        }
        # Absent unless used: manifests of other builds stay as they were.
        if self.carvings:
            content["carve"] = [[carving.name, carving.percent] for carving in self.carvings]
        if self.prefix_ids:
            content["prefix_ids"] = True
        return content

    def accepted(self) -> tuple[str, ...]:
        """Return the reasons of rejects that are no loss, or that the user has accepted."""
        missing = ("missing image", INCOMPLETE) if self.allow_missing else ()
        return (REPEATED, *missing)


@dataclass(frozen=True)
class Summary:
    """Result of a build: the manifest, and counts of everything stored and rejected.

    Attributes:
        manifest: manifest of the dataset.
        images: number of images stored.
        pairs: number of captions stored.
        bytes: size of all tars.
        untouched: number of images stored byte for byte.
        changes: number of images by what was cut, mended or assumed.
        rejects: rejected rows by reason.
        duplicates: number of sets of equal images.
        seconds: time for the shards.
        built: number of shards written; the others were finished before.
        changed: whether the folder held another dataset, or none, before.
        notes: lines about the source that its owner must know.
    """

    manifest: Manifest
    images: int
    pairs: int
    bytes: int
    untouched: int
    changes: dict[str, int]
    rejects: dict[str, int]
    duplicates: int
    seconds: float
    built: int = 0
    changed: bool = True
    notes: tuple[str, ...] = ()

"""Recalls of a whole split, or their mean over its folds, as COCO and Flickr30K are published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vse_scale.errors import ConfigError, DatasetError
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.gallery import Gallery
from vse_scale.retrieval.metrics import DIRECTIONS, METRICS, Recalls, percentages
from vse_scale.retrieval.protocols.base import RankingProtocol
from vse_scale.retrieval.ranks import recall_at_k
from vse_scale.retrieval.similarities import Similarities
from vse_scale.world.processes import ALONE, Processes

_WIDTH = {"percent": 8, "rank": 9}  # of a column, by the unit of its figures


@dataclass(frozen=True)
class Evaluation:
    """Recalls under a protocol; of several folds, their mean, and each fold's own beside it."""

    protocol: str
    images: int
    captions: int
    recalls: Recalls
    folds: tuple[Recalls, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return the figures for JSON: the recalls' own keys, what was ranked, and the folds."""
        result = {
            **self.recalls.to_dict(),
            "protocol": self.protocol,
            "images": self.images,
            "captions": self.captions,
        }
        if self.folds:
            result["folds"] = [fold.to_dict() for fold in self.folds]
        return result

    def table(self) -> str:
        """Return an aligned table for a terminal, under 80 columns, without a final newline."""
        title = f"{self.protocol}: {self.images:,} images, {self.captions:,} captions"
        if self.folds:
            title += f", mean of {len(self.folds)} folds"
        metrics = METRICS.values()
        heads = "".join(f"{metric.column:>{_WIDTH[metric.unit]}}" for metric in metrics)
        lines = [title, "", f"{'':14}{heads}"]
        for key, way in self.recalls.ways.items():
            cells = "".join(f"{m.text(vars(way)):>{_WIDTH[m.unit]}}" for m in metrics)
            lines.append(f"{DIRECTIONS[key].label:14}{cells}")
        return "\n".join([*lines, f"{'RSUM':14}{self.recalls.rsum:>24.1f}"])

    def markdown(self, name: str) -> str:
        """Return a table for a paper or a page, one line called ``name``, what is in percent."""
        metrics = percentages()
        heads, figures = list[str](), list[str]()
        for key, way in self.recalls.ways.items():
            first, *others = (metric.label for metric in metrics)
            heads += [f"{DIRECTIONS[key].short} {first}", *others]
            figures += [metric.text(vars(way)) for metric in metrics]
        return "\n".join(
            [
                f"| | {' | '.join([*heads, 'RSUM'])} |",
                "|---|" + "---:|" * (len(heads) + 1),
                f"| {name} | {' | '.join([*figures, f'{self.recalls.rsum:.1f}'])} |",
            ]
        )


@dataclass(frozen=True)
class _View:
    """The part of a gallery that is ranked: rows of images, rows of captions, (C,) image index.

    ``image_index`` counts within ``images``.
    """

    images: Tensor
    captions: Tensor
    image_index: Tensor


class Plain(RankingProtocol):
    """All images and captions of a split, whatever their number."""

    name: ClassVar[str] = "plain"
    images: ClassVar[int | None] = None  # any number, with any number of captions
    captions_per_image: ClassVar[int] = 5
    folds: ClassVar[int] = 1

    def check(self, split: str, captions_per_image: NDArray[np.int64] | None = None) -> None:
        """Refuse a split of another size."""
        if captions_per_image is not None:
            self._check_size(len(captions_per_image), int(captions_per_image.min()))

    def rank(
        self,
        gallery: Gallery,
        *,
        split: str = "test",
        order: Sequence[int | str] | None = None,
        processes: Processes = ALONE,
    ) -> Evaluation:
        """Rank the images of ``order``, or all of them; see `RankingProtocol.rank`."""
        view = _whole(gallery) if order is None else _reordered(gallery, order)
        if self.images is not None:
            counts = view.image_index.bincount(minlength=len(view.images))
            self._check_size(len(view.images), int(counts.min()))
            kept = _offset_within_image(view.image_index) < self.captions_per_image
            view = _View(view.images, view.captions[kept], view.image_index[kept])
        folds = tuple(_recalls(gallery, part, processes) for part in _cut(view, self.folds))
        return Evaluation(
            protocol=self.name,
            images=len(view.images),
            captions=len(view.captions),
            recalls=folds[0] if self.folds == 1 else Recalls.mean(folds),
            folds=folds if self.folds > 1 else (),
        )

    def _check_size(self, images: int, fewest_captions: int) -> None:
        wanted = self.captions_per_image
        if self.images is not None and (images != self.images or fewest_captions < wanted):
            raise DatasetError(
                f"protocol {self.name} ranks {self.images:,} images with {wanted} captions each; "
                f"this split has {images:,} with at least {fewest_captions}; choose another split "
                "or protocol plain"
            )


# The Karpathy test splits. COCO's images have five captions or more, of which all published
# results use the first five.


class Coco1K(Plain):
    """The mean over five folds of 1,000 consecutive images of the COCO test split."""

    name = "coco-1k"
    images = 5000
    folds = 5
    needs_source_order = True


class Coco5K(Plain):
    """All 5,000 images of the COCO test split."""

    name = "coco-5k"
    images = 5000


class Flickr30K(Plain):
    """The 1,000 images of the Flickr30K test split."""

    name = "flickr30k"
    images = 1000


PROTOCOLS: dict[str, type[Plain]] = {kind.name: kind for kind in (Plain, Coco1K, Coco5K, Flickr30K)}


def check_protocol(protocol: str) -> None:
    """Raise ConfigError where `PROTOCOLS` has no such protocol."""
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol is {protocol!r}; choose one of {', '.join(PROTOCOLS)}")


def evaluate(
    protocol: str,
    gallery: Gallery,
    order: Sequence[int | str] | None = None,
    processes: Processes = ALONE,
) -> Evaluation:
    """Rank ``gallery`` under ``protocol``, a key of `PROTOCOLS`.

    ``coco-1k`` cuts its folds from consecutive images, so its figures depend on their order.

    Args:
        protocol: "plain" ranks every item; the others check the size of the split first.
        gallery: a split in the order of its dataset, or its similarities.
        order: image ids in the published order, where the dataset has another. Images that it
            leaves out are left out.
        processes: that share the work; all call with the same gallery and get the same.

    Raises:
        ConfigError: no such protocol.
        DatasetError: the split is not what the protocol ranks, or lacks an image of ``order``.
    """
    check_protocol(protocol)
    return PROTOCOLS[protocol]().rank(gallery, order=order, processes=processes)


def fold_recalls(embeddings: Embeddings, folds: int) -> tuple[Recalls, ...]:
    """Cut the images into ``folds`` equal consecutive parts and rank each with its captions."""
    return tuple(_recalls(embeddings, part, ALONE) for part in _cut(_whole(embeddings), folds))


def _recalls(gallery: Gallery, view: _View, processes: Processes) -> Recalls:
    if isinstance(gallery, Similarities):
        return gallery.recalls(view.images, view.captions, view.image_index)
    images = _chosen(gallery.images, view.images)
    captions = _chosen(gallery.captions, view.captions)
    return recall_at_k(images, captions, view.image_index, processes)


def _chosen(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return ``rows[chosen]``, without a copy where that is all of them in their order."""
    if len(chosen) == len(rows) and torch.equal(chosen, torch.arange(len(rows))):
        return rows
    return rows[chosen]


def _cut(view: _View, folds: int) -> list[_View]:
    """Cut into equal parts of consecutive images, each with its captions."""
    size, rest = divmod(len(view.images), folds)
    if rest or not size:
        raise DatasetError(f"{len(view.images)} images do not cut into {folds} equal folds")
    parts = []
    for start in range(0, size * folds, size):
        own = (view.image_index >= start) & (view.image_index < start + size)
        images = view.images[start : start + size]
        parts.append(_View(images, view.captions[own], view.image_index[own] - start))
    return parts


def _whole(gallery: Gallery) -> _View:
    image_index = gallery.caption_to_image
    return _View(torch.arange(len(gallery.image_ids)), torch.arange(len(image_index)), image_index)


def _offset_within_image(image_index: Tensor) -> Tensor:
    """Return (C,) int64: how many captions of the same image precede each caption."""
    by_image = torch.argsort(image_index, stable=True)
    counts = image_index.bincount()
    starts = counts.cumsum(0) - counts
    offset = torch.empty_like(image_index)
    offset[by_image] = torch.arange(len(image_index)) - starts.repeat_interleave(counts)
    return offset


def _reordered(gallery: Gallery, order: Sequence[int | str]) -> _View:
    # Ids are numbers in one source and text in another; their text is the same.
    row_of = {str(image_id): row for row, image_id in enumerate(gallery.image_ids)}
    missing = [image_id for image_id in order if str(image_id) not in row_of]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(order)} images of the order are not in the split, "
            f"the first is {missing[0]!r}; give the order of this split"
        )
    rows = [row_of[str(image_id)] for image_id in order]
    if len(set(rows)) != len(rows):
        raise DatasetError("the order names an image twice; name each once")
    new_row = torch.full((len(gallery.image_ids),), -1)
    new_row[torch.tensor(rows)] = torch.arange(len(rows))
    image_index = new_row[gallery.caption_to_image]
    kept = (image_index >= 0).nonzero().squeeze(1)
    captions = kept[torch.argsort(image_index[kept], stable=True)]
    return _View(torch.tensor(rows), captions, image_index[captions])

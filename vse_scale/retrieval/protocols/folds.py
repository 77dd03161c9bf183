"""The protocols under which retrieval results are published, and the table of their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vse_scale.errors import ConfigError, DatasetError
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.metrics import DIRECTIONS, METRICS, Recalls, percentages
from vse_scale.retrieval.ranks import recall_at_k
from vse_scale.retrieval.similarities import Similarities
from vse_scale.world.processes import ALONE, Processes

_WIDTH = {"percent": 8, "rank": 9}  # of a column, by the unit of its figures


@dataclass(frozen=True)
class Protocol:
    """What a protocol asks of a split: its size, and into how many folds it is cut."""

    images: int | None = None  # None: any number, with any number of captions
    captions_per_image: int = 5
    folds: int = 1


# The Karpathy test splits. COCO's images have five captions or more, of which all published
# results use the first five.
PROTOCOLS = {
    "plain": Protocol(),
    "coco-1k": Protocol(images=5000, folds=5),
    "coco-5k": Protocol(images=5000),
    "flickr30k": Protocol(images=1000),
}


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


def check_protocol(protocol: str) -> None:
    """Raise ConfigError where there is no such protocol, before anything is encoded for it."""
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol is {protocol!r}; choose one of {', '.join(PROTOCOLS)}")


@dataclass(frozen=True)
class _View:
    """What is ranked of a gallery: rows of images, rows of captions, and each caption's image.

    ``owners`` counts within ``images``.
    """

    images: Tensor
    captions: Tensor
    owners: Tensor


def evaluate(
    protocol: str,
    gallery: Embeddings | Similarities,
    order: Sequence[int | str] | None = None,
    processes: Processes = ALONE,
) -> Evaluation:
    """Rank ``gallery`` under ``protocol``, a key of ``PROTOCOLS``.

    ``coco-1k`` cuts its folds from consecutive images, so its figures depend on their order.

    Args:
        protocol: "plain" ranks all there is; the others check the size of the split first.
        gallery: a split in the order of its dataset, or its similarities.
        order: image ids in the published order, where the dataset has another. Images that it
            leaves out are left out.
        processes: that share the work; all call with the same gallery and get the same.

    Raises:
        ConfigError: no such protocol.
        DatasetError: the split is not what the protocol ranks, or lacks an image of ``order``.
    """
    check_protocol(protocol)
    rules = PROTOCOLS[protocol]
    view = _whole(gallery)
    if order is not None:
        view = _reordered(gallery, order)
    if rules.images is not None:
        view = _published(view, protocol, rules)
    folds = tuple(_recalls(gallery, part, processes) for part in _cut(view, rules.folds))
    return Evaluation(
        protocol=protocol,
        images=len(view.images),
        captions=len(view.captions),
        recalls=folds[0] if rules.folds == 1 else Recalls.mean(folds),
        folds=folds if rules.folds > 1 else (),
    )


def fold_recalls(embeddings: Embeddings, folds: int) -> tuple[Recalls, ...]:
    """Cut the images into ``folds`` equal consecutive parts and rank each with its captions."""
    return tuple(_recalls(embeddings, part, ALONE) for part in _cut(_whole(embeddings), folds))


def _recalls(gallery: Embeddings | Similarities, view: _View, processes: Processes) -> Recalls:
    if isinstance(gallery, Similarities):
        return gallery.recalls(view.images, view.captions, view.owners)
    images = _chosen(gallery.images, view.images)
    return recall_at_k(images, _chosen(gallery.captions, view.captions), view.owners, processes)


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
        own = (view.owners >= start) & (view.owners < start + size)
        images = view.images[start : start + size]
        parts.append(_View(images, view.captions[own], view.owners[own] - start))
    return parts


def _whole(gallery: Embeddings | Similarities) -> _View:
    owners = gallery.caption_to_image
    return _View(torch.arange(len(gallery.image_ids)), torch.arange(len(owners)), owners)


def _published(view: _View, name: str, rules: Protocol) -> _View:
    """Check the split's size and keep the first captions of each image."""
    images, wanted = len(view.images), rules.captions_per_image
    fewest = int(view.owners.bincount(minlength=images).min())
    if images != rules.images or fewest < wanted:
        raise DatasetError(
            f"protocol {name} ranks {rules.images:,} images with {wanted} captions each; this "
            f"split has {images:,} with at least {fewest}; choose another split or protocol plain"
        )
    kept = _place_within_image(view.owners) < wanted
    return _View(view.images, view.captions[kept], view.owners[kept])


def _place_within_image(owners: Tensor) -> Tensor:
    """Return (C,) int64: how many captions of the same image stand before each caption."""
    by_image = torch.argsort(owners, stable=True)
    counts = owners.bincount()
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(owners)
    place[by_image] = torch.arange(len(owners)) - starts.repeat_interleave(counts)
    return place


def _reordered(gallery: Embeddings | Similarities, order: Sequence[int | str]) -> _View:
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
    owners = new_row[gallery.caption_to_image]
    kept = (owners >= 0).nonzero().squeeze(1)
    captions = kept[torch.argsort(owners[kept], stable=True)]
    return _View(torch.tensor(rows), captions, owners[captions])

"""What can be embedded: a split of a dataset, a folder of images, a file of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vse_scale.data.loader import image_batches
from vse_scale.data.regions import region_batches
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import DatasetError, ModelError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.embedding import embed_pictures, embed_pixels, embed_texts
from vse_scale.model.vse import VSEModel
from vse_scale.retrieval.encode import Embeddings, Progress, encode_split
from vse_scale.world.processes import Processes
from vse_shards.images import IMAGE_SUFFIXES, ImageOptions, Rejected, check_image


@dataclass(frozen=True)
class Part:
    """Some rows of a side.

    Attributes:
        embeddings: (n, D) float32.
        lines: n objects for the side's ``.jsonl``, each with ``id``.
        set_aside: objects with ``id`` and ``reason`` for items without an embedding.
    """

    embeddings: NDArray[np.float32]
    lines: list[dict[str, Any]]
    set_aside: list[dict[str, Any]]


class Side(Protocol):
    """Images or texts to embed, by number."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def fingerprint(self) -> str:
        """Return what differs where the items differ."""
        ...

    def embed(self, start: int, stop: int) -> Part:
        """Embed the items [start, stop), the same on any process."""
        ...


@dataclass(frozen=True)
class Encoder:
    """A model with what it needs to embed.

    Attributes:
        model: in evaluation mode, on ``device``.
        tokenizer: its own.
        device: of the model.
        batch: items encoded at once.
        threads: decoding threads.
    """

    model: VSEModel
    tokenizer: CaptionTokenizer | None
    device: torch.device
    batch: int
    threads: int

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed ``texts`` as (n, D) float32 on the CPU, like lengths together."""
        tokenizer = self._own_tokenizer()
        return embed_texts(self.model, tokenizer, texts, batch=self.batch, device=self.device)

    def pictures(self, pictures: Sequence[bytes]) -> Tensor:
        """Embed image files, given their bytes, as (n, D) float32 on the CPU."""
        return embed_pictures(self.model, pictures, batch=self.batch, device=self.device)

    def images(self, dataset: ShardDataset, rows: Iterable[int]) -> Tensor:
        """Embed the images ``rows`` of a dataset as (n, D) float32 on the CPU."""
        decoded = image_batches(
            dataset, list(rows), self.model.image_spec,
            batch=self.batch, device=self.device, threads=self.threads,
        )  # fmt: skip
        return embed_pixels(self.model, decoded)

    def regions(self, dataset: ShardDataset, rows: Iterable[int]) -> Tensor:
        """Embed the region features of ``rows``, as (n, D) float32 on the CPU."""
        with torch.no_grad():
            parts = [
                self.model.encode_images(found.features, found.lengths).float().cpu()
                for found in region_batches(
                    dataset, list(rows), batch=self.batch, device=self.device
                )
            ]
        return torch.cat(parts)

    def split(
        self, dataset: ShardDataset, processes: Processes, progress: Progress | None = None
    ) -> Embeddings:
        """Embed all images and captions of ``dataset``; see `encode_split`."""
        return encode_split(
            self.model,
            self._own_tokenizer(),
            dataset,
            batch=self.batch,
            device=self.device,
            threads=self.threads,
            rank=processes.rank,
            ranks=processes.ranks,
            progress=progress,
        )

    def _own_tokenizer(self) -> CaptionTokenizer:
        if self.tokenizer is None:
            raise ModelError("the model has no tokenizer; import it again with --tokenizer DIR")
        return self.tokenizer


class DatasetImages:
    """The images of a split, as pixels or as region features: what the model takes."""

    def __init__(self, encoder: Encoder, dataset: ShardDataset) -> None:
        regions = encoder.model.takes_regions
        dataset.check_holds("regions" if regions else "images")
        self._dataset = dataset
        self._embed = encoder.regions if regions else encoder.images

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._dataset)

    def fingerprint(self) -> str:
        """Return the dataset's."""
        return f"{self._dataset.fingerprint}:{self._dataset.split}"

    def embed(self, start: int, stop: int) -> Part:
        """Embed images [start, stop)."""
        rows = range(start, stop)
        embedded = self._embed(self._dataset, rows)
        lines = [{"id": self._dataset.record(row).image_id} for row in rows]
        return Part(embedded.numpy(), lines, [])


class DatasetCaptions:
    """The captions of a split."""

    def __init__(self, encoder: Encoder, dataset: ShardDataset) -> None:
        self._encoder, self._dataset = encoder, dataset
        self._first = np.concatenate([[0], np.cumsum(dataset.captions_per_sample)])

    def __len__(self) -> int:
        """Return the number of captions."""
        return int(self._first[-1])

    def fingerprint(self) -> str:
        """Return the dataset's."""
        return f"{self._dataset.fingerprint}:{self._dataset.split}"

    def embed(self, start: int, stop: int) -> Part:
        """Embed captions [start, stop)."""
        lines = list(self._lines(start, stop))
        embedded = self._encoder.texts([line["text"] for line in lines])
        return Part(embedded.numpy(), lines, [])

    def _lines(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        image = int(np.searchsorted(self._first, start, side="right")) - 1
        while image < len(self._dataset) and self._first[image] < stop:
            first = int(self._first[image])
            for place, caption in enumerate(self._dataset.record(image).captions):
                if start <= first + place < stop:
                    yield {"id": caption.id, "text": caption.text, "image": image}
            image += 1


class FolderImages:
    """The image files below a folder, in the order of their paths.

    They are checked as by a build, and become pixels as `VSEModel.embed` makes them. A file that is
    no whole image is set aside.
    """

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder of images")
        self._encoder, self._folder = encoder, folder
        self._files = sorted(
            file.relative_to(folder).as_posix()
            for file in folder.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        )
        if not self._files:
            raise DatasetError(
                f"{folder}: holds no image files; known are {' '.join(sorted(IMAGE_SUFFIXES))}"
            )

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._files)

    def fingerprint(self) -> str:
        """Return a digest of names and sizes."""
        listed = hashlib.sha256()
        for name in self._files:
            listed.update(f"{name}\0{(self._folder / name).stat().st_size}\n".encode())
        return listed.hexdigest()

    def embed(self, start: int, stop: int) -> Part:
        """Embed files [start, stop)."""
        pictures, lines, set_aside = list[bytes](), list[dict[str, Any]](), list[dict[str, Any]]()
        for name in self._files[start:stop]:
            try:
                pictures.append(read_checked(self._folder / name))
            except (Rejected, OSError) as error:
                set_aside.append({"id": name, "reason": " ".join(str(error).split())})
            else:
                lines.append({"id": name})
        if not lines:
            width = self._encoder.model.config.embed_dim
            return Part(np.empty((0, width), np.float32), lines, set_aside)
        embedded = self._encoder.pictures(pictures)
        return Part(embedded.numpy(), lines, set_aside)


class TextLines:
    """The lines of a file; empty ones are set aside."""

    def __init__(self, encoder: Encoder, file: Path) -> None:
        try:
            self._texts = [line.rstrip("\r") for line in file.read_text("utf-8").split("\n")]
        except OSError as error:
            raise DatasetError(f"{file}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise DatasetError(f"{file}: is no text in UTF-8 ({error.reason})") from error
        if not any(text.strip() for text in self._texts):
            raise DatasetError(f"{file}: holds no text; give one text a line")
        if not self._texts[-1]:
            self._texts.pop()  # after the last line's end
        self._encoder = encoder

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self._texts)

    def fingerprint(self) -> str:
        """Return a digest of the texts."""
        return hashlib.sha256("\n".join(self._texts).encode()).hexdigest()

    def embed(self, start: int, stop: int) -> Part:
        """Embed lines [start, stop)."""
        numbered = [(n + 1, self._texts[n]) for n in range(start, stop)]
        lines = [{"id": n, "text": text} for n, text in numbered if text.strip()]
        set_aside = [{"id": n, "reason": "empty"} for n, text in numbered if not text.strip()]
        if not lines:
            width = self._encoder.model.config.embed_dim
            return Part(np.empty((0, width), np.float32), lines, set_aside)
        embedded = self._encoder.texts([str(line["text"]) for line in lines])
        return Part(embedded.numpy(), lines, set_aside)


def read_checked(file: Path) -> bytes:
    """Return the bytes of an image file that passes the checks of a build.

    Raises:
        Rejected: it is no whole image.
        OSError: it cannot be read.
    """
    data = file.read_bytes()
    check_image(data, ImageOptions())
    return data

"""Items to embed: a split of a dataset, a folder of images, a file of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vse_scale.data.shards import ShardDataset
from vse_scale.errors import DatasetError
from vse_scale.retrieval.encoder import Encoder
from vse_shards.folders import files_below, is_image_name
from vse_shards.images import ImageOptions, Rejected, check_image
from vse_shards.opening import IMAGE_SUFFIXES, MAX_FILE_BYTES
from vse_shards.plain_files import read_plain
from vse_shards.storage import file_size


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


class DatasetImages:
    """The images of a split, as pixels or as region features: what the model takes."""

    def __init__(self, encoder: Encoder, dataset: ShardDataset) -> None:
        dataset.check_holds("regions" if encoder.model.takes_regions else "images")
        self._encoder, self._dataset = encoder, dataset

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._dataset)

    def fingerprint(self) -> str:
        """Return the dataset's."""
        return f"{self._dataset.fingerprint}:{self._dataset.split}"

    def embed(self, start: int, stop: int) -> Part:
        """Embed images [start, stop)."""
        rows = range(start, stop)
        embedded = self._encoder.images(self._dataset, rows)
        lines = [{"id": self._dataset.record(row).image_id} for row in rows]
        return Part(embedded.numpy(), lines, [])


class DatasetCaptions:
    """The captions of a split."""

    def __init__(self, encoder: Encoder, dataset: ShardDataset) -> None:
        self._encoder, self._dataset = encoder, dataset
        self._first = np.concatenate([[0], np.cumsum(dataset.captions_per_sample, dtype=np.int64)])

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
            raise DatasetError(f"{folder}: no such folder of images; check the path")
        self._encoder, self._folder = encoder, folder
        names, _ = files_below(str(folder))
        self._files = [n for n in names if is_image_name(n) and file_size(str(folder / n)) >= 0]
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
            return Part(np.empty((0, self._encoder.model.width), np.float32), lines, set_aside)
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
            return Part(np.empty((0, self._encoder.model.width), np.float32), lines, set_aside)
        embedded = self._encoder.texts([str(line["text"]) for line in lines])
        return Part(embedded.numpy(), lines, set_aside)


def read_checked(file: Path) -> bytes:
    """Return the bytes of an image file that passes the checks of a build.

    Raises:
        Rejected: it is no whole image.
        OSError: it cannot be read.
    """
    if file_size(str(file)) > MAX_FILE_BYTES:
        raise Rejected("too large", f"over {MAX_FILE_BYTES:,} bytes, the limit")
    try:
        data = read_plain(file, MAX_FILE_BYTES)
    except ValueError as error:
        raise Rejected("unreadable", str(error)) from None
    check_image(data, ImageOptions())
    return data

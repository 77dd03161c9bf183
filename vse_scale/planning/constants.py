"""Times of the parts of a step on one machine: measured, kept in a file that can be edited."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from pydantic import Field, ValidationError

from vse_scale.config import Section
from vse_scale.errors import ConfigError


class Computing(Section):
    """A rank's forward pass, loss and backward pass: a fixed part and a part for each pair.

    Attributes:
        ranks: number of ranks that computed on the machine at the same time, each on its own,
            while their loaders decoded.
        fixed_seconds: of a step, whatever the number of pairs.
        pair_seconds: of a pair.
        cores: CPU cores that a rank kept busy, without decoding.
    """

    ranks: int = Field(ge=1)
    fixed_seconds: float = Field(ge=0)
    pair_seconds: float = Field(gt=0)
    cores: float = Field(ge=0)


class Collective(Section):
    """One kind of collective.

    Attributes:
        hop_seconds: of each of the messages that follow one another around a ring: N - 1, and
            twice as many in an all-reduce.
        bytes_per_second: that leave a rank, nccl-tests' bus bandwidth.
    """

    hop_seconds: float = Field(ge=0)
    bytes_per_second: float = Field(gt=0)


class Network(Section):
    """The collectives of a step."""

    all_reduce: Collective
    all_gather: Collective
    reduce_scatter: Collective


class Constants(Section):
    """A machine on which one model was measured.

    Attributes:
        device: name of the GPU or processor.
        cuda: whether it is a GPU.
        cores: CPU cores of the machine.
        memory_bytes: of a GPU; without one, of the machine.
        ranks_per_host: most ranks that share a machine; None: all.
        parameters: of the model that was measured.
        trained: those of them that trained; None in files of earlier releases: all.
        tokens: of the longest caption of a batch, on average.
        computing: of one rank alone and of more concurrent ranks, up to the machine's GPUs or
            twice its cores; in ascending order of ranks.
        score_seconds: of a rank's loss, for each pair of its own times each of the batch.
        optimizer_seconds: of the update of all parameters.
        image_seconds: of a rank's loader for an image, on an idle machine.
        image_core_seconds: of all CPU cores for an image.
        copy_bytes_per_second: from the device to host memory that is written again and again; None
            in files of earlier releases.
        write_bytes_per_second: of a checkpoint, hashed while it is written, to the disk of run.dir;
            None in files of earlier releases.
        storage_bytes_per_second: of shards from their storage into a node, while all nodes read;
            None: unknown, and never measured.
        start_seconds: from the start of a process to the end of its first step, on data that is
            here; None in files of earlier releases.
        network: None where there is one GPU, which cannot measure it.
    """

    device: str
    cuda: bool
    cores: int = Field(ge=1)
    memory_bytes: int = Field(ge=1)
    ranks_per_host: int | None = Field(ge=1)
    parameters: int
    trained: int | None = None
    tokens: int = Field(ge=1)
    computing: list[Computing] = Field(min_length=1)
    score_seconds: float = Field(ge=0)
    optimizer_seconds: float = Field(ge=0)
    image_seconds: float = Field(ge=0)
    image_core_seconds: float = Field(ge=0)
    copy_bytes_per_second: float | None = Field(default=None, gt=0)
    write_bytes_per_second: float | None = Field(default=None, gt=0)
    storage_bytes_per_second: float | None = Field(default=None, gt=0)
    start_seconds: float | None = Field(default=None, ge=0)
    network: Network | None

    @classmethod
    def load(cls, path: Path) -> Constants:
        """Read a file that `save` wrote.

        Raises:
            ConfigError: the file is missing, or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--constants {path}: cannot be read ({error}); --measure FILE writes it"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ConfigError(
                f"--constants {path}: {where}: {first['msg']}; --measure FILE writes it anew"
            ) from error

    def save(self, path: Path) -> None:
        """Write them as JSON that people can read and edit."""
        path.write_text(json.dumps(self.model_dump(), indent=1) + "\n", encoding="utf-8")

    def check_model(self, parameters: int, trained: int) -> None:
        """Raise ConfigError unless a model of as many parameters was measured, trained alike."""
        measured = (self.parameters, self.parameters if self.trained is None else self.trained)
        if measured != (parameters, trained):
            raise ConfigError(
                f"the constants belong to a model of {_numbers(*measured)}, and this one has "
                f"{_numbers(parameters, trained)}; measure this one with --measure FILE"
            )

    def computing_beside(self, ranks: int) -> Computing:
        """Return a rank's computing among ``ranks`` on a machine, interpolated."""
        measured = self.computing
        for few, many in pairwise(measured):
            if few.ranks <= ranks < many.ranks:
                share = (ranks - few.ranks) / (many.ranks - few.ranks)
                mixed = {
                    name: (1 - share) * getattr(few, name) + share * getattr(many, name)
                    for name in ("fixed_seconds", "pair_seconds", "cores")
                }
                return Computing(ranks=ranks, **mixed)
        return measured[0] if ranks < measured[0].ranks else measured[-1]


def _numbers(parameters: int, trained: int) -> str:
    part = "" if trained == parameters else f", {trained} of which train"
    return f"{parameters} parameters{part}"

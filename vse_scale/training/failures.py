"""Exceptions that end a rank: which the user can mend, and what the supervisor learns of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from vse_scale.config import Config
from vse_scale.errors import OutputError, TrainingError, UserError
from vse_scale.files import stays_unwritable, system_error, unwritable, write_text
from vse_scale.training.contract import FAILURES
from vse_shards.json_text import read_json

# Words of gloo's errors when another rank is gone; NCCL ends the process by itself.
_RANK_IS_GONE = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer")
_REFUSED = ".refused"
_LONGEST = 300  # characters of an exception's words that are shown
# Words of torch, gloo, NCCL and the C++ library where memory is all.
_NO_MEMORY = (
    "can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory",
    "std::bad_alloc",
)  # fmt: skip


class OutOfMemory(TrainingError):
    """Memory that is all.

    Args:
        what: what took the last of it.
        remedy: settings that take less.
        parts: what else takes how much, where that is known.
    """

    def __init__(self, what: str, remedy: str, parts: str | None = None) -> None:
        told = f"; {parts}" if parts else ""
        more = "" if parts else "; vse-scale plan says what takes how much"
        super().__init__(f"{what}{told}; {remedy}{more}")
        self.what, self.remedy = what, remedy


@dataclass(frozen=True)
class Failure:
    """An exception that ended a rank.

    Attributes:
        step: that was being trained.
        words: its type and its message, without addresses.
    """

    step: int
    words: str


def explained(error: Exception, config: Config, ranks: int) -> UserError | None:
    """Return ``error`` in the user's words, where the same start would end in it again."""
    if is_out_of_memory(error):
        return OutOfMemory(f"out of memory ({_short(error)})", f"set {less_memory(config, ranks)}")
    if isinstance(error, SafetensorError):
        error = system_error(error) or error
    if not isinstance(error, OSError) or not stays_unwritable(error):
        return None
    file = error.filename or config.run.dir
    if not Path(str(file)).absolute().is_relative_to(Path(config.run.dir).absolute()):
        return OutputError(f"{file}: cannot be used ({error.strerror}); see to it, or name another")
    found = unwritable(str(file), error)
    return OutputError(f"{found}, and the same command goes on from the newest checkpoint")


def less_memory(config: Config, ranks: int) -> str:
    """Name settings that take less memory, with values that the configuration allows."""
    batch, pieces = config.data.global_batch, config.engine.micro_batches
    unit = ranks * config.data.captions_per_image
    more = [n for n in range(pieces + 1, batch // unit + 1) if batch % (unit * n) == 0]
    choices = []
    if more and not config.model.image.live_statistics:
        fits = next((n for n in more if n >= 4 * pieces), more[-1])
        choices.append(f"engine.micro_batches={fits} (is {pieces})")
    if not config.engine.activation_checkpointing:
        choices.append("engine.activation_checkpointing=true")
    choices += [f"a data.global_batch below {batch}", f"an eval.batch below {config.eval.batch}"]
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def _short(error: BaseException) -> str:
    """Return what was asked for, or the first words of ``error``."""
    text = " ".join(str(error).split())
    tried = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", text)
    return f"tried to allocate {tried[1]}" if tried else text[:80] or type(error).__name__


def refuse(error: UserError) -> bool:
    """Tell the supervisor, where there is one, that no start would do; return whether it says so.

    It says what memory is taken by; anything else the rank says itself.
    """
    folder = os.environ.get(FAILURES)
    if folder is None or error.exit_code != UserError.exit_code:
        return False
    memory = [error.what, error.remedy] if isinstance(error, OutOfMemory) else []
    try:
        write_text(Path(folder, f"{os.getpid()}{_REFUSED}"), json.dumps(memory))
    except OSError:
        return False
    return bool(memory)


def refusal(folder: Path) -> OutOfMemory | bool:
    """Return whether a rank told that no start would do; the error where it is to be said."""
    told = [read_json(path) for path in sorted(folder.glob(f"*{_REFUSED}"))]
    memory = next((found for found in told if found), None)
    return OutOfMemory(*memory) if memory else bool(told)


def note(error: BaseException, step: int) -> None:
    """Leave a note of ``error`` for the supervisor, where there is one.

    What another rank's end brought about is not noted: it says nothing of the next start.
    """
    folder = os.environ.get(FAILURES)
    if folder is not None and not rank_is_gone(error):
        with suppress(OSError):
            Path(folder, f"{os.getpid()}.json").write_text(
                json.dumps({"step": step, "words": words_of(error)}), encoding="utf-8"
            )


def notes(folder: Path) -> set[Failure]:
    """Return, and remove, the notes that ranks left."""
    return set(_taken(folder))


def _taken(folder: Path) -> Iterator[Failure]:
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            yield Failure(**read_json(path))
        path.unlink(missing_ok=True)


def words_of(error: BaseException) -> str:
    """Return type and message of ``error`` in one line, the same for the same fault."""
    text = " ".join(str(error).split())
    return re.sub(r"0x[0-9a-fA-F]+", "0x", f"{type(error).__name__}: {text}")[:_LONGEST]


def rank_is_gone(error: BaseException) -> bool:
    """Return whether ``error`` says that another rank ended, or fell silent."""
    return any(words in str(error) for words in _RANK_IS_GONE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that the memory of the machine or of the GPU is all."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def killed_for_memory() -> int:
    """Return how many processes the kernel has killed for lack of memory, in this control group.

    On the whole machine where there are no such groups.
    """
    with suppress(OSError, IndexError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("\n")[2].split("::")[1]
        return _counted(Path("/sys/fs/cgroup", group.lstrip("/"), "memory.events"))
    with suppress(OSError):
        return _counted(Path("/proc/vmstat"))
    return 0


def _counted(path: Path) -> int:
    lines = (line.split() for line in path.read_text().splitlines())
    return next((int(line[1]) for line in lines if line[0] == "oom_kill"), 0)

"""Products in float32 as they are written, whatever a program has allowed elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 matrices in float32; also a decorator.

    `torch.set_float32_matmul_precision("high")` makes every product one of TF32, which has 10 bits:
    a hardest negative or a rank would be another one, without a word. Within torch.compile, the
    program's own setting holds.
    """
    if torch.compiler.is_compiling():
        yield
        return
    _GUARD.enter()
    try:
        yield
    finally:
        _GUARD.leave()


class _Guard:
    """The setting of the process: the first thread that enters changes it, the last restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[str] = []

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = [place.fp32_precision for place in _places()]
                for place in _places():
                    place.fp32_precision = "ieee"
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for place, precision in zip(_places(), self._before, strict=True):
                    place.fp32_precision = "none"  # inherited, as it may have been
                    if place.fp32_precision != precision:
                        place.fp32_precision = precision


_GUARD = _Guard()


def _places() -> tuple[Any, ...]:
    return (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]

"""A run in Weights & Biases: offline below the run's folder, unless ``WANDB_MODE`` says otherwise.

Each start writes a part of its own, ``wandb/offline-run-*``, of one run; ``wandb sync`` sends them.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vse_scale.config import Config
from vse_scale.run.folder import RunFolder
from vse_scale.training.watch.tracker import PROJECT, Held, Row, Tracker, run_name
from vse_shards.json_text import parse_json
from vse_shards.masking import masked
from vse_shards.plain_files import open_plain

_STEP, _EVALUATED = "trained_step", "evaluated_step"
_FINISH_SECONDS = 20.0
# The transaction log is LevelDB's: after a head of 7 bytes, blocks of records, each in pieces of a
# checksum, a length and a kind: whole, first, middle or last.
_HEAD, _BLOCK, _PIECE = 7, 32_768, struct.Struct("<IHB")
_WHOLE, _LAST = 1, 4


class WandB(Tracker):
    """Logs a run's records by step; a validation's lie with its step, or the one after it."""

    package = "wandb"

    def open(self, config: Config, folder: RunFolder, identity: str) -> Held:
        """Begin a part of the run, or go on with it where it is online."""
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        home = Path(os.environ.get("WANDB_DIR") or folder.path).resolve()
        parts = sorted(home.glob(f"wandb/*run-*-{identity}/run-{identity}.wandb"))
        rows = [row for part in parts for row in _logged(part)]
        home.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity,
            name=run_name(folder),
            dir=str(home),
            mode=mode,
            resume=None if mode == "offline" else "allow",
            config=config.recorded(),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",
                silent=True,
                finish_timeout=_FINISH_SECONDS,
                # It would keep the command as it is.
                x_disable_meta=any(masked(word) != word for word in sys.argv),
            ),
        )
        self._run.define_metric("*", step_metric=_STEP)
        held = Held(_last(rows, _STEP), _last(rows, _EVALUATED))
        # The steps of W&B itself can only rise.
        self._next = 1 + max((int(row.get("_step", -1)) for row in rows), default=-1)
        if mode != "offline" and self._run.resumed:
            # What an earlier start kept on its disk may not have arrived.
            self._next = self._run.starting_step
            summary = dict(self._run.summary)
            held = Held(*(int(summary.get(key, -1)) for key in (_STEP, _EVALUATED)))
        return held

    def send(self, rows: list[Row]) -> None:
        """Log ``rows``; W&B keeps the last back, for figures of the same step to come."""
        for row in rows:
            own = _EVALUATED if row.validates else _STEP
            at = self._next = max(row.step, self._next)
            self._run.log({own: row.step, **row.scalars}, step=at)

    def end(self, complete: bool) -> None:
        """Finish this part; it is marked as failed where the run goes on later."""
        self._run.finish(exit_code=0 if complete else 1)


def _last(rows: list[dict[str, Any]], key: str) -> int:
    return max((int(row[key]) for row in rows if key in row), default=-1)


def _logged(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of figures in a transaction log, up to where a kill cut it off."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    for content in _records(path):
        try:
            record = Record.FromString(content)
        except DecodeError:
            return
        if record.WhichOneof("record_type") == "history":
            yield {
                item.key or ".".join(item.nested_key): parse_json(item.value_json)
                for item in record.history.item
            }


def _records(path: Path) -> Iterator[bytes]:
    with open_plain(path) as file:
        data = file.read()
    at, content = _HEAD, b""
    while at + _PIECE.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _PIECE.size:  # the rest of a block that no piece fits into
            at += left
            continue
        _, length, kind = _PIECE.unpack_from(data, at)
        piece = data[at + _PIECE.size : at + _PIECE.size + length]
        if len(piece) < length or not kind:
            return
        content += piece
        at += _PIECE.size + length
        if kind in (_WHOLE, _LAST):
            yield content
            content = b""

"""The states of captions whose encoder does not train, found by their tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vse_scale.model.pooling.base import Pool


class HeldStates:
    """Float16 states of captions on one device.

    Args:
        token_ids: (P, L) int64.
        lengths: (P,) int64, how many ids of a row are no padding.
        width: H, channels of a token's state.
        device: that the states are used on.
        pool: where a Linear commutes with it, one vector of each caption is held in place of its
            states.

    Attributes:
        states: (sum of the lengths of different captions, H) float16, or what was pooled of them
            (different captions, H) float32; zero until they are filled.
    """

    def __init__(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        width: int,
        device: torch.device,
        pool: Pool | None = None,
    ) -> None:
        first = {key: row for row, key in reversed(list(enumerate(_keys(token_ids, lengths))))}
        self._rows = sorted(first.values(), key=lambda row: int(lengths[row]))
        self.token_ids, self.lengths = token_ids[self._rows], lengths[self._rows]
        self._place = {key: at for at, key in enumerate(_keys(self.token_ids, self.lengths))}
        self._ends = self.lengths.cumsum(0)
        self._pool = pool if pool is not None and pool.commutes else None
        if self._pool is not None:
            self.states = torch.zeros(len(self._rows), width, device=device)
        else:
            total = int(self._ends[-1]) if len(self._rows) else 0
            self.states = torch.zeros(total, width, dtype=torch.float16, device=device)

    def __deepcopy__(self, known: dict[int, Any]) -> HeldStates:
        """Return this one: a copy of a tower, as of averaged weights, needs no others."""
        return self

    def fill(self, start: int, states: Tensor) -> None:
        """Set the states (p, L, H) of the captions from ``start`` on, in the order of `lengths`."""
        lengths = self.lengths[start : start + len(states)]
        if self._pool is not None:
            # Rounded as states are that are held whole, so that both find the same.
            found = self._pool(states.half().float(), lengths.to(states.device))
            self.states[start : start + len(found)] = found
            return
        present = torch.arange(states.shape[1]) < lengths[:, None]
        begin = int(self._ends[start] - lengths[0])
        found = states[present.to(states.device)].half()
        self.states[begin : begin + len(found)] = found

    def find(self, token_ids: Tensor, lengths: Tensor) -> Tensor | None:
        """Return the states (P, L, H) of captions, float32; None where one is not held.

        Or one vector of each, (P, H), where they were pooled. What stands beyond a caption's length
        is arbitrary, as an encoder's.
        """
        places = [self._place.get(key) for key in _keys(token_ids, lengths)]
        if None in places:
            return None
        if self._pool is not None:
            return self.states[torch.tensor(places, device=self.states.device)]
        ends = self._ends[places]
        cells = (ends - self.lengths[places])[:, None] + torch.arange(token_ids.shape[1])
        cells = cells.minimum(ends[:, None] - 1).to(self.states.device)
        return self.states[cells].float()


def _keys(token_ids: Tensor, lengths: Tensor) -> list[bytes]:
    rows = token_ids.cpu().numpy()
    return [row[:length].tobytes() for row, length in zip(rows, lengths.tolist(), strict=True)]

"""Generalized Pooling Operator: sorted features, weighted by learned positions.

Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding", CVPR 2021,
section 4: each channel's values are sorted in descending order and summed with weights that a
small recurrent network generates from the positions and the length alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vse_kernels import gpo_pool
from vse_scale.model.packing import without_values
from vse_scale.model.pooling.base import Pool
from vse_scale.model.pooling.gru import BidirectionalGRU

POSITION_CHANNELS = 32
TEMPERATURE = 0.1


def position_code(steps: int, device: torch.device) -> Tensor:
    """Return the sinusoidal code (steps, POSITION_CHANNELS) of Vaswani et al. 2017, float32."""
    channels = torch.arange(0, POSITION_CHANNELS, 2, dtype=torch.float32, device=device)
    frequency = torch.exp(channels * (-math.log(10000.0) / POSITION_CHANNELS))
    angle = torch.arange(steps, dtype=torch.float32, device=device)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def table_rows(lengths: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Choose the rows of a weight table for ``lengths`` (B,), all between 1 and ``steps``.

    On a CPU one row per distinct length. Elsewhere the number of distinct lengths is not known
    without waiting for the device, and never of tensors that only have a shape, so a row per
    sample or per possible length, whichever are fewer.

    Returns:
        The lengths (R,) that the rows are for, and each sample's row (B,), int64 both.
    """
    lengths = lengths.long()
    if lengths.device.type == "cpu" and not without_values(lengths):
        distinct, rows = torch.unique(lengths, return_inverse=True)
        return distinct, rows
    if len(lengths) <= steps:
        return lengths, torch.arange(len(lengths), device=lengths.device)
    return torch.arange(1, steps + 1, device=lengths.device), lengths - 1


class GPO(Pool):
    """Pool a variable number of vectors into one.

    Parameters are ``gru.*`` (a bidirectional GRU over position codes, its directions averaged)
    and ``linear.weight``, as in published checkpoints.

    Attributes:
        choose_rows: `table_rows`, or a stand-in for lengths that have no values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gru = BidirectionalGRU(POSITION_CHANNELS, POSITION_CHANNELS)
        self.linear = nn.Linear(POSITION_CHANNELS, 1, bias=False)
        self.choose_rows = table_rows
        self._table: Tensor | None = None
        self._table_lengths: list[int] = []
        self._table_key: tuple[object, ...] = ()

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``features`` (B, K, D), the first ``lengths`` (B,) vectors of each, into (B, D)."""
        steps = features.shape[1]
        if self.training or torch.is_grad_enabled() or without_values(lengths):
            row_lengths, rows = self.choose_rows(lengths, steps)
            table = self.weight_table(row_lengths, steps)
        else:
            table, rows = self._cached_table(lengths, steps)
        return gpo_pool(features, lengths, table, rows)

    def weight_table(self, lengths: Tensor, steps: int) -> Tensor:
        """Return the pooling weights (R, steps) of each of ``lengths`` (R,), zero beyond it.

        A state of the forward direction depends on its position alone, one of the backward
        direction on the distance to the end too. So the sequences are aligned at their ends: the
        backward direction is then right for all of them without packing, and one more row, as
        long as the table, gives the forward direction of all.
        """
        device, dtype = self.linear.weight.device, self.linear.weight.dtype
        lengths = lengths.to(device)
        position = torch.arange(steps, device=device)
        aligned = position - (steps - lengths[:, None])  # (R, steps): position in its sequence
        # The weights keep the parameters' precision under autocast: they are shared by all samples.
        with torch.autocast(device.type, enabled=False):
            code = position_code(steps, device).to(dtype)
            states = self.gru(torch.cat([code[None], code[aligned.clamp(min=0)]]))
            forward, backward = self.linear(states)[..., 0].unbind()  # (1 + R, steps) each
            shifted = (position + (steps - lengths[:, None])).clamp(max=steps - 1)
            scores = (forward[0] + backward[1:].gather(1, shifted)) / 2
            scores = scores.masked_fill(position >= lengths[:, None], -torch.inf)
            return torch.softmax(scores / TEMPERATURE, dim=1)

    def assume_distinct(self, count: int) -> None:
        """Count with ``count`` different lengths in a batch whose lengths have no values."""
        self.choose_rows = lambda lengths, steps: (lengths[:count], lengths)

    def train(self, mode: bool = True) -> GPO:
        """Set the mode; training drops the table that evaluation keeps."""
        if mode:
            self._table = None
        super().train(mode)
        return self

    def _cached_table(self, lengths: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Return a row for each length that occurs in ``lengths`` (B,), and each sample's row.

        Rows are kept until a parameter changes: a grid needs one, where a table of all lengths
        would grow with the square of its cells.
        """
        distinct, rows = torch.unique(lengths.long(), return_inverse=True)
        parameters = tuple((p.data_ptr(), p._version, p.device, p.dtype) for p in self.parameters())
        key = (*parameters, steps)
        if self._table is None or key != self._table_key:
            self._table = self.linear.weight.new_empty(0, steps)
            self._table_lengths, self._table_key = [], key
        wanted = distinct.tolist()
        if missing := sorted(set(wanted) - set(self._table_lengths)):
            made = self.weight_table(torch.tensor(missing), steps)
            self._table = torch.cat([self._table, made])
            self._table_lengths += missing
        kept = [self._table_lengths.index(length) for length in wanted]
        return self._table[kept], rows

"""One direction of a GRU over rows of words on a CPU, back-propagated by hand.

``torch.gru`` on a CPU multiplies padding too, and its backward pass adds a gradient as large as the
weights at every step: for 128 captions of 13 words in 26 steps and 1,024 channels that takes twice
as long. Here a step's rows are those that have not ended, rows that begin alike share their states,
a word that occurs several times is multiplied once, and each weight's gradient is one product over
all steps. What is done number by number is done step by step, while they are in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Prefixes:
    """The N different prefixes of P ragged rows of words, the shortest first.

    Those of a step, which are of one length, stand by the longest row that begins so. Those that go
    on are therefore the first of a step.

    Attributes:
        counts: prefixes of each step; N is their sum.
        going_on: how many of a step's prefixes go on, of each step but the last.
        parents: of each step but the first, (count,) int64: which of the step before goes on so;
            None where each of those that go on does so in one way.
        words: (N,) int64, the last word of each.
        places: (P, L) int64, which prefix ends where in a row; 0 beyond a row's length.
    """

    counts: list[int]
    going_on: list[int]
    parents: list[Tensor | None]
    words: Tensor
    places: Tensor

    @classmethod
    def of(cls, words: Tensor, lengths: Tensor) -> Prefixes:
        """Find those of ``words`` (P, L) int64, of which ``lengths`` (P,), at least 1, count."""
        order = lengths.argsort(descending=True, stable=True).numpy()
        rows, ordered = words.numpy()[order], lengths.numpy()[order]
        most = int(rows.max()) + 1
        places = np.zeros(rows.shape, np.int64)
        place = np.zeros(len(rows), np.int64)  # of each row, within the step before
        counts: list[int] = []
        going_on: list[int] = []
        parents: list[Tensor | None] = []
        last_words: list[Tensor] = []
        for step in range(int(ordered[0])):
            running = int((ordered > step).sum())
            keys = place[:running] * most + rows[:running, step]
            _, first, which = np.unique(keys, return_index=True, return_inverse=True)
            by_row = first.argsort()
            first = first[by_row]
            if step:
                parent = place[first]
                going_on.append(int(parent.max()) + 1)
                shared = len(parent) > going_on[-1]
                parents.append(torch.from_numpy(parent) if shared else None)
            last_words.append(torch.from_numpy(rows[first, step]))
            place[:running] = by_row.argsort()[which]
            places[order[:running], step] = sum(counts) + place[:running]
            counts.append(len(first))
        return cls(counts, going_on, parents, torch.cat(last_words), torch.from_numpy(places))


class PackedGRU(torch.autograd.Function):
    """One direction over all prefixes, with the formulas and parameters of ``nn.GRU``.

    Vectors (U, C) of the words, their `Prefixes`, weights (3H, C) and (3H, H), biases (3H,);
    returns the states (N, H) at the prefixes' ends. Initial states are zero.
    """

    @staticmethod
    def forward(
        ctx: Any,
        words: Tensor,
        prefixes: Prefixes,
        of_input: Tensor,
        of_state: Tensor,
        input_bias: Tensor,
        state_bias: Tensor,
    ) -> Tensor:
        """Run over all steps."""
        width = of_state.shape[1]
        # They become reset, update and new.
        gates = torch.addmm(input_bias, words, of_input.T).index_select(0, prefixes.words)
        state_terms = gates.new_empty(len(gates), width)
        states = torch.empty_like(state_terms)
        product = state_bias.expand(prefixes.counts[0], -1)  # of the zero states of the first step
        before = gates.new_zeros(prefixes.counts[0], width)
        start = 0
        for step, count in enumerate(prefixes.counts):
            rows = slice(start, start + count)
            if step:
                before = before[: prefixes.going_on[step - 1]]
                product = torch.addmm(state_bias, before, of_state.T)
                if (parents := prefixes.parents[step - 1]) is not None:
                    before, product = before[parents], product[parents]
            sigmoids, new = torch.split(gates[rows], [2 * width, width], dim=1)
            sigmoids.add_(product[:, : 2 * width]).sigmoid_()
            state_term = state_terms[rows].copy_(product[:, 2 * width :])
            new.addcmul_(sigmoids[:, :width], state_term).tanh_()
            before = torch.lerp(new, before, sigmoids[:, width:], out=states[rows])
            start += count
        ctx.prefixes = prefixes
        ctx.save_for_backward(words, of_input, of_state, gates, state_terms, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the words, weights and biases."""
        words, of_input, of_state, gates, state_terms, states = ctx.saved_tensors
        prefixes: Prefixes = ctx.prefixes
        width = of_state.shape[1]
        starts = [0, *accumulate(prefixes.counts)]
        ends = [0, *accumulate(prefixes.going_on)]
        total = grad_states.clone(memory_format=torch.contiguous_format)
        of_words = gates.new_zeros(len(words), 3 * width)
        # The gradients of the products with states, one of each prefix that goes on.
        flows = gates.new_empty(ends[-1], 3 * width)
        for step in reversed(range(len(prefixes.counts))):
            rows = slice(starts[step], starts[step + 1])
            arriving, parents = total[rows], None
            reset, update, new = gates[rows].split(width, dim=1)
            if step:
                earlier = slice(starts[step - 1], starts[step - 1] + prefixes.going_on[step - 1])
                own, parents = flows[ends[step - 1] : ends[step]], prefixes.parents[step - 1]
            flow = own if step and parents is None else torch.empty_like(gates[rows])
            of_reset, of_update, of_new = flow.split(width, dim=1)
            if step:
                before = states[earlier] if parents is None else states[earlier][parents]
                torch.sub(before, new, out=of_update)
            else:
                torch.neg(new, out=of_update)
            _through_sigmoid(of_update.mul_(arriving), update)
            torch.addcmul(arriving, arriving, update, value=-1, out=of_new)
            of_new.addcmul_(of_new * new, new, value=-1)
            _through_sigmoid(torch.mul(of_new, state_terms[rows], out=of_reset), reset)
            of_words.index_add_(0, prefixes.words[rows], flow)
            of_new.mul_(reset)  # it scales the state's term alone
            if not step:
                to_state_bias = flow.sum(0)
            elif parents is None:
                total[earlier].addmm_(own, of_state).addcmul_(arriving, update)
            else:
                own.zero_().index_add_(0, parents, flow)
                total[earlier].addmm_(own, of_state).index_add_(0, parents, arriving * update)
        gone_on = [
            states[start : start + count]
            for start, count in zip(starts, prefixes.going_on, strict=False)
        ]
        return (
            of_words @ of_input,
            None,
            of_words.T @ words,
            flows.T @ torch.cat(gone_on or [states[:0]]),
            of_words.sum(0),
            to_state_bias.add_(flows.sum(0)),
        )


def _through_sigmoid(gradient: Tensor, value: Tensor) -> None:
    """Multiply a gradient by the slope of the sigmoid that gave ``value``."""
    gradient.mul_(value).addcmul_(gradient, value, value=-1)

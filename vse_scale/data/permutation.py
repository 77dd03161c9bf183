"""Permutations that are computed, so that any entry of one over a billion costs the same.

Above a few thousand entries it is a Feistel network of six rounds (Luby and Rackoff, "How to
construct pseudorandom permutations", 1988). What leaves the range is encrypted again until it lies
inside, which keeps it a bijection (Black and Rogaway, "Ciphers with arbitrary finite domains",
CT-RSA 2002). Keys are raw words of Philox, which stay what they are from one version of numpy to
the next.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_U = np.uint64
_ROUNDS = 6
_MULTIPLIERS = (_U(0x9E3779B97F4A7C15), _U(0xD6E8FEB86659FD93))
_FOLD = _U(32)
_HELD = 1 << 12  # up to here sorting once costs a fraction of a millisecond
_BLOCK = 1 << 14  # entries at a time, which the processor's cache holds


class Purpose(IntEnum):
    """Use of a permutation; those of different uses are independent."""

    SHARDS = 1 << 32  # the counters below are those of `shares.epoch_generator`
    UNITS = (1 << 32) + 1
    DATASETS = (1 << 32) + 2


class Permutation:
    """A permutation of 0 to ``size`` - 1, a function of all arguments.

    Args:
        size: number of entries, at least 1.
        purpose: use of the permutation.
        seed: of the run, below 2**64.
        passed: number of earlier passes, below 2**64.
        dataset: index of the dataset.
        index: index among the permutations of this use, below 2**64.
    """

    def __init__(
        self,
        size: int,
        purpose: Purpose,
        *,
        seed: int,
        passed: int,
        dataset: int = 0,
        index: int = 0,
    ) -> None:
        key = np.array([seed, passed], _U)
        counter = np.array([0, dataset, index, purpose], _U)
        words = np.random.Philox(key=key, counter=counter).random_raw
        self._network = None if size <= _HELD else Network(size, words(2 * _ROUNDS))
        # A stable sort: entries of equal words, if ever there are any, have one order too.
        self._held = np.argsort(words(size), kind="stable") if size <= _HELD else None

    def __getitem__(self, positions: Indices) -> Indices:
        """Return the entries (N,) int64 at ``positions`` (N,) int64."""
        if self._held is not None:
            found: Indices = self._held[positions]
            return found
        assert self._network is not None
        return self._network.encrypt(positions)


class Network:
    """A bijection of 0 to ``size`` - 1 and its inverse.

    Entries are split into a low half of whole bits and a high half below any bound, so that hardly
    an entry above ``size`` is ever reached. Rounds change the halves in turn: the low one by an
    exclusive or, the high one by an addition modulo its bound.

    Args:
        size: number of entries, from 1 to 2**62.
        keys: (12,) uint64, two for each round.
    """

    def __init__(self, size: int, keys: _Words) -> None:
        self._size = size
        self._keys = [(keys[2 * turn], keys[2 * turn + 1]) for turn in range(_ROUNDS)]
        bits = max(2, (size - 1).bit_length()) // 2
        self._width, self._mask = _U(bits), _U((1 << bits) - 1)
        self._bound = _U(max(2, -(-size >> bits)))

    def encrypt(self, positions: Indices) -> Indices:
        """Return the entries (N,) int64 at ``positions`` (N,) int64."""
        return self._walk(positions, self._forward)

    def decrypt(self, entries: Indices) -> Indices:
        """Return the positions (N,) int64 of ``entries`` (N,) int64."""
        return self._walk(entries, self._backward)

    def _walk(self, inputs: Indices, step: Callable[[_Words], _Words]) -> Indices:
        found = np.empty(len(inputs), np.int64)
        for start in range(0, len(inputs), _BLOCK):
            block = step(inputs[start : start + _BLOCK].astype(_U))
            outside = np.flatnonzero(block >= self._size)
            while len(outside):
                again = step(block[outside])
                block[outside] = again
                outside = outside[again >= self._size]
            found[start : start + _BLOCK] = block
        return found

    def _forward(self, values: _Words) -> _Words:
        high, low = values >> self._width, values & self._mask
        for turn, keys in enumerate(self._keys):
            if turn % 2 == 0:
                low ^= self._for_low(high, *keys)
            else:
                high += self._for_high(low, *keys)
                # Below the bound the subtraction wraps around to a number above all others.
                high = np.minimum(high, high - self._bound)
        return (high << self._width) | low

    def _backward(self, values: _Words) -> _Words:
        high, low = values >> self._width, values & self._mask
        for turn, keys in reversed(list(enumerate(self._keys))):
            if turn % 2 == 0:
                low ^= self._for_low(high, *keys)
            else:
                high -= self._for_high(low, *keys)
                high = np.minimum(high, high + self._bound)
        return (high << self._width) | low

    def _for_low(self, high: _Words, first: np.uint64, second: np.uint64) -> _Words:
        mixed = _scrambled(high, first, second)
        mixed >>= _U(64) - self._width
        return mixed

    def _for_high(self, low: _Words, first: np.uint64, second: np.uint64) -> _Words:
        mixed = _scrambled(low, first, second)
        mixed >>= _FOLD  # of 32 random bits the share that the bound is of them
        mixed *= self._bound
        mixed >>= _FOLD
        return mixed


def _scrambled(half: _Words, first: np.uint64, second: np.uint64) -> _Words:
    """Return words whose upper bits depend on ``half`` and both keys."""
    mixed = half + first
    mixed *= _MULTIPLIERS[0]
    mixed ^= mixed >> _FOLD
    mixed += second
    mixed *= _MULTIPLIERS[1]
    return mixed

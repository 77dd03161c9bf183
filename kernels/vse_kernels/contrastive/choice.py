"""Block sizes of the kernel of contrastive losses per GPU generation: the one place to tune.

Chosen by registers, spills and shared memory from ahead-of-time compilation
(tests/kernels/limits.py); no choice has been timed on a GPU yet.
"""

from __future__ import annotations

import torch

from vse_kernels.hardest import choice
from vse_kernels.hardest.choice import Blocks

# On Hopper, of kinds whose tile of 256 x 128 spills. Two of these fit a multiprocessor: one
# multiplies while the other is at its exponentials.
_NARROW = {"sigmoid": Blocks(128, 128, 64)}


def blocks(kind: str, dtype: torch.dtype, capability: int) -> Blocks:
    """Return the blocks of a kind of `contrast` on compute capability `capability`.x.

    They are mining's, but for `_NARROW`.
    """
    if capability == 9 and dtype != torch.float32 and kind in _NARROW:
        return _NARROW[kind]
    return choice.blocks(dtype, capability)


def unit(dtype: torch.dtype) -> float:
    """Return the number that stored weights are multiplied by.

    float16 has its 10 bits from 6e-5 on, and a softmax over a large batch has smaller weights. None
    exceeds 1 by more than the number of an image's captions.
    """
    return 256.0 if dtype == torch.float16 else 1.0

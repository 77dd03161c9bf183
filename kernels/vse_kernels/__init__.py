"""Kernels for image-text retrieval: pooling, negatives, contrastive losses, exact ranks.

Every kernel has a plain-torch implementation for all devices; all but ranks also have a Triton one
for CUDA. The package needs torch, and triton only if a Triton implementation is requested.
"""

from vse_kernels.contrastive import (
    Sums,
    Weights,
    sigmoid_weights,
    softmax_sums,
    softmax_weights,
)
from vse_kernels.gpo import gpo_pool
from vse_kernels.hardest import HardestNegatives, Violations, all_violations, hardest_negatives
from vse_kernels.ranks import paired_ranks, retrieval_ranks

__all__ = [
    "HardestNegatives",
    "Sums",
    "Violations",
    "Weights",
    "all_violations",
    "gpo_pool",
    "hardest_negatives",
    "paired_ranks",
    "retrieval_ranks",
    "sigmoid_weights",
    "softmax_sums",
    "softmax_weights",
]

"""Kernels for image-text retrieval: sort-and-weight pooling, hard negatives, exact ranks.

Every kernel has a plain-torch implementation for all devices; pooling and mining also have a Triton
one for CUDA. The package needs torch, and triton only if a Triton implementation is requested.
"""

from vse_kernels.gpo import gpo_pool
from vse_kernels.hardest import HardestNegatives, Violations, all_violations, hardest_negatives
from vse_kernels.ranks import paired_ranks, retrieval_ranks

__all__ = [
    "HardestNegatives",
    "Violations",
    "all_violations",
    "gpo_pool",
    "hardest_negatives",
    "paired_ranks",
    "retrieval_ranks",
]

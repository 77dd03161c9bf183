"""Kernels for image-text retrieval: sort-and-weight pooling, hard negatives, exact ranks.

Every kernel has a plain-torch implementation that runs anywhere and a Triton one for CUDA; the
package needs torch alone, and triton only where a Triton implementation is asked for.
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

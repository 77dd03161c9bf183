"""Pooling: a variable number of vectors becomes one."""

from vse_scale.config.parts import POOLINGS
from vse_scale.model.pooling.base import Pool

__all__ = ["Pool", "make_pool"]


def make_pool(name: str) -> Pool:
    """Return a new pooling of this name, a key of `POOLINGS`.

    Raises:
        PartError: there is none.
    """
    pool: Pool = POOLINGS.find(name)()
    return pool

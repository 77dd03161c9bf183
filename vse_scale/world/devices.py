"""The GPUs that a user names in ``CUDA_VISIBLE_DEVICES``: numbers, UUIDs, names of MIG slices."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

VISIBLE = "CUDA_VISIBLE_DEVICES"
_MIG = "MIG-"


def named_devices(environment: Mapping[str, str]) -> list[str] | None:
    """Return the user's list; None where every GPU is visible."""
    text = environment.get(VISIBLE)
    if text is None:
        return None
    return [name.strip() for name in text.split(",")]


def visible_devices(environment: Mapping[str, str], ranks: int) -> list[str]:
    """Return the GPUs of ``ranks`` ranks, out of the user's list where there is one.

    Names are missing, "", where the list is too short, as on a machine without GPUs.
    """
    named = named_devices(environment)
    if named is None:
        return [str(number) for number in range(ranks)]
    return [*named, *[""] * (ranks - len(named))][:ranks]


def choose_slice(environment: MutableMapping[str, str], local_rank: int) -> None:
    """Leave this rank its own of several MIG slices: CUDA shows a process the first alone."""
    named = named_devices(environment) or []
    if len(named) > 1 and named[0].startswith(_MIG) and local_rank < len(named):
        environment[VISIBLE] = named[local_rank]


def count_slices(environment: Mapping[str, str]) -> int:
    """Return the number of MIG slices that the user names, of which torch would count one."""
    return sum(name.startswith(_MIG) for name in named_devices(environment) or [])

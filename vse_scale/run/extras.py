"""Packages that only some commands need, which an extra of the package brings."""

from __future__ import annotations

from importlib.util import find_spec

from vse_scale.errors import LaunchError

# Modules by extra, as pyproject.toml lists their packages; triton, for GPUs alone, may lack.
_EXTRAS = {
    "train": ("deepspeed", "nvidia.dali", "prometheus_client", "tensorboard"),
    "faiss": ("faiss",),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
}


def is_installed(module: str) -> bool:
    """Return whether ``module`` can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def require(extra: str, what: str) -> None:
    """Refuse ``what``, such as a command, where packages of ``extra`` are not installed.

    Raises:
        LaunchError: some are not; the message says how to install them.
    """
    missing = [module for module in _EXTRAS[extra] if not is_installed(module)]
    if missing:
        raise LaunchError(
            f"{what} needs {', '.join(missing)}, not installed here; "
            f"pip install 'vse-scale[{extra}]'"
        )

"""Model folders on Hugging Face's hub: fetched into its cache, and pushed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vse_scale.console import log
from vse_scale.errors import ModelError, OutputError

_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
# A folder's own kinds of files; ONNX and whatever else lies there is not needed to open it.
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md")


def is_hub_name(name: str | Path) -> bool:
    """Return whether ``org/name`` can only mean the hub: not even the folder ``org`` is there."""
    path = Path(name)
    return bool(_NAME.fullmatch(str(name))) and not path.exists() and not path.parent.exists()


def fetch(name: str, **options: Any) -> Path:
    """Return the folder in the hub's cache with the files of the model ``name``.

    It is fetched once; ``HF_HUB_OFFLINE=1`` forbids that.

    Args:
        name: ``org/name``.
        options: of huggingface_hub's ``snapshot_download``, such as ``revision``.

    Raises:
        ModelError: there is no such model, or the hub does not answer.
    """
    from huggingface_hub import snapshot_download

    log.warning(
        "%s: there is no folder %s here, so this opens the model of that name on Hugging Face's "
        "hub, whoever put it there. If a folder is meant, give its absolute path; HF_HUB_OFFLINE=1 "
        "forbids fetching",
        name, Path(name).parent,
    )  # fmt: skip
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES), **options))
    except Exception as error:  # of the hub's client, of its HTTP library, of the disk
        raise ModelError(
            f"{name}: is no folder here, and the hub does not give it ({_reason(error)}); give a "
            "model's folder, or the name of a model on the hub"
        ) from error


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Write the files of a model's folder to the repository ``name``, and return its address.

    The repository is made where it is not there; what it holds beside these files stays.

    Raises:
        OutputError: it cannot be written.
    """
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload model")
    except Exception as error:  # as above
        raise OutputError(
            f"{name}: cannot be written to the hub ({_reason(error)}); log in by `hf auth login`, "
            "give a repository that is yours, as you/name, and repeat the command"
        ) from error
    return str(made)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(". ")

"""What a run would be: its resolved configuration, and the disk that it would need."""

from __future__ import annotations

from vse_scale.config import Config
from vse_scale.model.blueprint import blueprint

_FLOAT = 4  # bytes: weights and moments are kept in float32


def describe_run(config: Config) -> str:
    """Return ``config`` as YAML, with an estimate of its checkpoints' size as a comment below.

    Nothing is read but the folders of encoders and tokenizers, where they are there.

    Raises:
        ModelError: such a folder, or an architecture, is wrong.
    """
    model, assumed = blueprint(config)
    weights = sum(p.numel() for p in (*model.parameters(), *model.buffers())) * _FLOAT
    moments = 2 if config.optim.algorithm == "adamw" else 0
    one = weights + moments * sum(p.numel() for p in model.parameters()) * _FLOAT
    keep = config.run.keep_checkpoints
    total = (keep + 1) * one + 2 * weights
    lines = [
        f"checkpoints: {_size(one)} each; with {keep} kept and one being written, and the best "
        f"model ({_size(weights)}) likewise, {_size(total)}",
        *assumed,
    ]
    return config.to_yaml() + "".join(f"# {line}\n" for line in lines)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

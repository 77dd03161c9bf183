"""High-throughput training of image-text retrieval models.

>>> from vse_scale import VSEModel
>>> model = VSEModel.from_pretrained("runs/demo/model")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vse_scale.model.vse import VSEModel

__all__ = ["VSEModel"]


def __getattr__(name: str) -> Any:
    # On demand, so that the command's --help and its checks do not wait for torch.
    if name == "VSEModel":
        from vse_scale.model.vse import VSEModel

        return VSEModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

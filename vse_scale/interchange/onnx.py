"""Both encoders as ONNX graphs, which are run and compared with the model when they are written."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vse_scale.errors import ModelError
from vse_scale.model.huggingface import first_line
from vse_scale.model.towers.bigru import RaggedGRU
from vse_scale.model.vse import VSEModel

IMAGE_FILE, TEXT_FILE = "image_encoder.onnx", "text_encoder.onnx"
_OPSET = 18
_TOLERANCE = 1e-4  # of an embedding's components, which are at most 1
_LARGEST = 1 << 24  # numbers in a constant that is folded; those of the largest convolution


def export_onnx(model: VSEModel, folder: Path) -> list[Path]:
    """Write ``image_encoder.onnx`` and ``text_encoder.onnx``, and run both to compare them.

    Inputs and outputs are those of `encode_images` and `encode_captions`: ``pixels`` (or
    ``regions`` and ``lengths``), ``token_ids`` and ``lengths``, ``embeddings``. Batch, regions and
    tokens may have any size, images that of the model's specification.

    Returns:
        The files written; large weights lie beside their graph as ``*.onnx.data``.

    Raises:
        ModelError: onnx, onnxscript or onnxruntime is not installed, or a graph computes something
            else than the model.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    model = model.cpu().eval()
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        return [_write(graph, folder / graph.file) for graph in _graphs(model)]


@dataclass(frozen=True)
class _Graph:
    """An encoder to export.

    Attributes:
        file: the name of its file.
        encoder: maps the inputs to embeddings.
        inputs: examples of three rows, by name.
        varying: of each input the dimensions of any size.
        tower: the tower with the pooling to replace.
        longest: most vectors that the tower pools.
    """

    file: str
    encoder: nn.Module
    inputs: dict[str, Tensor]
    varying: tuple[dict[int, Any], ...]
    tower: nn.Module
    longest: int


def _graphs(model: VSEModel) -> list[_Graph]:
    generator = torch.Generator().manual_seed(0)
    batch = torch.export.Dim("batch", min=1)
    return [_image_graph(model, batch, generator), _text_graph(model, batch, generator)]


def _image_graph(model: VSEModel, batch: Any, generator: torch.Generator) -> _Graph:
    spec = model.input_spec
    varying: tuple[dict[int, Any], ...]
    if spec.pixels is not None:
        side = spec.pixels.size
        inputs = {"pixels": torch.randn((3, 3, side, side), generator=generator)}
        varying, longest = ({0: batch},), model.grid_cells
    else:
        assert spec.regions is not None  # a specification has one of the two
        longest = spec.regions.most
        count = min(7, longest)
        inputs = {
            "regions": torch.randn((3, count, spec.regions.channels), generator=generator),
            "lengths": torch.tensor([count, 1, 2]).clamp(max=count),
        }
        varying = ({0: batch, 1: torch.export.Dim("regions", min=2, max=longest)}, {0: batch})
    return _Graph(IMAGE_FILE, _Images(model), inputs, varying, model.image, longest)


def _text_graph(model: VSEModel, batch: Any, generator: torch.Generator) -> _Graph:
    longest = model.input_spec.max_tokens
    count = min(9, longest)
    inputs = {
        "token_ids": torch.randint(0, model.vocab_size, (3, count), generator=generator),
        "lengths": torch.tensor([count, 2, 3]).clamp(max=count),
    }
    varying = ({0: batch, 1: torch.export.Dim("tokens", min=2, max=longest)}, {0: batch})
    return _Graph(TEXT_FILE, _Captions(model), inputs, varying, model.text, longest)


def _write(graph: _Graph, path: Path) -> Path:
    cannot = "this model cannot be exported with the installed torch and onnxscript"
    try:
        off = _written(graph, path)
    except OSError:
        raise
    except Exception as error:  # whatever these libraries make of an operation
        reason: BaseException = error
        while reason.__cause__ is not None:  # torch puts its advice before it
            reason = reason.__cause__
        raise ModelError(f"{path}: {cannot} ({first_line(reason)})") from error
    if not off <= _TOLERANCE:
        raise ModelError(
            f"{path}: its embeddings are off by {off:.1e}, more than {_TOLERANCE:.0e}; {cannot}"
        )
    return path


def _written(graph: _Graph, path: Path) -> float:
    """Write a graph, and return by how much its embeddings are off."""
    import onnxruntime
    import onnxscript.optimizer

    expected = [graph.encoder(*_rows(graph, rows).values()) for rows in (3, 1)]
    shortest = 1 if "lengths" in graph.inputs else graph.longest
    with _exportable_pool(graph.tower, shortest, graph.longest), _exportable_gru(graph), _quiet():
        program = torch.onnx.export(
            graph.encoder, tuple(graph.inputs.values()), dynamo=True, opset_version=_OPSET,
            input_names=list(graph.inputs), output_names=["embeddings"],
            dynamic_shapes=(graph.varying,), verbose=False,
        )  # fmt: skip
    assert program is not None
    # By default only small constants are folded, and not a convolution's weights, which a
    # normalisation scales.
    onnxscript.optimizer.optimize(
        program.model, input_size_limit=_LARGEST, output_size_limit=_LARGEST
    )
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows, wanted in zip((3, 1), expected, strict=True):
        inputs = {name: value.numpy() for name, value in _rows(graph, rows).items()}
        found = torch.from_numpy(session.run(None, inputs)[0])
        off = float((found - wanted).abs().max())
        worst = off if math.isnan(off) else max(worst, off)
    return worst


def _rows(graph: _Graph, rows: int) -> dict[str, Tensor]:
    """Return the last ``rows`` of the example, shortened to what the longest of them needs."""
    # Other sizes than those exported, which must not have become constants of the graph.
    chosen = {name: value[-rows:] for name, value in graph.inputs.items()}
    if "lengths" in chosen:
        width = max(int(chosen["lengths"].max()), 2)
        for name in chosen.keys() - {"lengths"}:
            chosen[name] = chosen[name][:, :width]
    return chosen


class _Images(nn.Module):
    def __init__(self, model: VSEModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model.encode_images(*inputs)


class _Captions(nn.Module):
    def __init__(self, model: VSEModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model.encode_captions(*inputs)


class _SortedPool(nn.Module):
    """Sorted pooling in operations that ONNX has, its weights one constant.

    They are those of the lengths from ``shortest`` on: of a grid its own alone.
    """

    table: Tensor

    def __init__(self, table: Tensor, shortest: int) -> None:
        super().__init__()
        self.shortest = shortest
        self.register_buffer("table", table)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``features`` (B, K, D), the first ``lengths`` (B,) of each, into (B, D)."""
        steps = features.shape[1]
        beyond = (torch.arange(steps) >= lengths[:, None])[..., None]
        lowest = torch.finfo(features.dtype).min
        ordered = features.masked_fill(beyond, lowest).sort(dim=1, descending=True).values
        weights = self.table[lengths - self.shortest][:, :steps, None]
        return (ordered.masked_fill(beyond, 0.0) * weights).sum(1)


class _OnnxGRU(nn.Module):
    """A `RaggedGRU` as ONNX's own operation: exported step by step, the steps would be fixed."""

    def __init__(self, gru: RaggedGRU) -> None:
        super().__init__()
        self.hidden_size = gru.hidden_size
        # Both directions of each; ONNX has the gates in the order update, reset, new.
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            parts = [getattr(gru, f"{name}_l0{end}").chunk(3) for end in ("", "_reverse")]
            both = torch.stack([torch.cat([part[gate] for gate in (1, 0, 2)]) for part in parts])
            self.register_buffer(name, both)

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states of both directions (P, L, H), 0 beyond a row's length."""
        rows, steps = inputs.shape[:2]
        biases = torch.cat([self.get_buffer("bias_ih"), self.get_buffer("bias_hh")], 1)
        weights = self.get_buffer("weight_ih"), self.get_buffer("weight_hh")
        states = torch.onnx.ops.symbolic(
            "GRU",
            (inputs.transpose(0, 1), *weights, biases, lengths.int()),
            # PyTorch's reset gate scales a state's term with its bias.
            {
                "hidden_size": self.hidden_size,
                "direction": "bidirectional",
                "linear_before_reset": 1,
            },
            dtype=inputs.dtype,
            shape=(steps, 2, rows, self.hidden_size),
            version=_OPSET,
        )
        forward, backward = states.permute(1, 2, 0, 3)
        return forward, backward


@contextlib.contextmanager
def _exportable_gru(graph: _Graph) -> Iterator[None]:
    modules: list[Any] = list(graph.tower.modules())
    kept = [(one, one.rnn) for one in modules if isinstance(getattr(one, "rnn", None), RaggedGRU)]
    for one, gru in kept:
        one.rnn = _OnnxGRU(gru)
    try:
        yield
    finally:
        for one, gru in kept:
            one.rnn = gru


@contextlib.contextmanager
def _exportable_pool(tower: Any, shortest: int, longest: int) -> Iterator[None]:
    pool = tower.pool
    lengths = torch.arange(shortest, longest + 1)
    # A pooling of another package may have none, or go by another order than that of values.
    table = pool.weight_table(lengths, longest) if hasattr(pool, "weight_table") else None
    if table is not None:
        tower.pool = _SortedPool(table, shortest)
    try:
        yield
    finally:
        tower.pool = pool


def _require(*names: str) -> None:
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise ModelError(
                f"ONNX export needs {name}, which is not installed; install vse-scale[onnx]"
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress; its errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

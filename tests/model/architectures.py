"""Every image and text architecture of transformers, small and random, through a `VSEModel`.

Run as a script it writes ``docs/architectures.md``: ``python tests/model/architectures.py``, with
``--only NAME ...`` for some alone.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import MODEL_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from vse_scale.config import ModelConfig
from vse_scale.errors import ModelError
from vse_scale.model.huggingface import first_line, tower_config
from vse_scale.model.vse import VSEModel

IMAGE_SIZE = 64
_TOKENS = 100
_SECONDS = 40  # of computing, for an architecture

# A part of a setting's name, and the small value that it gets; the first that fits counts.
_SMALL: tuple[tuple[str, int], ...] = (
    ("vocab_size", _TOKENS),
    ("n_words", _TOKENS),
    ("image_size", IMAGE_SIZE),
    ("num_channels", 3),
    ("in_channels", 3),
    ("patch_size", 16),
    ("window_size", 2),
    ("pad_token_id", 0),
    ("bos_token_id", 1),
    ("eos_token_id", 2),
    ("head_dim", 16),
    ("kv_channels", 16),
    ("num_key_value_heads", 2),
    ("num_attention_heads", 2),
    ("num_heads", 2),
    ("n_heads", 2),
    ("n_head", 2),
    ("attention_heads", 2),
    ("num_hidden_layers", 2),
    ("num_layers", 2),
    ("n_layers", 2),
    ("n_layer", 2),
    ("encoder_layers", 2),
    ("decoder_layers", 2),
    ("depth", 2),
    ("bottleneck_size", 32),
    ("intermediate_size", 64),
    ("ffn_dim", 64),
    ("d_ff", 64),
    ("d_kv", 16),
    ("dim_ff", 64),
    ("hidden_dim", 64),
    ("num_experts_per_tok", 2),
    ("num_local_experts", 4),
    ("num_experts", 4),
    ("n_routed_experts", 4),
    ("hidden_size", 32),
    ("d_model", 32),
    ("n_embd", 32),
    ("emb_dim", 32),
    ("embed_dim", 32),
    ("embedding_size", 32),
    ("projection_dim", 32),
    ("dim", 32),
)  # fmt: skip


# Settings whose values must fit together with those above.
_FITTING: dict[str, Any] = {
    "attention_types": [[["global", "local"], 1]],
    "attention_layers": ["global", "local"],
    "d_head": 16,
    "num_groups": 4,
}


@dataclass(frozen=True)
class Outcome:
    """How an architecture fared: "works", "refused" with the line, "failed", or "not built"."""

    kind: str
    side: str
    what: str
    line: str = ""


def small_config(kind: str) -> Any:
    """Return a small configuration of ``kind``; raises whatever transformers makes of it."""
    config = AutoConfig.for_model(kind)
    return type(config).from_dict(_shrink(config.to_dict()))


def _shrink(settings: dict[str, Any]) -> dict[str, Any]:
    # These follow from the number of layers.
    left = ("out_features", "out_indices", "stage_names")
    small = {key: _shrunk(key, value) for key, value in settings.items() if key not in left}
    fixed = {key: value for key, value in _FITTING.items() if key in settings}
    if "width_coefficient" in settings:
        fixed |= {"hidden_dim": 256}  # of its last convolution, which follows from the coefficient
    return small | fixed


def _shrunk(key: str, value: Any) -> Any:
    if value is None and key == "vocab_size":
        return _TOKENS
    if isinstance(value, dict) and key.endswith("_config"):
        return _shrink(value)
    if key.endswith("_coefficient") and isinstance(value, float):
        return min(value, 0.2)
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        return value
    if isinstance(value, int):
        small = next((new for part, new in _SMALL if key == part or key.endswith(part)), value)
        return min(small, value) if value > 0 else value
    if key in ("depths", "layers", "num_blocks") and all(isinstance(one, int) for one in value):
        return type(value)(1 for _ in value)
    if key in ("hidden_sizes", "embed_dims", "embed_dim", "neck_hidden_sizes", "dims"):
        return type(value)(16 * 2**place for place in range(len(value)))
    if key in ("num_heads", "num_attention_heads"):
        return type(value)(2**place for place in range(len(value)))
    if key.endswith(("layer_types", "mlp_layer_types")):
        return value[:2]
    return value


def sides(kind: str) -> list[str]:
    """Return "image" and "text", as far as ``kind`` takes them."""
    config_class = type(AutoConfig.for_model(kind))
    model = MODEL_MAPPING[config_class]
    model = model[0] if isinstance(model, tuple) else model
    default = AutoConfig.for_model(kind)
    joint = [s for s in ("image", "text") if tower_config(default, s) is not default]
    given = {"pixel_values": ["image"], "input_ids": ["text"]}.get(model.main_input_name, [])
    return joint or given


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"takes more than {_SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def try_kind(kind: str) -> list[Outcome]:
    """Build, train, export and open a model over ``kind``, on each side that it has."""
    with tempfile.TemporaryDirectory() as folder, _time_limit():
        try:
            found = sides(kind)
        except Exception as error:
            return [Outcome(kind, "?", "not built", first_line(error))]
        if not found:
            return []
        try:
            config = small_config(kind)
            torch.manual_seed(0)
            model = MODEL_MAPPING[type(config)]
            model = model[0] if isinstance(model, tuple) else model
            model._from_config(config).save_pretrained(f"{folder}/encoder")
        except Exception as error:
            return [Outcome(kind, side, "not built", first_line(error)) for side in found]
        return [_try_side(kind, side, Path(folder)) for side in found]


def _try_side(kind: str, side: str, folder: Path) -> Outcome:
    try:
        trained_and_opened(side, folder / "encoder", folder / side)
    except ModelError as error:
        return Outcome(kind, side, "refused", str(error).replace(f"{folder}/encoder: ", ""))
    except TimeoutError as error:
        return Outcome(kind, side, "not built", str(error))
    except Exception as error:
        logging.getLogger("sweep").info("%s", traceback.format_exc())
        return Outcome(kind, side, "failed", f"{type(error).__name__}: {first_line(error)}")
    return Outcome(kind, side, "works")


def trained_and_opened(side: str, encoder: Path, folder: Path) -> None:
    """Train a model over ``encoder`` for three steps, export it, and open it again.

    Raises:
        ModelError: it is refused.
        AssertionError: the loss is not finite, nothing learns, or the opened one embeds otherwise.
    """
    image: dict[str, Any] = {"backbone": "tiny", "size": IMAGE_SIZE}
    text: dict[str, Any] = {"encoder": "bigru", "word_channels": 6}
    if side == "image":
        image = {"backbone": "huggingface", "path": str(encoder), "size": IMAGE_SIZE}
    else:
        text = {"path": str(encoder)}
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"embed_dim": 8, "image": image, "text": text})
    model = VSEModel(config, 50, 0, max_tokens=12).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pixels = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    ids, lengths = torch.randint(5, 50, (3, 7)), torch.tensor([7, 4, 6])
    for _ in range(3):
        images, captions = model(pixels, ids, lengths, torch.rand(3, 1 + model.grid_cells))
        loss = (images - captions.roll(1, 0)).square().sum()
        assert loss.isfinite(), "the loss is not finite"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder_part = model.image.backbone if side == "image" else model.text.encoder
    learnt = [p.grad is not None and bool(p.grad.any()) for p in encoder_part.parameters()]
    assert any(learnt), "nothing in the encoder learns"
    model.eval().save_pretrained(folder)
    opened = VSEModel.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(opened.encode_images(pixels), model.encode_images(pixels)), "images"
        assert torch.equal(
            opened.encode_captions(ids, lengths), model.encode_captions(ids, lengths)
        ), "captions"


def table(outcomes: list[Outcome]) -> str:
    """Return the page of the documentation."""
    lines = [_HEAD.format(version=transformers.__version__)]
    for side, title in (("image", "Image encoders"), ("text", "Text encoders")):
        of_side = [one for one in outcomes if one.side == side and one.what != "not built"]
        works = [one for one in of_side if one.what == "works"]
        refused = [one for one in of_side if one.what != "works"]
        lines.append(f"## {title}\n\n{len(works)} work, {len(refused)} are refused.\n")
        lines.append("Work: " + ", ".join(f"`{one.kind}`" for one in works) + ".\n")
        lines.append("| refused | line |\n|---|---|")
        lines += [f"| `{one.kind}` | {_cell(one.line)} |" for one in refused]
        lines.append("")
    tried = {one.kind for one in outcomes if one.what != "not built"}
    left = sorted(set(MODEL_MAPPING_NAMES) - tried)
    lines.append(
        f"## Not tried\n\n{len(left)} take neither images nor texts, need another package, or do "
        "not build at a small size: " + ", ".join(f"`{kind}`" for kind in left) + ".\n"
    )
    return "\n".join(lines)


_HEAD = """# Architectures of transformers

`model.image.path` and `model.text.path` take any encoder of transformers that gives a vector for
each cell of an image, or for each token of a caption. Each one below was built small and random
with transformers {version}, trained for three steps, exported, opened, and gave the same
embeddings again; or it is refused by the line beside it. Of a joint model (CLIP, SigLIP, BLIP,
ALIGN) the tower of the side is taken. `python tests/model/architectures.py` writes this page.
Image towers of timm have [a section](recipes.md#models-of-timm) of their own.
"""


def _cell(line: str) -> str:
    line = re.sub(r" from '[^']*'", "", line)  # where a module lies on one machine
    return line.replace("|", "\\|").replace("<", "&lt;")[:200]


def main() -> None:
    """Try all architectures, or those named, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+")
    parser.add_argument(
        "--found", type=Path, nargs="+", help="only write the page of what it printed"
    )
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="one of so many parts")
    parser.add_argument("--out", type=Path, default=Path("docs/architectures.md"))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if given.found:
        # Of an architecture that was tried again, what came last.
        lines = [line for file in given.found for line in file.read_text().splitlines()]
        last = {tuple(line.split("\t")[:2]): Outcome(*line.split("\t")) for line in lines}
        given.out.write_text(table([last[key] for key in sorted(last)]), encoding="utf-8")
        return
    outcomes: list[Outcome] = []
    part, parts = given.part
    left = sorted(MODEL_MAPPING_NAMES)[part::parts]
    for kind in given.only or left:
        try:
            found = try_kind(kind)
        except Exception as error:
            found = [Outcome(kind, "?", "not built", first_line(error))]
        for one in found:
            print(one.kind, one.side, one.what, one.line[:300], sep="\t", flush=True)
        outcomes += found
    if not given.only and parts == 1:
        given.out.write_text(table(outcomes), encoding="utf-8")
    sys.exit(any(one.what == "failed" for one in outcomes))


if __name__ == "__main__":
    main()

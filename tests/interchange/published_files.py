"""Checkpoints in the published layout: full-size ones of the reference, and small ones of ours."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch

from vse_scale.model.towers.resnet import BACKBONES, ResNet

NAMES = {
    "image.backbone.": "backbone.resnet.",
    "image.projection.": "image_encoder.fc.",
    "image.pool.": "image_encoder.gpool.",
    "text.encoder.": "bert.",
    "text.projection.": "linear.",
    "text.pool.": "gpool.",
}
REGION_NAMES = {
    "image.projection.": "fc.",
    "image.hidden.": "mlp.layers.0.",
    "image.norm.": "mlp.bns.0.",
    "image.output.": "mlp.layers.1.",
    "image.pool.": "gpool.",
}


def write(path: Path, parts: list, **options) -> Path:
    opt = argparse.Namespace(precomp_enc_type="backbone", **options)
    published = {"model": parts, "epoch": 3, "best_rsum": 500.5, "opt": opt, "Eiters": 9}
    torch.save(published, path)
    return path


def of_model(model, path: Path, **options) -> Path:
    """Write a model of ours as the published code would."""
    regions = model.config.image.backbone == "regions"
    names = NAMES | REGION_NAMES if regions else NAMES
    parts: list[dict] = [{}, {}]
    for key, value in model.state_dict().items():
        prefix = next(prefix for prefix in names if key.startswith(prefix))
        side = 0 if key.startswith("image.") else 1
        parts[side]["module." + names[prefix] + key.removeprefix(prefix)] = value.clone()
    hidden = model.text.encoder.config.hidden_size
    parts[1]["module.bert.pooler.dense.weight"] = torch.zeros(hidden, hidden)
    if not regions:
        parts[0]["module.backbone.resnet.fc.weight"] = torch.zeros(3, 4)
        twins = {"conv1.": "base.0.", "bn1.": "base.1.", "layer4.": "top.0."}
        twins |= {f"layer{n}.": f"base.{n + 3}." for n in (1, 2, 3)}
        for key, value in list(parts[0].items()):
            for ours, theirs in twins.items():
                start = f"module.backbone.resnet.{ours}"
                if key.startswith(start):
                    twin = f"module.backbone.{theirs}{key.removeprefix(start)}"
                    parts[0][twin] = value.clone()
    return write(path, parts, **options)


def backbone_shapes(name: str) -> dict:
    with torch.device("meta"):
        return {key: tuple(v.shape) for key, v in ResNet(BACKBONES[name]).state_dict().items()}


def of_reference(folder: Path, kind: str, path: Path) -> dict[str, np.ndarray]:
    """Write the reference's full-size checkpoint; return what it should compute, with inputs."""
    spec = importlib.util.spec_from_file_location("weights", folder / "reference_weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    keys = json.loads((folder / f"keys_{kind}.json").read_text())
    expected = dict(np.load(folder / f"expected_{kind}.npz"))
    seed = int(expected["weights_seed"])
    parts = [
        {
            key: torch.from_numpy(np.asarray(weights.tensor_for(f"{side}:{key}", shape, seed)))
            for key, shape in keys[side].items()
        }
        for side in ("image", "text")
    ]
    write(path, parts, backbone_source="detector", input_scale_factor=2.0)
    if kind == "grid":
        draws = np.random.RandomState(int(expected["images_seed"])).standard_normal(
            (2, 3, 160, 128)
        )
        expected["inputs"] = [draws.astype(np.float32)]
    else:
        draws = np.random.RandomState(int(expected["features_seed"])).standard_normal((3, 36, 2048))
        expected["inputs"] = [draws.astype(np.float32), expected["feature_lengths"]]
    return expected

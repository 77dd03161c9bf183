"""A model opens and embeds with torch, transformers, safetensors, Pillow and numpy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel

ROOT = Path(__file__).parents[2]

# Packages of a training machine: None in their place is what Python takes as not installed.
SCRIPT = """
import sys

REFUSED = ["pydantic", "deepspeed", "nvidia", "triton", "simplejpeg", "psutil", "typer",
           "prometheus_client", "webdataset", "tensorboard", "matplotlib"]
sys.modules.update(dict.fromkeys(REFUSED))
from vse_scale import VSEModel

model = VSEModel.from_pretrained(sys.argv[1])
scores = model.similarity(images=[sys.argv[2]], texts=["a red ball"])
assert all(sys.modules[name] is None for name in REFUSED)
print(f"{scores.item():.6f}")
"""


def test_a_similarity_with_few_packages(small_config, tmp_path):
    tokenizer = CaptionTokenizer.train(["a red ball", "a blue ring"] * 5, vocab_size=60)
    torch.manual_seed(0)
    model = VSEModel(small_config, tokenizer.vocab_size, tokenizer.pad_id)
    model.save_pretrained(tmp_path / "model", tokenizer)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "model", tmp_path / "photo.png"],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened = VSEModel.from_pretrained(tmp_path / "model")
    expected = opened.similarity([picture], ["a red ball"]).item()
    assert abs(float(done.stdout) - expected) <= 1e-5

"""A model's folder, for the tests of those who open it."""

from __future__ import annotations

import pytest
import torch

from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel


@pytest.fixture
def folder(small_config, tmp_path):
    tokenizer = CaptionTokenizer.train(["a red ball", "a blue ring"] * 5, vocab_size=60)
    torch.manual_seed(0)
    model = VSEModel(small_config, tokenizer.vocab_size, tokenizer.pad_id)
    model.save_pretrained(tmp_path / "m", tokenizer)
    return tmp_path / "m"

import pytest
import torch

from vse_scale.config import ModelConfig
from vse_scale.model.vse import VSEModel


@pytest.fixture
def small_config():
    return ModelConfig.model_validate(
        {
            "embed_dim": 24,
            "dropout": 0.0,
            "image": {"backbone": "tiny", "size": 32},
            "text": {
                "architecture": {
                    "hidden_size": 16,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                    "max_position_embeddings": 20,
                }
            },
        }
    )


@pytest.fixture
def small_model(small_config):
    torch.manual_seed(0)
    return VSEModel(small_config, vocab_size=50, pad_id=0)

import pytest
import torch

from vse_scale.config import ModelConfig
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, scenes):
    """An untrained model with a vocabulary of the scenes' words."""
    dataset = ShardDataset(scenes, "train")
    texts = [c.text for row in range(len(dataset)) for c in dataset.record(row).captions]
    tokenizer = CaptionTokenizer.train(texts, 120)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 64}
    config = ModelConfig.model_validate(
        {
            "embed_dim": 24,
            "dropout": 0.0,
            "image": {"backbone": "tiny", "size": 32},
            "text": {"architecture": text},
        }
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    VSEModel(config, tokenizer.vocab_size, tokenizer.pad_id).save_pretrained(folder, tokenizer)
    return folder

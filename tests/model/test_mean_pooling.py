import torch

from vse_scale.config import ModelConfig
from vse_scale.model.pooling.mean import MeanPool
from vse_scale.model.vse import VSEModel


def test_the_mean_leaves_padding_out_whatever_it_holds():
    features = torch.randn(3, 5, 4, requires_grad=True)
    with torch.no_grad():
        features[1, 2:] = torch.nan
    lengths = torch.tensor([5, 2, 1])
    pooled = MeanPool()(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(pooled[row], features[row, :length].mean(0))
    pooled.sum().backward()
    present = (torch.arange(5) < lengths[:, None])[..., None]
    expected = (present / lengths[:, None, None]).expand(3, 5, 4)
    torch.testing.assert_close(features.grad, expected)


def test_it_is_at_least_float32():
    features = torch.full((1, 3000, 2), 1.001, dtype=torch.bfloat16)
    pooled = MeanPool()(features, torch.tensor([3000]))
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, features[:, 0].float())


def test_a_model_pools_both_sides_by_the_mean():
    config = ModelConfig.model_validate(
        {
            "embed_dim": 8,
            "pool": "mean",
            "image": {"backbone": "tiny", "size": 32},
            "text": {"encoder": "bigru", "word_channels": 6},
        }
    )
    model = VSEModel(config, 30, 0)
    assert not any("pool" in name for name, _ in model.named_parameters())
    for side in ("image", "text"):
        torch.testing.assert_close(model.pooling_weights(side, 4), torch.full((4,), 0.25))

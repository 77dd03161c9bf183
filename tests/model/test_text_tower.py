import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from vse_scale.config import TextConfig
from vse_scale.errors import ModelError
from vse_scale.model.text import TextEncoder

ARCHITECTURE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}


def made(dropout=0.0, vocab_size=50, **text):
    torch.manual_seed(0)
    config = TextConfig(**({"architecture": ARCHITECTURE} | text))
    return TextEncoder(config, 8, vocab_size=vocab_size, pad_id=0, dropout=dropout)


@pytest.fixture
def bert_folder(tmp_path):
    torch.manual_seed(3)
    bert = BertModel(BertConfig(vocab_size=50, **ARCHITECTURE))
    bert.save_pretrained(tmp_path / "bert")
    return bert, tmp_path / "bert"


def test_padding_changes_nothing():
    tower = made()
    token_ids, lengths = torch.randint(1, 50, (3, 9)), torch.tensor([9, 4, 1])
    alone = [tower(ids[None, :n], n[None])[0] for ids, n in zip(token_ids, lengths, strict=True)]
    # What stands beyond a caption's length is arbitrary.
    wider = torch.cat([token_ids, torch.randint(0, 50, (3, 6))], dim=1)
    for batch in (token_ids, wider):
        torch.testing.assert_close(tower(batch, lengths), torch.stack(alone))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_of_every_layer_is_set(dropout):
    encoder = made(dropout).encoder
    rates = {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)}
    assert rates == {dropout}


def test_without_a_setting_the_encoder_keeps_its_dropout():
    encoder = made(None, architecture=ARCHITECTURE | {"hidden_dropout_prob": 0.25}).encoder
    rates = {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.25, 0.1}


def test_a_saved_encoder_is_opened_with_its_weights(bert_folder):
    bert, folder = bert_folder
    tower = made(path=str(folder))
    expected = {k: v for k, v in bert.state_dict().items() if not k.startswith("pooler.")}
    loaded = tower.encoder.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[k], v) for k, v in expected.items())
    token_ids = torch.randint(1, 50, (2, 7))
    with torch.no_grad():
        hidden = bert.eval()(token_ids).last_hidden_state
        expected = tower.pool(tower.projection(hidden), torch.tensor([7, 7]))
        found = tower.eval()(token_ids, torch.tensor([7, 7]))
    torch.testing.assert_close(found, expected)


def test_another_kind_of_encoder_works():
    kind = {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    tower = made(architecture=kind)
    pooled = tower(torch.randint(1, 50, (2, 5)), torch.tensor([5, 3]))
    pooled.sum().backward()
    assert pooled.shape == (2, 8)
    assert all(p.grad is not None for p in tower.parameters())


def test_all_parameters_learn():
    tower = made()
    tower(torch.randint(1, 50, (4, 6)), torch.tensor([6, 3, 2, 5])).square().sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


class TestErrors:
    def test_an_unknown_key_names_the_nearest(self):
        with pytest.raises(ModelError, match=r"hiden_size; did you mean hidden_size\?"):
            made(architecture={"hiden_size": 16})

    def test_an_unknown_kind(self):
        with pytest.raises(ModelError, match="model_type is 'bart3'"):
            made(architecture={"model_type": "bart3"})

    def test_sizes_that_do_not_divide(self):
        with pytest.raises(ModelError, match=r"architecture: .*hidden size"):
            made(architecture=ARCHITECTURE | {"num_attention_heads": 3})

    def test_more_tokens_than_the_encoder_knows(self, bert_folder):
        with pytest.raises(ModelError, match="knows 50 tokens, the tokenizer 60"):
            made(path=str(bert_folder[1]), vocab_size=60)

    def test_captions_longer_than_the_encoder(self):
        with pytest.raises(ModelError, match="21 tokens, and the text encoder has 20 positions"):
            made()(torch.ones(1, 21, dtype=torch.int64), torch.tensor([21]))

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(ModelError, match="no such folder"):
            made(path=str(tmp_path / "none"))

    def test_a_folder_of_something_else(self, tmp_path):
        with pytest.raises(ModelError, match="cannot be opened as an encoder") as error:
            made(path=str(tmp_path))
        assert "\n" not in str(error.value)

    def test_missing_weights_are_named(self, bert_folder):
        from safetensors.torch import load_file, save_file

        file = bert_folder[1] / "model.safetensors"
        weights = load_file(file)
        del weights["encoder.layer.1.output.dense.bias"]
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"missing: encoder\.layer\.1\.output\.dense\.bias"):
            made(path=str(bert_folder[1]))

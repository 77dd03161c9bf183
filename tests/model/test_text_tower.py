import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from vse_scale.errors import ModelError
from vse_scale.model.towers.transformer import TransformerSettings, TransformerTower

ARCHITECTURE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}


def made(dropout=0.0, vocab_size=50, **text):
    torch.manual_seed(0)
    config = TransformerSettings(
        **({"encoder": "huggingface"} | {"architecture": ARCHITECTURE} | text)
    )
    return TransformerTower(config, 8, vocab_size=vocab_size, pad_id=0, dropout=dropout)


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


@pytest.mark.parametrize("layers", [1, 2])
def test_the_projection_sees_the_last_layers_side_by_side(bert_folder, layers):
    bert, folder = bert_folder
    tower = made(path=str(folder), layers=layers).eval()
    token_ids, lengths = torch.randint(1, 50, (3, 9)), torch.tensor([9, 4, 1])
    mask = (torch.arange(9) < lengths[:, None]).long()
    out = bert.eval()(token_ids, attention_mask=mask, output_hidden_states=True)
    states = torch.cat(out.hidden_states[-layers:], dim=-1)
    assert tower.projection.in_features == layers * 16
    found = tower.states(token_ids, lengths)
    present = mask.bool()
    torch.testing.assert_close(found[present], states[present])
    expected = tower.pool(tower.projection(states), lengths)
    torch.testing.assert_close(tower(token_ids, lengths), expected)
    tower.check_length(20)


def test_more_layers_than_the_encoder_has_are_refused():
    with pytest.raises(
        ModelError, match=r"model\.text\.layers is 10{9}, and .* has 2; give at most that$"
    ):
        made(layers=10**9)


def test_another_kind_of_encoder_works():
    kind = {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    tower = made(architecture=kind)
    pooled = tower(torch.randint(1, 50, (2, 5)), torch.tensor([5, 3]))
    pooled.sum().backward()
    assert pooled.shape == (2, 8)
    assert all(p.grad is not None for p in tower.parameters())


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
OTHERS = {
    "roberta": SMALL | {"pad_token_id": 1, "max_position_embeddings": 30},
    "xlm-roberta": SMALL | {"pad_token_id": 1, "max_position_embeddings": 30},
    "albert": SMALL | {"embedding_size": 16},
    "mpnet": SMALL | {"pad_token_id": 1},
    "deberta-v2": SMALL,
    "clip_text_model": SMALL | {"bos_token_id": 1, "eos_token_id": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
    "t5": {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_padding_changes_nothing_to_other_encoders(kind):
    tower = made(architecture={"model_type": kind, **OTHERS[kind]}).eval()
    token_ids, lengths = torch.randint(3, 50, (3, 9)), torch.tensor([9, 4, 1])
    with torch.no_grad():
        alone = [
            tower(ids[None, :n], n[None])[0] for ids, n in zip(token_ids, lengths, strict=True)
        ]
        torch.testing.assert_close(tower(token_ids, lengths), torch.stack(alone))
    rebuilt = made(architecture=tower.standalone().architecture)
    assert rebuilt.state_dict().keys() == tower.state_dict().keys()
    rates = {module.p for module in tower.modules() if isinstance(module, nn.Dropout)}
    assert rates <= {0.0}


@pytest.mark.parametrize(("kind", "positions"), [("roberta", 28), ("gpt2", 30), ("t5", None)])
def test_all_positions_can_be_used(kind, positions):
    given = {"model_type": kind, **OTHERS[kind]}
    if kind == "gpt2":
        given |= {"n_positions": 30}
    tower = made(architecture=given).eval()
    assert tower.positions == positions
    tokens = positions or 600
    with torch.no_grad():
        pooled = tower(torch.full((1, tokens), 7), torch.tensor([tokens]))
    assert pooled.isfinite().all()


def test_a_saved_encoder_decoder_gives_its_encoder(tmp_path):
    from transformers import T5Config, T5Model

    torch.manual_seed(4)
    whole = T5Model(T5Config(vocab_size=50, **OTHERS["t5"])).eval()
    whole.save_pretrained(tmp_path)
    tower = made(path=str(tmp_path)).eval()
    token_ids, lengths = torch.randint(3, 50, (2, 6)), torch.tensor([6, 6])
    with torch.no_grad():
        hidden = whole.encoder(input_ids=token_ids).last_hidden_state
        expected = tower.pool(tower.projection(hidden), lengths)
        torch.testing.assert_close(tower(token_ids, lengths), expected)


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

    def test_every_key_that_disagrees_is_named(self, bert_folder):
        from safetensors.torch import load_file, save_file

        file = bert_folder[1] / "model.safetensors"
        weights = load_file(file)
        del weights["encoder.layer.1.output.dense.bias"]
        weights["encoder.layer.7.output.dense.bias"] = torch.zeros(16)
        weights["embeddings.LayerNorm.bias"] = torch.zeros(9)
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(ModelError) as error:
            made(path=str(bert_folder[1]))
        message = str(error.value)
        assert "1 missing: encoder.layer.1.output.dense.bias" in message
        assert "1 surplus: encoder.layer.7.output.dense.bias" in message
        assert "1 of another shape: embeddings.LayerNorm.bias (9,) for (16,)" in message
        assert "\n" not in message

    @pytest.mark.parametrize("kind", [BertForPreTraining, BertForMaskedLM])
    def test_heads_beside_the_encoder_are_left_out(self, tmp_path, kind, capfd):
        from safetensors.torch import load_file, save_file

        whole = kind(BertConfig(vocab_size=50, **ARCHITECTURE))
        whole.save_pretrained(tmp_path)
        capfd.readouterr()
        tower = made(path=str(tmp_path))
        theirs = whole.bert.state_dict()
        for name, value in tower.encoder.state_dict().items():
            assert torch.equal(value, theirs[name])
        # As old files have it; and a surplus key of the encoder itself.
        file = tmp_path / "model.safetensors"
        weights = load_file(file) | {"bert.embeddings.position_ids": torch.arange(20)[None]}
        save_file(weights, file, metadata={"format": "pt"})
        made(path=str(tmp_path))
        save_file(weights | {"bert.encoder.more": torch.zeros(1)}, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"1 surplus: bert\.encoder\.more"):
            made(path=str(tmp_path))
        assert not capfd.readouterr().err  # transformers has a table of a line for each weight

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vse_scale.config import ModelConfig
from vse_scale.model.pooling.gpo import GPO
from vse_scale.model.towers.bigru import BiGRUSettings, BiGRUTower, RaggedGRU
from vse_scale.model.towers.packed_gru import Prefixes
from vse_scale.model.vse import VSEModel

LENGTHS = torch.tensor([7, 2, 5, 1])


def packed(gru, inputs, lengths):
    """The usual way, and the published code's."""
    order = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(gru(order)[0], batch_first=True)[0]


def test_a_ragged_gru_equals_a_packed_one_with_its_gradients():
    torch.manual_seed(0)
    ours, theirs = RaggedGRU(5, 4).double(), nn.GRU(5, 4, batch_first=True, bidirectional=True)
    theirs = theirs.double()
    theirs.load_state_dict(ours.state_dict())
    present = (torch.arange(7) < LENGTHS[:, None])[..., None]
    weight = torch.randn(4, 7, 8, dtype=torch.float64) * present
    inputs = [torch.randn(4, 7, 5, dtype=torch.float64).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    states = [torch.cat(ours(inputs[0], LENGTHS), dim=-1), packed(theirs, inputs[1], LENGTHS)]
    torch.testing.assert_close(states[0] * present, states[1], rtol=0, atol=1e-14)
    for one in states:
        (one * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=1e-14)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-13)


@pytest.fixture
def tower():
    torch.manual_seed(1)
    return BiGRUTower(BiGRUSettings(encoder="bigru", word_channels=6), 8, vocab_size=30)


def test_it_computes_what_the_published_code_does(tower):
    token_ids = torch.randint(1, 30, (4, 7))
    published = nn.ModuleDict(
        {
            "embed": nn.Embedding(30, 6),
            "rnn": nn.GRU(6, 8, 1, batch_first=True, bidirectional=True),
            "gpool": GPO(),
        }
    )
    renamed = {
        name.removeprefix("encoder.").replace("pool.", "gpool."): value
        for name, value in tower.state_dict().items()
    }
    published.load_state_dict(renamed)
    with torch.no_grad():
        states = packed(published["rnn"], published["embed"](token_ids), LENGTHS)
        averaged = (states[..., :8] + states[..., 8:]) / 2
        torch.testing.assert_close(tower(token_ids, LENGTHS), published["gpool"](averaged, LENGTHS))


def test_it_starts_as_published_and_all_of_it_learns(tower):
    table = tower.encoder.embed.weight
    assert table.abs().max() <= 0.1
    assert table.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.1)
    tower(torch.randint(1, 30, (4, 7)), LENGTHS).square().sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


def test_a_model_of_it_is_grouped_saved_and_opened(tmp_path):
    config = ModelConfig.model_validate(
        {
            "embed_dim": 8,
            "image": {"backbone": "tiny", "size": 32},
            "text": {"encoder": "bigru", "word_channels": 6},
        }
    )
    model = VSEModel(config, 30, 0).eval()
    groups = model.parameter_groups()
    assert sum(p.numel() for p in groups["text"]) == 30 * 6 + 2 * (3 * 8 * (6 + 8) + 2 * 3 * 8)
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    model.save_pretrained(tmp_path)
    token_ids = torch.randint(1, 30, (4, 7))
    with torch.no_grad():
        assert torch.equal(
            VSEModel.from_pretrained(tmp_path).encode_captions(token_ids, LENGTHS),
            model.encode_captions(token_ids, LENGTHS),
        )


def check_packed(token_ids, lengths):
    """Hold states and gradients of a tower that packs to those of a packed ``nn.GRU``."""
    settings = BiGRUSettings(encoder="bigru", word_channels=6)
    encoder = BiGRUTower(settings, 64, vocab_size=12).double().encoder  # as wide as is packed
    published = nn.ModuleDict(
        {"embed": nn.Embedding(12, 6), "rnn": nn.GRU(6, 64, batch_first=True, bidirectional=True)}
    ).double()
    published.load_state_dict(encoder.state_dict())
    arriving = torch.randn(*token_ids.shape, 64, dtype=torch.float64)
    arriving *= (torch.arange(token_ids.shape[1]) < lengths[:, None])[..., None]

    found = encoder(token_ids, lengths)
    (found * arriving).sum().backward()
    states = packed(published["rnn"], published["embed"](token_ids), lengths)
    expected = (states[..., :64] + states[..., 64:]) / 2
    (expected * arriving).sum().backward()

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    theirs = dict(published.named_parameters())
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=0, atol=1e-13)


def test_words_that_are_packed_give_what_padding_gives_with_the_same_gradients():
    torch.manual_seed(2)
    lengths = torch.tensor([3, 7, 1, 7, 5])
    token_ids = torch.randint(1, 9, (5, 7))  # most words occur several times
    check_packed(token_ids, lengths)


def test_rows_that_begin_and_end_alike_share_states_and_their_gradients_add_up():
    torch.manual_seed(3)
    token_ids = torch.tensor(
        [[1, 2, 3, 4, 5], [1, 2, 3, 9, 9], [1, 2, 6, 5, 9], [1, 2, 3, 4, 5], [7, 4, 5, 9, 9]]
    )
    lengths = torch.tensor([5, 3, 4, 5, 3])
    check_packed(token_ids, lengths)


def test_each_prefix_is_computed_once():
    rows = [[1, 2, 3, 4], [1, 2, 5], [1, 2, 3], [6, 2], [1, 2, 3, 4]]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.tensor([row + [8] * (4 - len(row)) for row in rows])
    prefixes = Prefixes.of(padded, lengths)
    expected = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    assert sum(prefixes.counts) == len(prefixes.words) == len(expected)
    named: dict[int, tuple[int, ...]] = {}
    for row, places in zip(rows, prefixes.places.tolist(), strict=True):
        for end in range(len(row)):
            prefix = tuple(row[: end + 1])
            assert named.setdefault(places[end], prefix) == prefix
            assert prefixes.words[places[end]] == row[end]
    assert set(named.values()) == expected

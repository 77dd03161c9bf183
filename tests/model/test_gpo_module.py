import numpy as np
import pytest
import torch

from vse_scale.model.pooling.gpo import GPO, table_rows


def reference_of(shared, name):
    arrays = np.load(shared / "reference" / f"gpo_{name}.npz")
    values = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    gpo = GPO().double()
    gpo.load_state_dict(
        {key.removeprefix("param."): v for key, v in values.items() if key.startswith("param.")}
    )
    return gpo, values


@pytest.mark.parametrize("name", ["region", "grid", "text"])
def test_values_and_all_gradients_are_the_published_ones(shared, name):
    gpo, values = reference_of(shared, name)
    features = values["features"].requires_grad_()
    pooled = gpo(features, values["lengths"])
    pooled.backward(values["grad_pooled"])
    torch.testing.assert_close(pooled, values["pooled"], rtol=0, atol=1e-9)
    torch.testing.assert_close(features.grad, values["grad_features"], rtol=0, atol=1e-9)
    for key, parameter in gpo.named_parameters():
        torch.testing.assert_close(parameter.grad, values[f"grad.{key}"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["region", "grid", "text"])
def test_evaluation_uses_the_published_weights(shared, name):
    gpo, values = reference_of(shared, name)
    lengths, steps = values["lengths"], values["features"].shape[1]
    torch.testing.assert_close(
        gpo.weight_table(lengths, steps), values["weights"], rtol=0, atol=1e-9
    )
    gpo.eval()
    with torch.no_grad():
        pooled = gpo(values["features"], lengths)
    torch.testing.assert_close(pooled, values["pooled"], rtol=0, atol=1e-9)


def test_weights_depend_on_the_length_alone():
    gpo = GPO().double()
    lengths = torch.tensor([1, 4, 6])
    short, long = gpo.weight_table(lengths, 6), gpo.weight_table(lengths, 11)
    torch.testing.assert_close(long[:, :6], short)
    assert not long[:, 6:].any()
    torch.testing.assert_close(short.sum(1), torch.ones(3, dtype=torch.float64))
    assert short[0, 0] == 1.0
    assert not short[1, 4:].any()


class TestCachedTable:
    @pytest.fixture
    def gpo(self):
        torch.manual_seed(0)
        return GPO().eval()

    @staticmethod
    def pool(gpo):
        features = torch.arange(24.0).view(2, 6, 2).cos()
        return gpo(features, torch.tensor([3, 6]))

    def check(self, gpo):
        """What is cached must give what the current parameters give, to the rounding."""
        with torch.no_grad():
            cached = self.pool(gpo)
        torch.testing.assert_close(cached, self.pool(gpo).detach())
        return cached

    def test_each_length_that_occurs_is_computed_once(self, gpo, monkeypatch):
        made = []
        compute = gpo.weight_table
        monkeypatch.setattr(
            gpo, "weight_table", lambda *args: made.append(args[0].tolist()) or compute(*args)
        )
        with torch.no_grad():
            for lengths in ([3, 6], [3, 2], [6, 2]):
                gpo(torch.randn(2, 6, 2), torch.tensor(lengths))
        assert made == [[3, 6], [2]]

    def test_values_do_not_depend_on_what_came_before(self, gpo):
        features = torch.randn(3, 40, 2)
        lengths = torch.tensor([7, 40, 23])
        with torch.no_grad():
            every = gpo.weight_table(torch.arange(1, 41), 40)
            first = gpo(features, lengths)
            for row, length in enumerate(lengths.tolist()):
                gpo(features, torch.tensor([length, 1, length]))
                torch.testing.assert_close(
                    gpo._cached_table(lengths, 40)[0][[0, 2, 1]][row], every[length - 1]
                )
            assert torch.equal(gpo(features, lengths), first)

    def test_a_grid_takes_one_row(self, gpo):
        # Out of memory in validation alone, as in locuslab/mdeq#9: here 4.1 GB, 0.9 in training.
        with torch.no_grad():
            gpo(torch.randn(2, 400, 2), torch.full((2,), 400))
        assert gpo._table.shape == (1, 400)

    def test_follows_a_change_in_place(self, gpo):
        before = self.check(gpo)
        with torch.no_grad():
            gpo.linear.weight.mul_(-3.0)
        assert not torch.equal(self.check(gpo), before)

    def test_follows_loaded_weights(self, gpo):
        before = self.check(gpo)
        gpo.load_state_dict({k: -2 * v for k, v in gpo.state_dict().items()})
        assert not torch.equal(self.check(gpo), before)

    def test_follows_an_optimizer_that_writes_behind_autograd(self, gpo):
        before = self.check(gpo)
        gpo.train()
        gpo.linear.weight.data.mul_(-3.0)  # as ZeRO does: no version counter moves
        gpo.eval()
        assert not torch.equal(self.check(gpo), before)

    def test_follows_a_change_of_precision(self, gpo):
        self.check(gpo)
        gpo.double()
        with torch.no_grad():
            assert gpo._cached_table(torch.tensor([6]), 6)[0].dtype == torch.float64


def test_rows_on_a_cpu_are_the_distinct_lengths():
    lengths, rows = table_rows(torch.tensor([5, 2, 5, 9, 2]), 9)
    assert lengths.tolist() == [2, 5, 9]
    assert lengths[rows].tolist() == [5, 2, 5, 9, 2]


def test_rows_elsewhere_are_chosen_without_looking_at_the_lengths():
    # Reading a value of a meta tensor raises, as waiting for a GPU should.
    few = torch.ones(4, dtype=torch.int64, device="meta")
    assert [t.shape for t in table_rows(few, 9)] == [(4,), (4,)]
    many = torch.ones(20, dtype=torch.int64, device="meta")
    assert [t.shape for t in table_rows(many, 9)] == [(9,), (20,)]


def test_autocast_leaves_the_weights_alone():
    gpo = GPO()
    lengths = torch.tensor([2, 5])
    plain = gpo.weight_table(lengths, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gpo.weight_table(lengths, 5), plain)

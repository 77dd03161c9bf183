"""A bidirectional GRU that is fast on a CPU for few rows and many steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ROW_BLOCK = 16  # products of fewer columns than BLAS's block take twice as long


class BidirectionalGRU(nn.GRU):
    """One bidirectional layer: parameters, names and values of ``nn.GRU``; zero initial states.

    On a GPU this is cuDNN's GRU. On a CPU ``nn.GRU`` records some thirty operations per step for
    autograd, which for tens of rows cost far more than the arithmetic; there ``_Scan`` needs five
    forward and two backward.

    Args:
        input_size: channels of an input, C.
        hidden_size: channels of a direction's state, H.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, batch_first=True, bidirectional=True)

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        """Run both directions over ``inputs`` (R, K, C), a constant: no gradient reaches it.

        Returns:
            The states (2, R, K, H) of the forward and of the backward direction, both in the
            order of the inputs.
        """
        if inputs.is_cuda:
            return torch.stack(super().forward(inputs)[0].chunk(2, dim=-1))
        steps = inputs.permute(1, 2, 0)
        weight = torch.stack([self._scan_weight(""), self._scan_weight("_reverse")])
        states: Tensor = _Scan.apply(  # type: ignore[no-untyped-call]
            torch.stack([steps, steps.flip(0)], dim=1), weight
        )
        forward, backward = states.permute(1, 3, 0, 2).unbind()
        return torch.stack([forward, backward.flip(1)])

    def _scan_weight(self, direction: str) -> Tensor:
        """Lay one direction's parameters out as ``_Scan`` wants them, (4H, H + C + 1)."""
        of_state, of_input, state_bias, input_bias = (
            getattr(self, f"{name}_l0{direction}").unflatten(0, (3, self.hidden_size))
            for name in ("weight_hh", "weight_ih", "bias_hh", "bias_ih")
        )
        sigmoids = torch.cat(
            [of_state[:2], of_input[:2], (state_bias[:2] + input_bias[:2])[..., None]], dim=-1
        )
        state_term = torch.cat(
            [of_state[2], torch.zeros_like(of_input[2]), state_bias[2, :, None]], dim=-1
        )
        input_term = torch.cat(
            [torch.zeros_like(of_state[2]), of_input[2], input_bias[2, :, None]], dim=-1
        )
        return torch.cat([sigmoids.flatten(0, 1), state_term, input_term])


class _Scan(torch.autograd.Function):
    """D independent GRUs over the same number of steps, back-propagated by hand.

    Inputs (K, D, C, R), weight (D, 4H, H + C + 1); returns the states (K, D, H, R). A step's
    product of the weight with (state, input, 1) gives the arguments of the reset and update gates
    and the two terms of the new gate's, which stay apart because reset scales only the first.
    Rows come last so that a gate is one block of memory. The number of operations per step is
    what costs: whatever does not wait for the neighbouring step is done for all at once.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        steps, directions, channels, rows = inputs.shape
        width = weight.shape[1] // 4
        inputs = nn.functional.pad(inputs, (0, -rows % _ROW_BLOCK))
        ctx.rows, rows = rows, inputs.shape[3]
        operands = inputs.new_empty(steps + 1, directions, width + channels + 1, rows)
        operands[0, :, :width] = 0.0
        operands[:-1, :, width:-1] = inputs
        operands[:, :, -1] = 1.0
        products = inputs.new_empty(steps, directions, 4 * width, rows)
        gates = inputs.new_empty(steps, directions, 2 * width, rows)
        new = inputs.new_empty(steps, directions, width, rows)
        states = operands[:, :, :width]
        for (
            operand,
            state,
            after,
            product,
            gate_arguments,
            state_term,
            input_term,
            gate,
            reset,
            update,
            new_t,
        ) in zip(
            operands[:-1],
            states[:-1],
            states[1:],
            products,
            products[:, :, : 2 * width],
            products[:, :, 2 * width : 3 * width],
            products[:, :, 3 * width :],
            gates,
            gates[:, :, :width],
            gates[:, :, width:],
            new,
            strict=True,
        ):
            torch.bmm(weight, operand, out=product)
            torch.sigmoid(gate_arguments, out=gate)
            torch.addcmul(input_term, reset, state_term, out=new_t).tanh_()
            torch.lerp(new_t, state, update, out=after)
        ctx.save_for_backward(weight, operands, products, gates, new)
        return states[1:, :, :, : ctx.rows].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[None, Tensor]:
        weight, operands, products, gates, new = ctx.saved_tensors
        width = weight.shape[1] // 4
        before = operands[:-1, :, :width]
        state_term = products[:, :, 2 * width : 3 * width]
        reset, update = gates.split(width, dim=2)
        to_new = (1 - update) * (1 - new * new)
        # What a gradient of one in a state gives to the first three blocks of its product, and
        # (the fourth) to the previous state directly; the loop scales it by the actual gradient.
        flow = torch.cat(
            [
                to_new * state_term * reset * (1 - reset),
                (before - new) * update * (1 - update),
                to_new * reset,
                update,
            ],
            dim=2,
        )
        identity = torch.eye(width, dtype=new.dtype).expand(len(weight), -1, -1)
        back = torch.cat([weight[:, : 3 * width, :width].mT, identity], dim=2)
        total = nn.functional.pad(grad_states, (0, new.shape[3] - ctx.rows)).contiguous()
        later: Tensor | None = None
        for total_t, flow_t, by_block in zip(
            *(
                reversed(tensor.unbind())
                for tensor in (total, flow, flow.view(*flow.shape[:2], 4, width, -1))
            ),
            strict=True,
        ):
            if later is not None:
                total_t.baddbmm_(back, later)
            by_block.mul_(total_t.unsqueeze(1))
            later = flow_t
        flow[:, :, 3 * width :] = to_new * total
        grad_weight = torch.zeros_like(weight)
        for direction, grad in enumerate(grad_weight):
            grad.addbmm_(flow[:, direction], operands[:-1, direction].mT)
        return None, grad_weight

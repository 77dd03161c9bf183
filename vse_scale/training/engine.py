"""DeepSpeed behind four verbs: forward, backward, step, and the norm that the step saw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vse_scale.config import Config
from vse_scale.model.vse import VSEModel
from vse_scale.training.optim import apply_plan, build_optimizer
from vse_scale.training.schedule import StepPlan
from vse_scale.training.world import World


class Engine:
    """A VSEModel under DeepSpeed ZeRO, with its staged optimizer.

    DeepSpeed averages gradients over ranks, while the objective gives each rank the exact gradient
    for its own rows: ``backward`` multiplies by the number of ranks, so that what is clipped and
    applied is the gradient of the global loss.
    """

    def __init__(self, model: VSEModel, config: Config, world: World) -> None:
        import deepspeed

        self.model = model
        self._world = world
        self._stage = config.engine.zero_stage
        self._clip = config.optim.clip
        self.optimizer = build_optimizer(model.parameter_groups(), config.optim, world.device)
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=self.optimizer,
            config=_deepspeed_config(config, world),
            dist_init_required=False,
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model: (image, caption) embeddings of this rank's part of the batch."""
        images, captions = self.deepspeed(*inputs)
        return images, captions

    def backward(self, loss: Tensor) -> None:
        """Add this rank's part of the gradient of the global loss, reduced over ranks."""
        self.deepspeed.backward(loss * self._world.ranks)

    @contextmanager
    def one_reduction(self) -> Iterator[None]:
        """Reduce what several ``backward`` calls within the block add up to once, at its end."""
        # Stage 0 reduces after each call, which comes to the same: the mean over ranks of what is
        # the mean already is itself.
        if self._stage == 0:
            yield
        else:
            with self.deepspeed.coalesce_grad_reduction():
                yield

    def step(self, plan: StepPlan) -> float:
        """Apply ``plan``'s rates and freezing, and update; return the gradient's norm.

        The norm is that of the whole gradient before clipping, equal on all ranks. Where it is not
        finite nothing is updated on any rank.
        """
        apply_plan(self.optimizer, plan)
        if self._stage == 0:
            return self._step_unsharded()
        self.deepspeed.step()
        # ZeRO leaves the update out by itself where the norm is not finite, and reports inf.
        return float(self.deepspeed.get_global_grad_norm())

    def _step_unsharded(self) -> float:
        # Stage 0 neither reports a norm nor looks at it; its gradients are whole on every rank.
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            return norm
        if self._clip and norm > self._clip:
            torch._foreach_mul_(gradients, self._clip / (norm + 1e-6))
        self.deepspeed.step()
        return norm

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Within the block ``model`` holds whole parameters, which stage 3 spreads over ranks."""
        import deepspeed

        spread = list(self.model.parameters()) if self._stage == 3 else []
        with deepspeed.zero.GatheredParameters(spread, enabled=bool(spread)):
            yield

    def save(self, folder: str, tag: str) -> None:
        """Write this engine's state below ``folder / tag``; returns when every rank has."""
        self.deepspeed.save_checkpoint(folder, tag=tag, save_latest=False)
        dist.barrier()

    def load(self, folder: str, tag: str) -> None:
        """Read the state that ``save`` wrote, on the same number of ranks."""
        self.deepspeed.load_checkpoint(folder, tag=tag)


def autocast_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """Return what products are computed in, or None for float32 throughout."""
    wanted = config.engine.precision
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else None


def _deepspeed_config(config: Config, world: World) -> dict[str, Any]:
    dtype = autocast_dtype(config, world.device)
    return {
        "train_batch_size": config.data.global_batch,
        "train_micro_batch_size_per_gpu": config.data.global_batch // world.ranks,
        "gradient_accumulation_steps": 1,
        # Stage 0 is clipped above, where its norm is known.
        "gradient_clipping": config.optim.clip if config.engine.zero_stage else 0.0,
        "zero_optimization": {"stage": config.engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        # Autocast keeps float32 master weights exact; DeepSpeed's own bf16 mode starts from
        # rounded ones and is off in parts that move slowly.
        "torch_autocast": {"enabled": dtype is not None, "dtype": "bfloat16"},
        "steps_per_print": 10**9,
    }

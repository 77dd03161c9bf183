"""DeepSpeed behind four verbs: forward, backward, step, and the norm that the step saw."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vse_scale.config import Config
from vse_scale.data.cache_files import own_compiled_code
from vse_scale.model.adapters import trained_numbers
from vse_scale.model.vse import VSEModel
from vse_scale.objective.base import Objective
from vse_scale.training.average import Average
from vse_scale.training.learned import LearnedNumbers
from vse_scale.training.optim import apply_plan, build_optimizer
from vse_scale.training.schedule import StepPlan
from vse_scale.training.snapshot import Share
from vse_scale.training.state import SharedTensors
from vse_scale.world.join import bound_waits
from vse_scale.world.processes import World

LARGEST_BUCKET = 500_000_000  # numbers that are reduced at once, DeepSpeed's default


class Engine:
    """A VSEModel under DeepSpeed ZeRO, with its staged optimizer.

    DeepSpeed averages gradients over ranks, while the objective gives each rank the exact gradient
    for its own rows: ``backward`` multiplies by the number of ranks, so that the
    gradient of the global loss is clipped and applied.

    Attributes:
        learned: the objective's own numbers, which need no DeepSpeed.
    """

    def __init__(self, model: VSEModel, config: Config, world: World, objective: Objective) -> None:
        import deepspeed

        self.model = model
        self.learned = LearnedNumbers(objective, config.optim)
        self._world = world
        self._stage = config.engine.zero_stage
        self._clip = config.optim.clip
        # Stage 3 takes the model's own weights apart; see `whole_model`.
        self._whole = copy.deepcopy(model).cpu() if self._stage == 3 else model
        self._average = Average(model, config.optim.average) if config.optim.average else None
        if config.engine.activation_checkpointing:
            model.recompute_activations()
        if config.engine.compile:
            own_compiled_code()
            model.compile_encoders()
        self.optimizer = build_optimizer(
            model.parameter_groups(), config.optim, world.device, model.layers_above()
        )
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=self.optimizer,
            config=_deepspeed_config(config, world, trained_numbers(model)),
            dist_init_required=False,
        )
        bound_waits(config.engine.timeout_seconds)
        # Now rather than at the first update, so that a checkpoint can be restored into it and
        # running out of memory surfaces here, not at step 1.
        for _, master in self._masters():
            self.optimizer.allocate_state(master)
        if self._stage in (1, 2):
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the model: (image, caption) embeddings of this rank's part of the batch."""
        images, captions = self.deepspeed(*inputs)
        return images, captions

    def backward(self, loss: Tensor) -> None:
        """Add this rank's part of the gradient of the global loss, reduced over ranks."""
        self.deepspeed.backward(loss * self._world.ranks)

    @contextmanager
    def one_reduction(self) -> Iterator[None]:
        """Reduce the sum of several ``backward`` calls within the block once, at its end."""
        # Stage 0 reduces after each call. That gives the same: the mean over ranks of a mean over
        # ranks is itself.
        if self._stage == 0:
            yield
        else:
            with self.deepspeed.coalesce_grad_reduction():
                yield

    def step(self, plan: StepPlan) -> float:
        """Apply ``plan``'s rates and freezing, and update; return the gradient's norm.

        The norm is that of the whole gradient before clipping, equal on all ranks. If it is not
        finite, nothing is updated on any rank.
        """
        apply_plan(self.optimizer, plan)
        if self._stage == 0:
            norm = self._step_unsharded()
        else:
            self.deepspeed.step()
            # ZeRO leaves the update out by itself where the norm is not finite, and reports inf.
            norm = float(self.deepspeed.get_global_grad_norm())
        if self._average is not None and math.isfinite(norm):
            self._average.update(self.model)
        return norm

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
    def whole_model(self) -> Iterator[VSEModel]:
        """Yield a model with the current weights that a rank can use without the others.

        Up to stage 3 that is ``model``. Under stage 3 a pass through ``model`` gathers weights
        layer by layer, and would wait for ranks that evaluate fewer batches; there it is a copy,
        on the device for as long as the block lasts. Every rank enters together. Where weights are
        averaged, it is the model of the average.
        """
        if self._average is not None:
            yield self._average.with_buffers_of(self.model)
            return
        if self._stage < 3:
            yield self.model
            return
        with torch.no_grad():
            own = dict(self.model.named_parameters())
            for name, parameter in self._whole.named_parameters():
                parameter.copy_(self._weight(own[name]))
            buffers = dict(self.model.named_buffers())
            for name, buffer in self._whole.named_buffers():
                buffer.copy_(buffers[name])
        try:
            yield self._whole.to(self._world.device)
        finally:
            self._whole.cpu()

    def shares(self) -> Iterator[tuple[str, Share]]:
        """Yield what this rank holds of the state, by name; the main rank names every tensor.

        The state is ``model.NAME`` for weights and buffers, ``exp_avg.NAME`` and so on for the
        optimizer's moments, float32, and ``step.GROUP``: whole tensors under any layout. What the
        main rank holds whole no other yields.
        """
        main = self._world.main
        for name, parameter in self.model.named_parameters():
            if main or self._stage == 3:
                yield f"model.{name}", self._weight_share(parameter)
            for moment in self.optimizer.moments if parameter.requires_grad else ():
                if main or self._stage:
                    yield f"{moment}.{name}", self._moment_share(parameter, moment)
        if main:
            yield from ((name, Share(value, value.shape)) for name, value in self._rest())

    def _rest(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the part of the state that every rank holds alike."""
        for name, buffer in self.model.named_buffers():
            yield f"model.{name}", buffer
        for group, master in self._masters():
            if "step" in self.optimizer.state[master]:
                # The same for all of a part.
                yield f"step.{group}", self.optimizer.state[master]["step"]
        for part in (self.learned, self._average):
            if part is not None:
                yield from part.state().items()

    def restore(self, tensors: SharedTensors) -> None:
        """Restore the optimizer's part of `shares`, from any layout.

        The weights are the model's, and were there before the engine was built.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        for name, parameter in self.model.named_parameters():
            for moment in self.optimizer.moments if parameter.requires_grad else ():
                # Stage 3 leaves an empty tensor where the parameter was.
                shape = getattr(parameter, "ds_shape", parameter.shape)
                value = tensors.get(f"{moment}.{name}", shape)
                if self._stage == 0:
                    self.optimizer.state[parameter][moment].copy_(value)
                else:
                    safe_set_full_optimizer_state(parameter, value, moment)
        steps: dict[str, Tensor] = {}
        for group, master in self._masters():
            if "step" in self.optimizer.state[master]:
                if group not in steps:
                    steps[group] = tensors.get(f"step.{group}", torch.Size())
                self.optimizer.state[master]["step"].copy_(steps[group])
        self.learned.restore(tensors)
        if self._average is not None:
            self._average.restore(tensors)

    def _masters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that the optimizer updates, each with its part of the model.

        Parts are frozen and counted whole, however the optimizer divides them by layer and decay.
        """
        names = [group["name"] for group in self.optimizer.param_groups]
        if self._stage == 0:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    yield group["name"], parameter
        elif self._stage < 3:
            yield from zip(
                names, self.deepspeed.optimizer.single_partition_of_fp32_groups, strict=True
            )
        else:
            zero = self.deepspeed.optimizer
            for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
                yield names[zero.sub_group_to_group_id[number]], flat

    def _weight(self, parameter: Tensor) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        if self._stage < 3:
            return parameter
        if not parameter.requires_grad:  # there is no master of it
            from deepspeed.runtime.zero import GatheredParameters

            with GatheredParameters([parameter]):
                return parameter.detach().clone()
        whole: Tensor = safe_get_full_fp32_param(parameter)
        return whole

    def _weight_share(self, parameter: Tensor) -> Share:
        from deepspeed.utils import safe_get_local_fp32_param

        if self._stage < 3:
            return Share(parameter, parameter.shape)
        if not parameter.requires_grad:  # there is no master of it
            return self._partition(parameter, parameter.ds_tensor)  # type: ignore[attr-defined]
        return self._partition(parameter, safe_get_local_fp32_param(parameter))

    def _moment_share(self, parameter: Tensor, name: str) -> Share:
        from deepspeed.utils import safe_get_local_optimizer_state

        if self._stage == 0:
            return Share(self.optimizer.state[parameter][name], parameter.shape)
        if self._stage == 3:
            return self._partition(parameter, safe_get_local_optimizer_state(parameter, name))
        fragment = parameter._hp_mapping  # type: ignore[attr-defined]
        if fragment is None:  # other ranks update it
            return Share(torch.empty(0), parameter.shape)
        place = fragment.lp_fragment_address
        return Share(fragment.get_optim_state_fragment(name), parameter.shape, place.start)

    def _partition(self, parameter: Tensor, values: Tensor) -> Share:
        """Return this rank's of the equal parts that stage 3 cuts ``parameter`` into.

        The last of them are padded.
        """
        shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]
        start = min(self._world.rank * values.numel(), shape.numel())
        return Share(values[: shape.numel() - start], shape, start)


def autocast_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast products, or None for float32 throughout."""
    wanted = config.engine.precision
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else None


def _deepspeed_config(config: Config, world: World, trained: int) -> dict[str, Any]:
    dtype = autocast_dtype(config, world.device)
    return {
        "train_batch_size": config.data.global_batch,
        "train_micro_batch_size_per_gpu": config.data.global_batch // world.ranks,
        "gradient_accumulation_steps": 1,
        # Stage 0 is clipped above, where its norm is known.
        "gradient_clipping": config.optim.clip if config.engine.zero_stage else 0.0,
        "zero_optimization": {
            "stage": config.engine.zero_stage,
            # Its default is a buffer of 2 GB, three times the weights of a ResNet-152 with BERT.
            "reduce_bucket_size": min(trained, LARGEST_BUCKET),
        },
        "zero_allow_untested_optimizer": True,
        # Autocast keeps float32 master weights exact; DeepSpeed's own bf16 mode starts from
        # rounded ones and is off in parts that move slowly.
        "torch_autocast": {"enabled": dtype is not None, "dtype": "bfloat16"},
        "steps_per_print": 10**9,
    }

"""The published algorithm in plain torch, one process, written from its description alone.

Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding", CVPR 2021, and
Faghri et al., "VSE++", BMVC 2018. It shares with the library only the two encoders' layers, where a
grid's are normalised one by one, and the names of parameters; pooling, augmentation of grids, loss,
freezing, rates and clipping are its own.
Tests hold the library against it, and the benchmark measures it.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from vse_scale.data.loader import Batch
from vse_scale.model.pooling.gpo import GPO
from vse_scale.model.towers.batchnorm import FrozenBatchNorm2d, ScaledConv2d
from vse_scale.model.vse import VSEModel

MARGIN, CLIP, WEIGHT_DECAY = 0.2, 2.0, 1e-4


class PlainGPO(nn.Module):
    """Pool by sorting, with weights from a recurrent network over position codes."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(32, 1, bias=False)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``features`` (B, K, D), the first ``lengths`` (B,) of each, into (B, D)."""
        longest, device = int(lengths.max()), features.device
        features = features[:, :longest]
        present = torch.arange(longest, device=device) < lengths[:, None]
        code = torch.zeros(longest, 32, device=device)
        position = torch.arange(longest, device=device)[:, None].float()
        channel = torch.arange(0, 32, 2, device=device).float()
        rate = torch.exp(channel * -(math.log(10000.0) / 32))
        code[:, 0::2], code[:, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
        packed = pack_padded_sequence(
            code.expand(len(features), -1, -1), lengths.cpu(), batch_first=True,
            enforce_sorted=False,
        )  # fmt: skip
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        scores = self.linear((states[..., :32] + states[..., 32:]) / 2)[..., 0]
        weights = torch.softmax(scores.masked_fill(~present, -10000) / 0.1, dim=1)
        ordered = features.masked_fill(~present[..., None], -10000).sort(1, descending=True)[0]
        return (ordered.masked_fill(~present[..., None], 0) * weights[..., None]).sum(1)


class PlainBatchNorm2d(FrozenBatchNorm2d):
    """Batch normalisation by stored statistics, a layer of its own after the convolution."""

    def forward(self, inputs: Tensor, convolution: ScaledConv2d | None = None) -> Tensor:
        """Normalise ``inputs`` (N, C, H, W), or what ``convolution`` makes of them."""
        return super().forward(inputs if convolution is None else convolution(inputs))


class PlainModel(nn.Module):
    """The plain formulation of a model, with its encoders and a copy of all of its weights.

    Args:
        model: a grid model with a transformer for text.
        our_pooling: whether to pool with the library's `GPO` instead of the published formulation,
            which shows the part of a difference that is due to pooling.
    """

    def __init__(self, model: VSEModel, *, our_pooling: bool = False) -> None:
        super().__init__()
        self.image, self.text = nn.Module(), nn.Module()
        for side, kept in (("image", "backbone"), ("text", "encoder")):
            own, theirs = getattr(self, side), getattr(model, side)
            encoder = copy.deepcopy(getattr(theirs, kept))
            for layer in encoder.modules():
                if type(layer) is FrozenBatchNorm2d:
                    layer.__class__ = PlainBatchNorm2d
            setattr(own, kept, encoder)
            own.projection = nn.Linear(*reversed(theirs.projection.weight.shape))
            own.pool = GPO() if our_pooling else PlainGPO()
        self.load_state_dict(model.state_dict())

    def forward(self, batch: Batch, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a batch: (images, captions), both (P, D), of unit length."""
        images = self.encode_images(pixels, batch.cell_draws)
        return images[batch.image_rows], self.encode_captions(batch.token_ids, batch.token_lengths)

    def encode_images(self, pixels: Tensor, random_numbers: Tensor | None = None) -> Tensor:
        """Embed normalised ``pixels`` (N, 3, S, S) as (N, D).

        Args:
            pixels: of a batch.
            random_numbers: (N, 1 + cells) in [0, 1), which drop cells of the grid; None keeps all.
        """
        image: Any = self.image
        grid = image.backbone(pixels).permute(0, 2, 3, 1).flatten(1, 2)
        kept = list(grid)
        # The published code chooses the dropped cells on the CPU, image by image.
        rows = [] if random_numbers is None else random_numbers.tolist()
        for row, (share, *cells) in enumerate(rows):
            if share > 0.2:
                keep = [cell for cell, number in enumerate(cells) if number >= 0.2 * share]
                kept[row] = kept[row][torch.tensor(keep, device=grid.device)]
        lengths = torch.tensor([len(cells) for cells in kept], device=pixels.device)
        projected = image.projection(pad_sequence(kept, batch_first=True))
        return _unit_length(image.pool(projected, lengths))

    def encode_captions(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Embed ``token_ids`` (P, L) of ``lengths`` (P,) as (P, D)."""
        text: Any = self.text
        present = torch.arange(token_ids.shape[1], device=token_ids.device) < lengths[:, None]
        hidden = text.encoder(token_ids, attention_mask=present.long()).last_hidden_state
        return _unit_length(text.pool(text.projection(hidden), lengths))


def _unit_length(vectors: Tensor) -> Tensor:
    unit: Tensor = vectors / (vectors.norm(dim=1, keepdim=True) + 1e-8)
    return unit


def plain_loss(images: Tensor, captions: Tensor, ids: Tensor, *, hardest: bool) -> Tensor:
    """Return the summed hinge; captions of one image are never each other's negatives."""
    scores = images @ captions.T
    positive = scores.diagonal()[:, None]
    total = scores.new_zeros(())
    for anchors in (scores, scores.T):
        hinge = (MARGIN + anchors - positive).clamp(min=0)
        hinge = hinge.masked_fill(ids[:, None] == ids, 0)
        total = total + (hinge.max(1)[0] if hardest else hinge).sum()
    return total


class PlainTrainer:
    """Train with the backbone frozen in epoch 0, and on the hardest negatives after the warm-up.

    Args:
        model: model whose encoders are shared and whose weights are copied.
        rate: learning rate of all parameters.
        steps_per_epoch: length of the schedule's epochs.
        drop_epoch: first epoch at a tenth of the rate.
        warmup_epochs: epochs on all violations, followed by an epoch of ramp; with 0 there is
            neither, and the backbone trains from the start.
        our_pooling: as in `PlainModel`.
        dtype: of autocast; None: float32 throughout, as published.
    """

    def __init__(
        self,
        model: VSEModel,
        rate: float,
        steps_per_epoch: int,
        drop_epoch: int = 15,
        warmup_epochs: int = 1,
        *,
        our_pooling: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        device = next(model.parameters()).device
        self.model = PlainModel(model, our_pooling=our_pooling).to(device).train()
        self.spec = model.image_spec
        self.rate, self.drop_epoch, self.warmup_epochs = rate, drop_epoch, warmup_epochs
        self.steps_per_epoch = steps_per_epoch
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY
        )
        self._autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from weights and moments by name."""
        weights = {name: state[f"model.{name}"] for name in self.model.state_dict()}
        self.model.load_state_dict(weights)
        for name, parameter in self.model.named_parameters():
            group = {"image.backbone": "backbone.1", "text.encoder": "text"}
            of = next((g for prefix, g in group.items() if name.startswith(prefix)), "heads")
            self.optimizer.state[parameter] = {
                "step": state[f"step.{of}"].clone(),
                **{key: state[f"{key}.{name}"].clone() for key in ("exp_avg", "exp_avg_sq")},
            }

    def step(self, batch: Batch, number: int) -> Tensor:
        """Train on one batch; return the loss, unscaled."""
        loss = self.backward(batch, number)
        self.update()
        return loss

    def backward(self, batch: Batch, number: int) -> Tensor:
        """Set the rates of step ``number`` and compute the gradient; return the loss, unscaled."""
        epoch, index = divmod(number, self.steps_per_epoch)
        backbone: Any = self.model.image.backbone
        backbone.requires_grad_(epoch > 0 or self.warmup_epochs == 0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * (0.1 if epoch >= self.drop_epoch else 1.0)
        with self._autocast:
            images, captions = self.model(batch, self.spec.normalise(batch.images))
        loss = plain_loss(
            images.float(), captions.float(), batch.image_ids, hardest=epoch >= self.warmup_epochs
        )
        self.optimizer.zero_grad()
        ramping = epoch == self.warmup_epochs > 0
        (loss * (index / self.steps_per_epoch if ramping else 1.0)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self) -> None:
        """Clip and apply the gradient."""
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()

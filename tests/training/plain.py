"""The published algorithm in plain torch, one process, written from its description alone.

Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding", CVPR 2021, and
Faghri et al., "VSE++", BMVC 2018. It shares with the library only the two encoders' layers and the
names of parameters; pooling, augmentation of grids, loss, freezing, rates and clipping are its own.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

MARGIN, CLIP, WEIGHT_DECAY = 0.2, 2.0, 1e-4


class PlainGPO(nn.Module):
    """Pool by sorting, with weights from a recurrent network over position codes."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(32, 1, bias=False)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        longest = int(lengths.max())
        features = features[:, :longest]
        present = torch.arange(longest) < lengths[:, None]
        code = torch.zeros(longest, 32)
        position = torch.arange(longest)[:, None].float()
        rate = torch.exp(torch.arange(0, 32, 2).float() * -(math.log(10000.0) / 32))
        code[:, 0::2], code[:, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
        packed = pack_padded_sequence(
            code.expand(len(features), -1, -1), lengths, batch_first=True, enforce_sorted=False
        )
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        scores = self.linear((states[..., :32] + states[..., 32:]) / 2)[..., 0]
        weights = torch.softmax(scores.masked_fill(~present, -10000) / 0.1, dim=1)
        ordered = features.masked_fill(~present[..., None], -10000).sort(1, descending=True)[0]
        return (ordered.masked_fill(~present[..., None], 0) * weights[..., None]).sum(1)


class PlainModel(nn.Module):
    """Takes over the encoders of a model, and copies all of its weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.image, self.text = nn.Module(), nn.Module()
        for side, kept in (("image", "backbone"), ("text", "encoder")):
            own, theirs = getattr(self, side), getattr(model, side)
            setattr(own, kept, getattr(theirs, kept))
            own.projection = nn.Linear(*reversed(theirs.projection.weight.shape))
            own.pool = PlainGPO()
        self.load_state_dict(model.state_dict())

    def forward(self, batch, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grid = self.image.backbone(pixels).permute(0, 2, 3, 1).flatten(1, 2)
        kept = []
        for cells, draws in zip(grid, batch.cell_draws, strict=True):
            share = float(draws[0])
            if share > 0.2:
                cells = cells[draws[1:] >= 0.2 * share]
            kept.append(cells)
        lengths = torch.tensor([len(cells) for cells in kept])
        projected = self.image.projection(pad_sequence(kept, batch_first=True))
        images = self.image.pool(projected, lengths)
        present = torch.arange(batch.token_ids.shape[1]) < batch.token_lengths[:, None]
        hidden = self.text.encoder(batch.token_ids, attention_mask=present.long())
        captions = self.text.pool(
            self.text.projection(hidden.last_hidden_state), batch.token_lengths
        )
        images, captions = (v / (v.norm(dim=1, keepdim=True) + 1e-8) for v in (images, captions))
        return images[batch.image_rows], captions


def plain_loss(
    images: torch.Tensor, captions: torch.Tensor, ids: torch.Tensor, *, hardest: bool
) -> torch.Tensor:
    """The summed hinge; an image's captions are never each other's negatives."""
    scores = images @ captions.T
    positive = scores.diagonal()[:, None]
    total = torch.zeros(())
    for anchors in (scores, scores.T):
        hinge = (MARGIN + anchors - positive).clamp(min=0)
        hinge = hinge.masked_fill(ids[:, None] == ids, 0)
        total = total + (hinge.max(1)[0] if hardest else hinge).sum()
    return total


class PlainTrainer:
    """Epoch 0: the backbone frozen. After the warm-up the hardest negative alone, ramped in."""

    def __init__(
        self,
        model: nn.Module,
        rate: float,
        steps_per_epoch: int,
        drop_epoch: int = 15,
        warmup_epochs: int = 1,
    ) -> None:
        self.model = PlainModel(model).train()
        self.spec = model.image_spec
        self.rate, self.drop_epoch, self.warmup_epochs = rate, drop_epoch, warmup_epochs
        self.steps_per_epoch = steps_per_epoch
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY
        )

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from weights and moments by name."""
        weights = {name: state[f"model.{name}"] for name in self.model.state_dict()}
        self.model.load_state_dict(weights)
        for name, parameter in self.model.named_parameters():
            group = {"image.backbone": "backbone.1", "text.encoder": "text"}
            of = next((g for prefix, g in group.items() if name.startswith(prefix)), "heads")
            self.optimizer.state[parameter] = {
                "step": state[f"step.{of}"].clone(),
                **{key: state[f"{key}.{name}"].clone() for key in ("exp_avg", "exp_avg_sq")},
            }

    def step(self, batch, number: int) -> dict:
        epoch, index = divmod(number, self.steps_per_epoch)
        self.model.image.backbone.requires_grad_(epoch > 0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * (0.1 if epoch >= self.drop_epoch else 1.0)
        images, captions = self.model(batch, self.spec.normalise(batch.images))
        loss = plain_loss(images, captions, batch.image_ids, hardest=epoch >= self.warmup_epochs)
        self.optimizer.zero_grad()
        ramp = index / self.steps_per_epoch if epoch == self.warmup_epochs else 1.0
        (loss * ramp).backward()
        gradient = {
            n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None
        }
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return {"loss": loss.item(), "gradient": gradient}

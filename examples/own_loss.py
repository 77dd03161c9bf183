"""A loss of your own: the cross-entropy of each image's caption among all others.

PYTHONPATH=examples vse-scale train --config small objective.kind=own_loss:Softmax
    objective.warmup_epochs=null objective.ramp=null objective.temperature=0.05
"""

from dataclasses import dataclass

import torch

from vse_scale.objective import Objective, ObjectiveResult
from vse_scale.world.gather import Exchange


@dataclass(frozen=True)
class Settings:  # the keys of the section `objective:`
    kind: str
    temperature: float = 0.1


class Softmax(Objective):
    Settings = Settings

    def compute(self, images, captions, *, ids, valid, phase, group=None):
        exchange = Exchange(group, images.device)  # every rank computes the whole loss
        all_images = gathered(images.repeat_interleave(len(ids) // len(images), 0), exchange)
        ids = exchange.gather(torch.where(valid, ids, -1))  # -1 is padding
        scores = all_images @ gathered(captions, exchange).T / self.settings.temperature
        pairs = torch.eye(len(ids), device=ids.device, dtype=torch.bool)
        negatives = (ids >= 0) & (ids[:, None] != ids)  # not of the same image
        among = scores.masked_fill(~(pairs | negatives), -torch.inf).logsumexp(1)
        return ObjectiveResult((among - scores.diagonal())[ids >= 0].mean(), exchange)

    def gathered_bytes(self, phase, *, images, captions, embed_dim):  # for `vse-scale plan`
        return captions * embed_dim * 4, captions * 8, captions * embed_dim * 4


def gathered(rows, exchange):  # of all ranks; this rank's own carry the gradient
    whole, first = exchange.gather(rows.detach()), exchange.rank * len(rows)
    return torch.cat([whole[:first], rows, whole[first + len(rows) :]])

"""The page that follows a batch gives the shapes that a batch has."""

from __future__ import annotations

from pathlib import Path

import torch
from documents import ROOT, text_of

from vse_scale.config import Config
from vse_scale.data.loader import Loader
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.training.setup import make_plan


def shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))


def test_the_shapes_of_a_batch_are_those_of_the_page(scenes: Path) -> None:
    recipe = str(ROOT / "launch" / "recipes" / "demo.yaml")
    config = Config.load(recipe, [f"data.path={scenes}"])
    dataset = ShardDataset(scenes, "train")
    plan = make_plan(config, dataset)
    captions = (c.text for image in range(len(dataset)) for c in dataset.record(image).captions)
    tokenizer = CaptionTokenizer.train(captions, config.model.text.vocab_size)
    model = VSEModel(config.model, tokenizer.vocab_size, tokenizer.pad_id).train()
    loader = Loader(
        dataset, plan, tokenizer, model.input_spec, config.data,
        seed=0, rank=1, ranks=2, device=torch.device("cpu"), grid_cells=model.grid_cells,
    )  # fmt: skip
    with loader, torch.no_grad():
        batch = next(loader)
        pixels = model.image_spec.normalise(batch.images)
        cells = model.image.backbone(pixels, None).flatten(2).transpose(1, 2)
        hidden = model.text.encoder(input_ids=batch.token_ids).last_hidden_state
        images, captions_ = model(pixels, batch.token_ids, batch.token_lengths, batch.cell_draws)
    tokens = batch.token_ids.shape[1]
    both = torch.cat([images, captions_])  # an image's row travels once
    page, drawing = text_of("docs/architecture.md"), text_of("docs/images/batch.svg")
    for found, drawn in {
        str(plan.batch(0, 0).pairs.shape): True,
        str(plan.part(0, 0, 1, 2).pairs.shape): True,
        f"{shape(batch.images)} {str(batch.images.dtype).removeprefix('torch.')}": True,
        shape(batch.token_ids).replace(f" {tokens}", " L"): True,
        shape(batch.image_ids): True,
        shape(batch.cell_draws): False,
        shape(pixels): False,
        shape(cells): True,
        shape(hidden).replace(f" {tokens},", " L,"): True,
        shape(images): True,
        shape(captions_): True,
        shape(both): True,
    }.items():
        assert found in page, f"docs/architecture.md lacks {found}"
        assert not drawn or found in drawing, f"docs/images/batch.svg lacks {found}"
    # Embeddings and an id a pair; two integers a pair, and five sums.
    sent = both.nbytes + batch.image_ids.nbytes + (2 * len(captions_) + 5) * 8
    assert f"{sent:,} bytes" in page
    # 12,500 scenes are drawn by `make demo`, 500 of them to validate on.
    steps = 12_000 // (config.data.global_batch // config.data.captions_per_image)
    assert f"{steps} batches an epoch" in page
    assert f"Every {config.eval.every_steps} steps" in page

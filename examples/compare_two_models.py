"""Compare two models on one split: their recalls, and the photos of which one alone is right.

python examples/compare_two_models.py MODEL MODEL DATA SPLIT
"""

import sys

import torch

from vse_scale import embed, evaluate
from vse_scale.data.shards import ShardDataset

if __name__ == "__main__":
    *folders, data, split = sys.argv[1:]
    dataset = ShardDataset(data, split)
    records = [dataset.record(row) for row in range(len(dataset))]
    photo_of = torch.tensor([row for row, record in enumerate(records) for _ in record.captions])
    right = []
    for folder in folders:
        print(f"{folder}\n{evaluate(folder, data, split).table()}\n")
        photos, captions = embed(folder, data=data, split=split)
        # The photo that is most similar to each caption.
        found = (captions @ photos.T).argmax(1)
        right.append(found == photo_of)
    for folder, own, other in zip(folders, right, reversed(right), strict=True):
        print(f"only {folder} finds the photo of {int((own & ~other).sum())} captions")

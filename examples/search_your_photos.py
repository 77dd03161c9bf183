"""Find the photos in a folder that fit a description best.

python examples/search_your_photos.py MODEL PHOTOS "a dog in the snow" ["two cups" ...]

MODEL is the folder of a run, or of a model. For many photos, `vse-scale embed` and `vse-scale
search` keep the embeddings on disk.
"""

import sys
from pathlib import Path

from vse_scale import VSEModel

if __name__ == "__main__":
    folder, photos, *queries = sys.argv[1:]
    files = sorted(f for f in Path(photos).rglob("*") if f.suffix.lower() in (".jpg", ".png"))
    model = VSEModel.from_pretrained(folder)
    scores = model.similarity(images=files, texts=queries)  # (photos, queries)
    for query, column in zip(queries, scores.T, strict=True):
        print(query)
        best = column.topk(min(5, len(files)))
        for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {score:.3f}  {files[row]}")

"""Train on your own photos, then rank the validation split.

python examples/train_on_your_photos.py CAPTIONS.jsonl PHOTOS DATA RUN [section.key=value ...]

CAPTIONS.jsonl has a line per photo, its path within PHOTOS:
{"image": "0001.jpg", "captions": ["A dog runs in the snow."], "split": "train"}
"""

import sys
from pathlib import Path

from vse_scale import Config, evaluate, train
from vse_shards.build import BuildOptions, build
from vse_shards.sources.jsonl import JsonlSource

RECIPE = Path(__file__).parents[1] / "launch" / "recipes" / "small.yaml"

if __name__ == "__main__":
    captions, photos, data, run, *overrides = sys.argv[1:]
    # Every photo is decoded once, strictly; broken ones are listed in DATA/rejects.jsonl.
    build(JsonlSource(captions, photos), data, BuildOptions())
    config = Config.load(str(RECIPE), [f"data.path={data}", f"run.dir={run}", *overrides])
    train(config)  # stopped and called again, it goes on
    print(evaluate(run, data, split="val").table())

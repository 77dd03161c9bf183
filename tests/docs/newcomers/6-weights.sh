# docs/recipes.md, "Starting from CLIP": both towers of a CLIP, trained further on my photos.
vse-scale train --config clip model.image.path=weights/clip model.text.path=weights/clip model.image.size=32 data.path=data/mine data.global_batch=16 data.captions_per_image=2 engine.precision=float32 train.max_steps=2 run.dir=runs/clip

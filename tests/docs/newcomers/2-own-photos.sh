# README, "Your own images and captions": from photos to a trained model and its report.
vse-shards build --source jsonl --input captions.jsonl --images . --out data/mine
vse-shards preview data/mine --out sample.html
vse-scale train --config tiny.yaml
vse-scale eval --model runs/mine --data data/mine --split val
vse-scale report runs/mine

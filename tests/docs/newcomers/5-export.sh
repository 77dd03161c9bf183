# docs/interchange.md: a folder for ONNX Runtime, transformers and sentence-transformers.
vse-scale export --model runs/mine --out models/mine --onnx

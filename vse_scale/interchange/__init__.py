"""Models that come and go: published checkpoints, ONNX graphs, model cards."""

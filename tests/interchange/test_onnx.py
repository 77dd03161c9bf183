"""The graphs are run here by onnxruntime, on other sizes than the export itself compares."""

import sys

import numpy as np
import pytest
import torch

from vse_scale.config import ModelConfig
from vse_scale.errors import ModelError
from vse_scale.interchange.onnx import export_onnx
from vse_scale.model.towers.bigru import RaggedGRU
from vse_scale.model.vse import VSEModel


@pytest.fixture
def runtime():
    pytest.importorskip("onnxscript", reason="needs vse-scale[onnx]")
    return pytest.importorskip("onnxruntime", reason="needs vse-scale[onnx]")


def run(runtime, path, **inputs):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(inputs)
    return session.run(["embeddings"], {k: v.numpy() for k, v in inputs.items()})[0]


@pytest.mark.slow
def test_a_grid_model(runtime, small_model, tmp_path):
    pool = small_model.image.pool
    export_onnx(small_model, tmp_path)
    assert small_model.image.pool is pool
    pixels = torch.randn(5, 3, 32, 32)
    ids, lengths = torch.randint(0, 50, (4, 20)), torch.tensor([20, 1, 7, 2])
    with torch.no_grad():
        images = small_model.encode_images(pixels)
        captions = small_model.encode_captions(ids, lengths)
    found = run(runtime, tmp_path / "image_encoder.onnx", pixels=pixels)
    np.testing.assert_allclose(found, images, rtol=0, atol=1e-5)
    found = run(runtime, tmp_path / "text_encoder.onnx", token_ids=ids, lengths=lengths)
    np.testing.assert_allclose(found, captions, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_weights_of_convolutions_are_constants(runtime, small_model, tmp_path):
    """Their normalisation is in them; no runtime has to multiply them for each batch."""
    onnx = pytest.importorskip("onnx", reason="needs vse-scale[onnx]")
    export_onnx(small_model, tmp_path)
    graph = onnx.load(tmp_path / "image_encoder.onnx").graph
    constants = {one.name for one in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    assert all(constants >= set(node.input[1:]) for node in convolutions)
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)


@pytest.mark.slow
def test_a_region_model(runtime, small_config, tmp_path):
    image = {"backbone": "regions", "region_channels": 12, "max_regions": 11}
    config = ModelConfig.model_validate(small_config.to_dict() | {"image": image})
    model = VSEModel(config, vocab_size=50, pad_id=0).eval()
    export_onnx(model, tmp_path)
    regions, lengths = torch.randn(4, 11, 12), torch.tensor([11, 1, 5, 2])
    with torch.no_grad():
        expected = model.encode_images(regions, lengths)
    found = run(runtime, tmp_path / "image_encoder.onnx", regions=regions, lengths=lengths)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["first", "max", "mean"])
def test_every_pooling(runtime, small_config, tmp_path, pool):
    config = ModelConfig.model_validate(small_config.to_dict() | {"pool": pool})
    model = VSEModel(config, vocab_size=50, pad_id=0).eval()
    export_onnx(model, tmp_path)
    pixels = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = model.encode_images(pixels)
    found = run(runtime, tmp_path / "image_encoder.onnx", pixels=pixels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["gpo", "mean"])
def test_a_bigru(runtime, small_config, tmp_path, pool):
    text = {"encoder": "bigru", "word_channels": 8}
    config = ModelConfig.model_validate(small_config.to_dict() | {"text": text, "pool": pool})
    model = VSEModel(config, vocab_size=50, pad_id=0).eval()
    export_onnx(model, tmp_path)
    ids, lengths = torch.randint(0, 50, (4, 20)), torch.tensor([20, 1, 7, 2])
    with torch.no_grad():
        captions = model.encode_captions(ids, lengths)
    found = run(runtime, tmp_path / "text_encoder.onnx", token_ids=ids, lengths=lengths)
    np.testing.assert_allclose(found, captions, rtol=0, atol=1e-5)
    assert isinstance(model.text.encoder.rnn, RaggedGRU)


def test_a_model_that_onnx_has_no_operations_for_is_one_line(
    runtime, small_model, tmp_path, monkeypatch
):
    def export(*_, **__):
        reason = RuntimeError("no operation for aten::made_up\nand a trace")
        raise RuntimeError("a page of advice") from reason

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(ModelError, match=r"image_encoder.onnx: this model .* aten::made_up\)$"):
        export_onnx(small_model, tmp_path)


def test_a_missing_package_is_named(small_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", sys)
    with pytest.raises(ModelError, match=r"needs onnxscript.*vse-scale\[onnx\]"):
        export_onnx(small_model, tmp_path)

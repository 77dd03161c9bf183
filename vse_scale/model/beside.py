"""Files beside a model's own, by which transformers and sentence-transformers open its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vse_scale.inputs.spec import MODEL_TYPE

_CODE = "modeling_vse_scale"
_CLASSES = {
    "AutoConfig": "VSEAutoConfig",
    "AutoModel": "VSEAutoModel",
    "AutoProcessor": "VSEProcessor",
}
# transformers copies this file, so it imports what is installed and holds nothing of its own.
_TEXT = """\
# Read by transformers where trust_remote_code=True is given; the code is the package vse_scale.
from vse_scale.interchange.auto import VSEAutoConfig, VSEAutoModel, VSEProcessor  # noqa: F401
"""


def auto_keys() -> dict[str, Any]:
    """Return the keys of ``config.json`` by which transformers finds the classes of a model."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": [_CLASSES["AutoModel"]],
        "auto_map": {auto: f"{_CODE}.{name}" for auto, name in _CLASSES.items()},
    }


def write_code(folder: Path) -> None:
    """Write the file that ``auto_map`` names to ``folder``."""
    (folder / f"{_CODE}.py").write_text(_TEXT, encoding="utf-8")


def write_modules(folder: Path, *, pictures: bool) -> None:
    """Write the files that sentence-transformers reads to ``folder``.

    Args:
        folder: of a model with a tokenizer.
        pictures: whether it takes pixels; region features are not for sentence-transformers.
    """
    kinds = ("text", "image") if pictures else ("text",)
    methods = {
        kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"}
        for kind in kinds
    }
    files = {
        "modules.json": [
            {
                "idx": 0,
                "name": "0",
                "path": "",
                "type": "sentence_transformers.base.modules.transformer.Transformer",
            }
        ],
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": methods,
            "module_output_name": "sentence_embedding",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

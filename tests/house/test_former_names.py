"""Names that documents gave to users stay importable where they were."""

from __future__ import annotations

import importlib

import pytest

FORMER = {
    "vse_scale": ["VSEModel"],
    "vse_scale.config": ["Config"],
    "vse_scale.data.captions": ["CaptionTokenizer"],
    "vse_scale.data.image_spec": ["ImageSpec"],
    "vse_scale.data.loader": ["Batch", "Loader"],
    "vse_scale.data.mixing": ["open_datasets"],
    "vse_scale.data.plan": ["Plan", "PlannedBatch"],
    "vse_scale.data.shards": ["ShardDataset"],
    "vse_scale.data.staging": ["StagingOptions"],
    "vse_scale.evaluation": ["DirectionRecalls", "Recalls", "recall_at_k"],
    "vse_scale.evaluation.cxc": ["evaluate_cxc", "rank_tasks"],
    "vse_scale.evaluation.cxc_ratings": ["read_positives", "read_ratings"],
    "vse_scale.evaluation.correlation": ["bootstrapped_spearman", "correlations"],
    "vse_scale.evaluation.eccv": ["evaluate_eccv"],
    "vse_scale.evaluation.encode": ["Embeddings", "encode_split"],
    "vse_scale.evaluation.protocols": ["PROTOCOLS", "evaluate", "fold_recalls"],
    "vse_scale.evaluation.retrieval": ["nearest", "query_ranks"],
    "vse_scale.evaluation.saved": ["ensemble", "open_embeddings"],
    "vse_scale.evaluation.similarities": ["open_similarities"],
    "vse_scale.model.gpo": ["GPO"],
    "vse_scale.model.vse": ["VSEModel"],
    "vse_scale.objective": ["HingeResult", "cached_backward", "global_hinge_loss", "hinge_loss"],
    "vse_scale.telemetry.progress": ["Progress", "configure_logging", "heartbeat"],
    "vse_scale.training.trainer": ["train"],
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in FORMER.items() for name in names]
)
def test_a_former_name_is_there(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_a_former_module_is_the_same_object() -> None:
    from vse_scale.evaluation.protocols import Evaluation
    from vse_scale.retrieval.protocols import folds

    assert Evaluation is folds.Evaluation

"""A run's folder: its names, its records, and the way from a model to its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from vse_scale.errors import OutputError
from vse_scale.run.folder import RunFolder, RunRecords, model_folder, run_folder


def test_the_names_are_those_of_every_release() -> None:
    run = RunFolder(Path("r"))
    named = {name: getattr(run, name).name for name in dir(run) if name.endswith(("_file", "r"))}
    assert named == {
        "config_file": "config.yaml",
        "steps_file": "metrics.jsonl",
        "evaluations_file": "evaluations.jsonl",
        "ranks_file": "ranks.json",
        "results_file": "results.json",
        "system_file": "system.json",
        "report_file": "report.html",
        "done_file": "done",
        "lock_file": "lock",
        "changes_file": "changes.jsonl",
        "identity_file": "identity",
        "checkpoints_folder": "checkpoints",
        "model_folder": "model",
        "tokenizer_folder": "tokenizer",
        "tensorboard_folder": "tensorboard",
    }


def test_an_empty_folder_has_empty_records(tmp_path: Path) -> None:
    found = RunRecords.load(tmp_path)
    assert (found.config, found.steps, found.evaluations, found.system) == ({}, [], [], {})
    assert found.results.best is None
    assert found.setting("data.path", "none") == "none"
    assert found.name == tmp_path.name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "data: ["),
        ("metrics.jsonl", "{\n"),
        ("evaluations.jsonl", '{"step": 3, "rsum": "high"}\n'),
        ("results.json", "{"),
        ("system.json", "nothing"),
        ("system.json", '{"gpus": "x"}'),
        ("system.json", '{"gpus": [{"name": "x", "memory_bytes": 1e999}]}'),
        ("system.json", '{"memory_bytes": "x"}'),
        ("system.json", '{"packages": []}'),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(OutputError) as caught:
        RunRecords.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: is damaged (")
    assert "\n" not in str(caught.value)


def test_a_model_and_its_run_lead_to_each_other(tmp_path: Path) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    (run / "model").mkdir(parents=True)
    alone.mkdir()
    assert model_folder(run) == model_folder(run / "model") == run / "model"
    assert model_folder(alone) == alone
    assert run_folder(run) is None  # nothing says yet that it is a run
    (run / "config.yaml").touch()
    assert run_folder(run) == run_folder(run / "model") == RunFolder(run)
    assert run_folder(alone) is None

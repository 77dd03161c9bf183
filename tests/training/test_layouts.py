"""One result: a step from identical weights is the same step on any layout."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from launching import (
    Job,
    Trained,
    assert_same_bits,
    assert_same_step,
    distance,
    train_jobs,
    weights_of,
)
from safetensors.torch import load_file

from vse_scale.config import Config
from vse_scale.planning.traffic import _PERSISTENT as PERSISTENT
from vse_scale.planning.traffic import Workload, loss_bytes
from vse_scale.training.checkpoint import TENSORS
from vse_scale.training.state import write_tensors
from vse_shards.build import BuildOptions, build
from vse_shards.sources.jsonl import JsonlSource

OPTIMIZERS = {
    # Adam with clipping hides a wrong scale of the gradient; this does not.
    "sgd": ("optim.algorithm=sgd", "optim.clip=0", "objective.reduction=mean", "optim.lr=0.1"),
    # Adam divides a gradient by its own size, noise included, so its steps are kept small.
    "adamw": ("optim.lr=1e-5",),
}
LATE = 40

Layout = tuple[int, int, int, str]  # ranks, ZeRO stage, micro-batches, optimizer
EVERY = [*itertools.product((1, 2, 4), (0, 1, 2, 3), (1, 2, 4), OPTIMIZERS)]
# Every pair of values of two different columns is in one of these.
PAIRWISE = [
    (1, 0, 1, "sgd"), (1, 1, 2, "adamw"), (1, 2, 4, "sgd"), (1, 3, 1, "adamw"),
    (2, 0, 2, "sgd"), (2, 1, 4, "adamw"), (2, 2, 1, "adamw"), (2, 3, 2, "sgd"),
    (4, 0, 4, "adamw"), (4, 1, 1, "sgd"), (4, 2, 2, "adamw"), (4, 3, 4, "sgd"),
]  # fmt: skip


@pytest.fixture(scope="module")
def reference(few_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """One process: by optimizer the first step, 40 steps with a checkpoint, and the one after."""
    folder = tmp_path_factory.mktemp("reference")
    jobs = {}
    for name, overrides in OPTIMIZERS.items():
        jobs |= {
            f"{name} early": Job(overrides),
            name: Job(overrides, count=LATE, save=True, folder=folder / name),
            f"{name} late": Job(overrides, first=None, folder=folder / name),
        }
    return train_jobs(few_steps, folder, 1, jobs)


def check_layouts(
    config: Path, folder: Path, layouts: list[Layout], reference: dict[str, Trained]
) -> None:
    """Hold the steps 0 and 40 of each of ``layouts`` to the reference's."""
    (ranks,) = {layout[0] for layout in layouts}
    jobs = {}
    for layout in layouts:
        _, stage, micro_batches, optimizer = layout
        overrides = (
            *OPTIMIZERS[optimizer],
            f"engine.zero_stage={stage}",
            f"engine.micro_batches={micro_batches}",
        )
        # Going on from a checkpoint that one process wrote at ZeRO-2.
        late = folder / "-".join(map(str, layout))
        shutil.copytree(reference[optimizer].folder, late)
        jobs[f"{layout}"] = Job(overrides)
        jobs[f"{layout} late"] = Job(overrides, first=None, folder=late)
    trained = train_jobs(config, folder, ranks, jobs)
    for layout in layouts:
        optimizer = layout[-1]
        early, late = trained[f"{layout}"], trained[f"{layout} late"]
        assert late.first == LATE
        assert_same_bits(early.start, reference[f"{optimizer} early"].start)
        assert_same_bits(late.start, reference[f"{optimizer} late"].start)
        assert_same_step(early.steps[0], reference[f"{optimizer} early"].steps[0])
        assert_same_step(late.steps[0], reference[f"{optimizer} late"].steps[0])


def test_two_ranks_and_one(few_steps: Path, tmp_path: Path, reference: dict[str, Trained]) -> None:
    assert len(reference["sgd early"].steps[0]["gradient"]) >= 20
    check_layouts(few_steps, tmp_path, [(2, 2, 1, "sgd"), (2, 2, 1, "adamw")], reference)


@pytest.mark.slow
def test_a_checkpoint_that_all_ranks_write_is_the_gathered_one(
    few_steps: Path, tmp_path: Path
) -> None:
    stages = {
        f"{stage}": Job((*OPTIMIZERS["adamw"], f"engine.zero_stage={stage}", "run.gather_gb=0"),
                        count=2, save=True)
        for stage in (0, 1, 2, 3)
    }  # fmt: skip
    for found in train_jobs(few_steps, tmp_path, 4, stages).values():
        (written,) = (found.folder / "checkpoints").glob(f"step-*/{TENSORS}")
        assert_same_bits(load_file(written), found.steps[-1]["state"])
        alone = tmp_path / "alone.safetensors"
        alone.unlink(missing_ok=True)
        write_tensors(alone, found.steps[-1]["state"])
        assert written.read_bytes() == alone.read_bytes()


@pytest.mark.slow
def test_captions_are_compared_over_all_ranks(
    few_steps: Path, scenes: Path, tmp_path: Path
) -> None:
    """After technicolor-research/dsve-loc#18; half of the equal captions are on another rank."""
    source = scenes.parent / "source"
    rows = [json.loads(line) for line in (source / "captions.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["captions"][:2] = [f"scene {number % 30} of thirty", f"scene number {number}"]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared = JsonlSource(str(tmp_path / "captions.jsonl"), str(source))
    build(shared, str(tmp_path / "shards"), BuildOptions(shard_samples=32))
    path = f"data.path={tmp_path / 'shards'}"
    sgd = (*OPTIMIZERS["sgd"], "objective.warmup_epochs=0", path)
    positives = "data.equal_captions=positives"
    whole = Job((*sgd, positives))
    alone = train_jobs(few_steps, tmp_path, 1, {"negatives": Job(sgd), "positives": whole})
    parts = Job((*whole.overrides, "engine.micro_batches=2"))
    together = train_jobs(few_steps, tmp_path, 2, {"whole": whole, "parts": parts})
    expected, without = alone["positives"].steps[0], alone["negatives"].steps[0]
    assert expected["record"]["loss"] < without["record"]["loss"]  # some captions are shared
    planned = Workload.of(Config.load(few_steps, [positives]), bfloat16=False)
    for found in together.values():
        assert_same_step(found.steps[0], expected)
        assert found.steps[0]["record"]["bytes_sent"] == loss_bytes(planned, 2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_layouts_that_cover_all_pairs(
    few_steps: Path, tmp_path: Path, reference: dict[str, Trained], ranks: int
) -> None:
    layouts = [layout for layout in PAIRWISE if layout[0] == ranks]
    check_layouts(few_steps, tmp_path, layouts, reference)


LEARNED_WITH = ("optim.algorithm=sgd", "optim.clip=0", "optim.lr=0.1", "objective.ramp=null")


@pytest.mark.parametrize(
    "ranks",
    [pytest.param(4, marks=pytest.mark.slow)]
    + [pytest.param(n, marks=pytest.mark.soak) for n in (1, 2)],
)
def test_every_objective_on_layouts_that_cover_all_pairs(
    few_steps: Path, tmp_path: Path, ranks: int
) -> None:
    kinds = {
        kind: (*LEARNED_WITH, f"objective.kind={kind}")
        for kind in ("infonce", "sigmoid", "hinge+infonce")
    }
    alone = train_jobs(few_steps, tmp_path, 1, {kind: Job(keys) for kind, keys in kinds.items()})
    jobs = {
        f"{kind} {stage} {pieces}": Job(
            (*keys, f"engine.zero_stage={stage}", f"engine.micro_batches={pieces}")
        )
        for kind, keys in kinds.items()
        for own, stage, pieces, _ in PAIRWISE
        if own == ranks
    }
    for name, found in train_jobs(few_steps, tmp_path, ranks, jobs).items():
        assert_same_step(found.steps[0], alone[name.split()[0]].steps[0])


@pytest.mark.slow
def test_objectives_with_learned_numbers_on_any_layout_and_resumed(
    few_steps: Path, tmp_path: Path
) -> None:
    """The step of one process, and to the bit the steps of a run that was not stopped."""
    kinds = {
        "infonce": ("objective.kind=infonce", "objective.label_smoothing=0.1"),
        "sigmoid": ("objective.kind=sigmoid", "objective.matryoshka=[8,24]"),
        "hinge+infonce": ("objective.kind=hinge+infonce",),
    }
    alone, layouts, parts = {}, {}, {}
    for (kind, settings), stage in zip(kinds.items(), (1, 2, 2), strict=True):
        alone[kind] = Job((*LEARNED_WITH, *settings))
        for other, pieces in ((stage, 1), (stage - 1, 2), (3, 2)):
            engine = (f"engine.zero_stage={other}", f"engine.micro_batches={pieces}")
            layouts[f"{kind} {other} {pieces}"] = Job((*LEARNED_WITH, *settings, *engine))
        stopped = (*settings, "objective.ramp=null", f"engine.zero_stage={stage}")
        parts |= {
            f"{kind} whole": Job(stopped, count=9),
            f"{kind} first": Job(stopped, count=7, save=True, folder=tmp_path / kind),
            f"{kind} second": Job(stopped, first=None, count=2, folder=tmp_path / kind),
        }
    wanted = train_jobs(few_steps, tmp_path, 1, alone)
    found = train_jobs(few_steps, tmp_path, 2, layouts | parts)
    for name in layouts:
        step, expected = found[name].steps[0], wanted[name.split()[0]].steps[0]
        assert_same_step(step, expected)
        for key, value in numbers_of(expected["state"]).items():
            assert float(step["state"][key]) == pytest.approx(float(value), rel=1e-6)
            assert float(value) != pytest.approx(float(found[name].start[key]), rel=1e-9)
    for kind in kinds:
        whole, second = found[f"{kind} whole"], found[f"{kind} second"]
        assert_same_bits(second.start, found[f"{kind} first"].steps[-1]["state"])
        assert_same_bits(second.steps[-1]["state"], whole.steps[-1]["state"])
        numbers = numbers_of(whole.steps[-1]["state"])
        assert len(numbers) == {"infonce": 1, "sigmoid": 2, "hinge+infonce": 1}[kind]
        shown = whole.steps[-1]["record"]
        assert {"temperature"} <= shown.keys() or {"scale", "bias"} <= shown.keys()


def numbers_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith("objective.")}


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_layout(
    few_steps: Path, tmp_path: Path, reference: dict[str, Trained], ranks: int
) -> None:
    layouts = [layout for layout in EVERY if layout[0] == ranks]
    check_layouts(few_steps, tmp_path, layouts, reference)


def test_the_layouts_cover_all_pairs() -> None:
    for left, right in itertools.combinations(range(4), 2):
        wanted = {(layout[left], layout[right]) for layout in EVERY}
        assert wanted == {(layout[left], layout[right]) for layout in PAIRWISE}


@pytest.mark.slow
def test_twenty_steps_stay_together(few_steps: Path, tmp_path: Path) -> None:
    jobs = {
        f"stage {stage}": Job(("optim.lr=1e-5", f"engine.zero_stage={stage}"), count=20)
        for stage in range(4)
    }
    alone = train_jobs(few_steps, tmp_path, 1, {"alone": jobs["stage 0"]})["alone"]
    for together in train_jobs(few_steps, tmp_path, 2, jobs).values():
        for found, expected in zip(together.steps, alone.steps, strict=True):
            assert found["record"]["loss"] == pytest.approx(expected["record"]["loss"], rel=1e-4)
        ends = (weights_of(run.steps[-1]["state"]) for run in (alone, together))
        assert distance(*ends) < 1e-4


CHOICES = {
    0: (),
    1: ("optim.average=0.6", "optim.schedule=cosine", "optim.schedule_epochs=3"),
    2: ("optim.average=0.9", "optim.layer_decay=0.7", "optim.decay_norms=false"),
    3: ("optim.layer_decay=0.7", "optim.decay_norms=false", "optim.schedule=cooldown",
        "optim.schedule_steps=12", "optim.cooldown=0.5"),
}  # fmt: skip


@pytest.mark.slow
def test_going_on_is_bit_equal_on_the_same_layout(few_steps: Path, tmp_path: Path) -> None:
    jobs = {}
    for stage, chosen in CHOICES.items():
        overrides, folder = (f"engine.zero_stage={stage}", *chosen), tmp_path / f"stage-{stage}"
        jobs |= {
            f"whole {stage}": Job(overrides, count=12, every_state=stage == 1),
            f"first part {stage}": Job(overrides, count=7, save=True, folder=folder),
            f"second part {stage}": Job(overrides, first=None, count=5, folder=folder),
        }
    trained = train_jobs(few_steps, tmp_path, 2, jobs)
    for stage in CHOICES:
        whole, second = trained[f"whole {stage}"], trained[f"second part {stage}"]
        assert_same_bits(second.start, trained[f"first part {stage}"].steps[-1]["state"])
        for found, expected in zip(second.steps, whole.steps[7:], strict=True):
            assert torch.equal(found["pairs"], expected["pairs"])
            assert found["record"]["loss"] == expected["record"]["loss"]
        assert_same_bits(second.steps[-1]["state"], whole.steps[-1]["state"])
    check_average(trained["whole 1"], decay=0.6)


def check_average(run: Trained, decay: float) -> None:
    """Hold the average to one that is made of the weights after each step."""
    average = weights_of(run.start)
    for number, step in enumerate(run.steps, start=1):
        share = min(decay, (1 + number) / (10 + number))
        for name, value in weights_of(step["state"]).items():
            average[name] = share * average[name] + (1 - share) * value
    end = run.steps[-1]["state"]
    found = {
        name.removeprefix("average."): end[name] for name in end if name.startswith("average.")
    }
    assert len(found) > 20
    wanted = {name: average[f"model.{name}"] for name in found}
    assert distance(wanted, found) < 1e-6
    assert distance({name: end[f"model.{name}"] for name in found}, found) > 1e-4


@pytest.mark.slow
def test_a_gradient_that_overflows_on_one_rank_is_skipped_on_all(
    few_steps: Path, tmp_path: Path
) -> None:
    jobs = {
        f"stage {stage}": Job(
            (f"engine.zero_stage={stage}",), count=8, every_state=True, poisoned=(0, 6)
        )
        for stage in range(4)
    }
    for run in train_jobs(few_steps, tmp_path, 2, jobs).values():
        states = [run.start, *(step["state"] for step in run.steps)]
        applied = [step["record"]["applied"] for step in run.steps]
        assert applied == [step not in (0, 6) for step in range(8)]
        for step, (before, after) in enumerate(itertools.pairwise(states)):
            if applied[step]:
                assert distance(weights_of(before), weights_of(after)) > 0
            else:
                assert_same_bits(after, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (("engine.activation_checkpointing=true", "engine.micro_batches=2"), 1e-5),
        # Thresholds of the hinge fall differently.
        (("engine.precision=bfloat16",), 6e-2),
        # Minutes of g++: torch's headers are not compiled ahead (`own_compiled_code`).
        pytest.param(("engine.compile=true",), 1e-5, marks=pytest.mark.soak),
    ],
    ids=["activation checkpointing", "bfloat16", "compile"],
)
def test_what_saves_memory_or_time_changes_no_step(
    few_steps: Path, tmp_path: Path, reference: dict[str, Trained], options, tolerance: float
) -> None:
    jobs = {}
    # torch.compile is refused under stage 3.
    for stage in range(3 if "engine.compile=true" in options else 4):
        jobs[f"stage {stage}"] = Job((*OPTIMIZERS["sgd"], *options, f"engine.zero_stage={stage}"))
    for run in train_jobs(few_steps, tmp_path, 2, jobs).values():
        assert_same_step(run.steps[0], reference["sgd early"].steps[0], tolerance)


@pytest.mark.slow
def test_a_bigru_whose_weights_stage_3_shares_out(few_steps: Path, tmp_path: Path) -> None:
    """Its backward pass is our own, past the modules whose hooks gather a weight."""
    width = 256  # three gates of it exceed what stage 3 leaves whole
    assert 3 * width * width > PERSISTENT
    text = ("encoder=bigru", "architecture=null", "vocab_size=null", "word_channels=64")
    options = (*OPTIMIZERS["sgd"], f"model.embed_dim={width}", *(f"model.text.{o}" for o in text))
    stages = {
        f"{stage}": Job((*options, f"engine.zero_stage={stage}"), count=3) for stage in (2, 3)
    }
    second, third = train_jobs(few_steps, tmp_path, 2, stages).values()
    assert_same_bits(third.start, second.start)
    assert_same_step(third.steps[-1], second.steps[-1])
    assert distance(weights_of(second.start), weights_of(second.steps[-1]["state"])) > 0


@pytest.mark.slow
def test_only_the_first_host_sees_the_folder_of_the_run(few_steps: Path, tmp_path: Path) -> None:
    hosts = [tmp_path / "first", tmp_path / "second"]
    for host in hosts:
        host.mkdir()
    jobs = {
        "before": Job(count=2, save=True, folder=Path("run")),
        "after": Job(first=None, folder=Path("run")),
    }
    before, after = train_jobs(few_steps, tmp_path, 2, jobs, hosts).values()
    assert_same_bits(after.start, before.steps[-1]["state"])
    assert {path.name for path in (hosts[0] / "run").iterdir()} >= {"checkpoints", "tokenizer"}
    assert not list(hosts[1].iterdir())

"""The first steps of three small recipes, as text that is kept beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets_made import drawn_scenes, fingerprint, region_dataset
from one_rank import NUMBERS, records, this_machine, train_on_one_rank

HERE = Path(__file__).parent
STEPS = 20
COLUMNS = ("step", "objective", "applied", *NUMBERS)


def _scenes(folder: Path) -> list[Path]:
    return [drawn_scenes(folder, images=40, seed=1, shard_samples=16)]


def _regions(folder: Path) -> list[Path]:
    return [region_dataset(folder, {"train": 60, "val": 12}, regions=7, channels=12)]


def _two_of_scenes(folder: Path) -> list[Path]:
    return [
        drawn_scenes(folder / "first", images=40, seed=2, shard_samples=8),
        drawn_scenes(folder / "second", images=20, seed=3, shard_samples=8),
    ]


RECIPES: dict[str, Callable[[Path], list[Path]]] = {
    "pixels": _scenes,
    "regions": _regions,
    "pieces": _two_of_scenes,
}


def trained_text(name: str, folder: Path) -> str:
    """Train a recipe in ``folder`` and return what its steps and its validations found.

    Floats are written so that reading them gives the same bits.
    """
    datasets = RECIPES[name](folder / "data")
    paths = ", ".join(map(str, datasets))
    train_on_one_rank(
        HERE / f"{name}.yaml",
        f"data.path=[{paths}]" if len(datasets) > 1 else f"data.path={paths}",
        f"run.dir={folder / 'run'}",
    )
    facts = this_machine() | {"datasets": " ".join(fingerprint(one)[:16] for one in datasets)}
    lines = [f"# {key}: {value}" for key, value in facts.items()]
    lines.append(" ".join(COLUMNS))
    steps = records(folder / "run" / "metrics.jsonl")
    lines += [" ".join(_text(step[column]) for column in COLUMNS) for step in steps]
    for found in records(folder / "run" / "evaluations.jsonl"):
        lines.append(f"evaluation {found['step']} {found['rsum']!r}")
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def facts_of(text: str) -> dict[str, str]:
    """Return the header as a mapping."""
    lines = (line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    return dict(line.split(": ", 1) for line in lines)


def steps_of(text: str) -> list[dict[str, str | float]]:
    """Return the steps' columns by name, the numbers among them as such."""
    rows = [line.split() for line in text.splitlines() if line[:1].isdecimal()]
    steps = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    return [{k: float(v) if k in NUMBERS else v for k, v in step.items()} for step in steps]

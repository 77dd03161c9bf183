"""Output of the commands: lines for people, or one JSON object for programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from vse_shards.dry_run import DryRun
from vse_shards.errors import DatasetError
from vse_shards.info import describe
from vse_shards.machines import MadePart, Part
from vse_shards.manifest import COLUMNS_VERSION, Manifest
from vse_shards.notes import counted, shown
from vse_shards.options import Summary
from vse_shards.plan_folder import Plan
from vse_shards.progress import say
from vse_shards.terminal import tell, tell_json


def show_summary(summary: Summary, out: str, *, as_json: bool) -> None:
    """Print the result of a build."""
    splits = {
        name: {"images": split.images, "pairs": split.pairs, "shards": len(split.shards)}
        for name, split in summary.manifest.splits.items()
    }
    if as_json:
        content = {**asdict(summary), "splits": splits, "out": out}
        content["fingerprint"] = summary.manifest.fingerprint
        del content["manifest"]
        tell_json(content)
        return
    for name, split in splits.items():
        say(
            f"  {name}: {counted(split['images'], 'image')}, {counted(split['pairs'], 'caption')} "
            f"in {counted(split['shards'], 'shard')}"
        )
    size = f"{counted(summary.images, 'image')} ({summary.untouched:,} stored unchanged), "
    size += f"{counted(summary.pairs, 'caption')}, {_bytes(summary.bytes)}"
    if summary.built or summary.changed:
        rate = summary.images / max(summary.seconds, 1e-9)
        speed = f" in {summary.seconds:.1f} s, {rate:,.0f} images/s" if summary.seconds else ""
        say(f"built {out}: {size}{speed}")
    else:
        say(f"nothing to do: {out} is complete: {size}")
    for change, images in summary.changes.items():
        say(f"stored {change}: {images:,}")
    if summary.duplicates:
        again = "images occur" if summary.duplicates > 1 else "image occurs"
        say(f"{summary.duplicates:,} {again} more than once: {out}/duplicates.jsonl")
    if summary.rejects:
        say(f"{_reasons(summary.rejects)} rejected: {out}/rejects.jsonl")


def show_plan(plan: Plan, shards: int, out: str, *, as_json: bool) -> None:
    """Print a plan of a build on many machines."""
    splits = plan.source["rows"]
    if as_json:
        content = {"out": out, "id": plan.id, "shards": shards, "rows": plan.read}
        tell_json({**content, "images": splits, "notes": plan.notes})
        return
    images = ", ".join(f"{name} {counted(count, 'image')}" for name, count in splits.items())
    say(f"planned {out}: {images} in {counted(shards, 'shard')}")
    say(
        f"on each of N machines: vse-shards make {out} --shards I/N, I from 0; then, on one: "
        f"vse-shards seal {out}"
    )


def show_made(made: MadePart, part: Part, out: str, *, as_json: bool) -> None:
    """Print the shards of a part that were made."""
    if as_json:
        tell_json({"out": out, "part": str(part), **asdict(made)})
    elif made.sealed:
        say(f"nothing to do: {out} is sealed")
    else:
        say(
            f"part {part} of {out}: {counted(made.shards, 'shard')} complete, "
            f"{made.written:,} of them made now"
        )


def show_sealed(out: str, *, as_json: bool) -> None:
    """Print that a dataset was sealed before."""
    fingerprint = Manifest.load(out).fingerprint
    if as_json:
        tell_json({"out": out, "fingerprint": fingerprint, "changed": False})
    else:
        say(f"nothing to do: {out} is complete: fingerprint {fingerprint[:16]}")


def show_upgrade(folder: Path, manifest: Manifest, *, as_json: bool) -> None:
    """Print the manifest of a dataset in columns."""
    splits = {name: len(split.shards) for name, split in manifest.splits.items()}
    if as_json:
        content = {"folder": str(folder), "version": COLUMNS_VERSION, "shards": splits}
        tell_json({**content, "fingerprint": manifest.fingerprint})
        return
    shards = ", ".join(f"{name} {counted(count, 'shard')}" for name, count in splits.items())
    say(f"{folder}: is of version {COLUMNS_VERSION}: {shards}, fingerprint as before")


def show_dry_run(result: DryRun, *, as_json: bool) -> None:
    """Print the first rows as a build would store them."""
    if as_json:
        tell_json(asdict(result))
        return
    splits = ", ".join(f"{name} {counted(n, 'image')}" for name, n in result.splits.items())
    say(f"the first {counted(result.read, 'row')}: {splits}")
    for row in result.rows:
        say(f"  {row['split']}: image_id {shown(repr(row['image_id']))}, {shown(row['image'])}")
        say(f"    {shown(row['stored'])}")
        for caption in row["captions"]:
            say(f"    {shown(caption)}")
    say("nothing was written; omit --dry-run to build")


def show_verdict(problems: list[str], folder: Path, *, as_json: bool) -> None:
    """Print the result of verification.

    Raises:
        DatasetError: there are problems; all of them are printed first.
    """
    if as_json:
        tell_json({"folder": str(folder), "ok": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            say(f"  {problem}")
    else:
        say(f"{folder}: complete; every byte is as the manifest says")
    if problems:
        raise DatasetError(
            f"{folder}: {counted(len(problems), 'problem')}; build the dataset again"
        )


def show_info(folder: Path, *, as_json: bool) -> None:
    """Print the statistics of a dataset."""
    content = describe(folder)
    if as_json:
        tell_json(content)
        return
    tell(f"{folder}: fingerprint {content['fingerprint'][:16]}")
    for name, split in content["splits"].items():
        tell(
            f"{name}: {counted(split['images'], 'image')}, "
            f"{counted(split['captions'], 'caption')}, {counted(split['shards'], 'shard')}, "
            f"{_bytes(split['bytes'])}"
        )
        for label, key in (
            ("words a caption", "caption_words"),
            ("width, pixels", "width"),
            ("height, pixels", "height"),
        ):
            if split[key]:
                low, five, median, ninety_five, high = split[key]
                tell(
                    f"  {label:16} median {median}, 5% {five}, 95% {ninety_five}, "
                    f"minimum {low}, maximum {high}"
                )
        counts = ", ".join(f"{k}: {n:,}" for k, n in split["captions_per_image"].items())
        tell(f"  captions per image (number: images)  {counts}")
        if split["regions_only"]:
            tell(f"  {split['regions_only']:,} samples have region features and no image")
    tell(f"rejects: {_reasons(content['rejects']) if content['rejects'] else 'none'}")


def show_preview(content: dict[str, Any], *, as_json: bool) -> None:
    """Print the path of the page of samples."""
    if as_json:
        tell_json(content)
    else:
        say(f"{counted(len(content['samples']), 'sample')} in {content['out']}")


def _reasons(reasons: dict[str, Any]) -> str:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered)


def _bytes(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    power = min(len(str(count)) - 1, 14) // 3
    return f"{count / 1000**power:,.1f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"

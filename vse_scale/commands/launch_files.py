"""``vse-scale launch-files``."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

from vse_scale.commands.common import new_folder
from vse_scale.errors import OutputError
from vse_shards.terminal import tell

# Links to the repository's launch/slurm and launch/monitoring, which come with the package.
_SHIPPED = Path(__file__).parents[1] / "launch_files"


def launch_files(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder to write")],
) -> None:
    """Write files for SLURM, Prometheus and Grafana to a folder.

    The scripts name that folder, so they can be submitted from any other.
    """
    place = folder.resolve()
    if shlex.quote(str(place)) != str(place):
        raise OutputError(
            f"{str(place)[:80]}: shell scripts would have to quote this name; name a folder "
            "whose path has letters, digits and -_./ alone"
        )
    with new_folder(folder, option="DIR") as partial:
        for shipped in sorted(_SHIPPED.iterdir()):
            shutil.copytree(shipped, partial / shipped.name)
        for script in partial.rglob("*"):
            if script.is_file():
                script.write_text(_placed(script.read_text(encoding="utf-8"), place), "utf-8")
    for script in sorted(folder.rglob("*.sbatch")):
        tell(f"script of sbatch: {script}")
    tell(f"monitoring: {folder / 'monitoring'}")


def _placed(text: str, place: Path) -> str:
    """Return a file's text with the paths that it has in ``place`` rather than the repository."""
    text = text.replace("From the repository's folder, on", "On")
    return text.replace("launch/recipes/small.yaml", "small").replace("launch/", f"{place}/")

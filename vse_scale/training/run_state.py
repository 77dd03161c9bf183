"""The state of a run beside its tensors: its place, its best result, its settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import ConfigDict

from vse_scale.bounds import Ge, Le
from vse_scale.config import Config
from vse_scale.config.resume import changes, check_learned, differences, keys_on_purpose
from vse_scale.data.plan import ORDER
from vse_scale.errors import CheckpointError, ConfigError
from vse_shards.json_text import MOST_EXACT
from vse_shards.masking import masked

GrewFrom: TypeAlias = Callable[[str, Sequence[str]], bool]


def _grew_from_none(fingerprint: str, parts: Sequence[str]) -> bool:
    return False


@dataclass(frozen=True)
class RunState:
    """All that a run needs, beside the engine's state, to go on where it was.

    Attributes:
        step: The next step to train; the steps before it are in the weights.
        fingerprint: Fingerprint of the dataset.
        config: The resolved configuration, as nested mappings.
        best_rsum: The best validation result so far, or None before the first.
        best_step: The step after which it was reached.
        stale: Evaluations since then.
        order: Version of the order of training, see `vse_scale.data.plan`.
        steps_per_epoch: Of the dataset; 0 in checkpoints of earlier releases.
        shift: Steps by which the place in the epochs is ahead of ``step``: an epoch that data was
            appended in begins anew, longer.
        vocabulary: Digest of the tokens; "" in checkpoints of earlier releases.
        parts: Fingerprints of the datasets that are mixed; () in checkpoints of earlier releases.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: Annotated[int, Ge(0), Le(MOST_EXACT)]
    fingerprint: str
    config: dict[str, Any]
    best_rsum: float | None = None
    best_step: int | None = None
    stale: int = 0
    order: Annotated[int, Ge(1), Le(ORDER)] = 1  # of checkpoints from before there was another
    steps_per_epoch: Annotated[int, Ge(0), Le(MOST_EXACT)] = 0
    shift: Annotated[int, Ge(-MOST_EXACT), Le(MOST_EXACT)] = 0
    vocabulary: str = ""
    parts: tuple[str, ...] = ()

    def check(
        self, config: Config, fingerprint: str, origin: Path, grew_from: GrewFrom = _grew_from_none
    ) -> dict[str, tuple[Any, Any]]:
        """Return what changes on purpose where a run with ``config`` goes on from here.

        Args:
            config: that the run is to go on with.
            fingerprint: of the dataset.
            origin: the checkpoint, for messages.
            grew_from: says whether the dataset is one of that fingerprint and those parts with rows
                appended.

        Returns:
            Old and new value of each key of ``run.resume_with`` that differs; "fingerprint" where
            the dataset has grown.

        Raises:
            CheckpointError: the run may not go on.
            ConfigError: a key of ``run.resume_with`` cannot be changed.
        """
        on_purpose = keys_on_purpose(config.run.resume_with, Config)
        check_learned(on_purpose, config.objective)
        grown = fingerprint != self.fingerprint
        begun_with = grown and grew_from(self.fingerprint, self.parts)
        if grown and not ("data.path" in on_purpose and begun_with):
            path = masked(str(config.data.path))
            remedy = (
                f"the latter is the former with rows appended: {_option(config.data.path)} goes on "
                "with all of them"
                if begun_with
                else "give the same dataset"
            )
            raise CheckpointError(
                f"{origin}: was trained on a dataset with fingerprint {self.fingerprint[:12]}, but "
                f"{path} has {fingerprint[:12]}; {remedy}, or another run.dir to start anew"
            )
        if grown and not self.steps_per_epoch:
            raise CheckpointError(
                f"{origin}: is of an earlier release, which kept no length of an epoch; let the "
                "run write one more checkpoint on the dataset as it was, then append"
            )
        # A stored configuration is read as this release has it: without keys of parts that were
        # not chosen, and with the defaults of settings that are new.
        try:
            then = Config.parse(self.config, f"{origin}: its configuration", stored=True)
        except ConfigError as error:
            raise CheckpointError(
                f"{error}; go on with the release that wrote it, or give another run.dir to start "
                "anew"
            ) from error
        old, new = then.recorded(), config.recorded()
        if changed := changes(old, new, Config, on_purpose):
            raise CheckpointError(
                f"{origin}: was trained with another configuration ({'; '.join(changed)}); give "
                "the same one, another run.dir to start anew, or --resume-with KEY=VALUE for what "
                "a run may change on purpose"
            )
        differing = differences(old, new)
        if grown:
            differing["fingerprint"] = (self.fingerprint, fingerprint)
        named = (*on_purpose, "fingerprint")
        return {key: values for key, values in differing.items() if key in named}


def _option(path: str | Sequence[str]) -> str:
    """Return the words for a shell by which a run goes on with what its dataset has grown to."""
    value = path if isinstance(path, str) else json.dumps(list(path), ensure_ascii=False)
    if masked(value) != value:  # the command has it already, with its secret
        return "'run.resume_with=[data.path]'"
    return f"--resume-with {shlex.quote(f'data.path={value}')}"

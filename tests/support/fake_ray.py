"""Ray's calls, answered in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any


class FakeRay:
    """Ray as a module: a task runs when it is asked for, in another folder, as a worker's does.

    Args:
        cores: of the cluster.
        dead: number of the task, from 1, whose worker dies.
        gpus: of the cluster.
    """

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            cause: Exception

    def __init__(self, cores: int = 2, dead: int = 0, gpus: int = 0) -> None:
        self.cores, self.dead, self.gpus = cores, dead, gpus
        self.asked: list[Any] = []
        self.options: list[dict[str, Any]] = []
        self.addresses: list[str | None] = []

    def init(self, address: str | None) -> None:
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0", "it would report to Ray's makers"
        self.addresses.append(address)

    def shutdown(self) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cores} | ({"GPU": self.gpus} if self.gpus else {})

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.options.append(options)

        class Task:
            def __init__(self, function: Any) -> None:
                self.function = function

            def remote(self, *arguments: Any) -> Callable[[], Any]:
                return lambda: self.function(*arguments)

        return Task

    def wait(self, tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return tasks[-num_returns:], tasks[:-num_returns]

    def get(self, task: Callable[[], Any]) -> Any:
        self.asked.append(task)
        if len(self.asked) == self.dead:
            raise self.exceptions.RayError("WorkerCrashedError")
        try:
            with contextlib.chdir("/"):
                return task()
        except Exception as error:
            wrapped = self.exceptions.RayTaskError(str(error))
            wrapped.cause = error
            raise wrapped from error

"""All rewards of a run: functions share a pool of workers, and each reward model has a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from grpo_hpc.rewards.names import column_of
from grpo_hpc.rewards.registry import check_names, is_model
from grpo_hpc.rewards.worker_pool import Outcome, Task, WorkerPool

_Part = TypeVar("_Part")
_Whole = TypeVar("_Whole")


class RewardRunner:
    """Runs tasks like a :class:`~grpo_hpc.rewards.worker_pool.WorkerPool`, whatever reward they are for.

    Args:
        names, given, run: as for :func:`grpo_hpc.rewards.registry.resolve`.
        options: as for :class:`~grpo_hpc.rewards.worker_pool.WorkerPool`.

    Raises:
        ConfigError: a name or parameter is wrong.
    """

    def __init__(
        self, names: Sequence[str], given: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any], **options: Any
    ) -> None:
        check_names(names, given)
        models = [name for name in names if is_model(name)]
        functions = [name for name in names if name not in models]
        self._pool_of: dict[str, WorkerPool] = {}
        for group in filter(None, [functions, *([name] for name in models)]):
            columns = [column_of(name) for name in group]
            own = {column: given[column] for column in columns if column in given}
            pool = WorkerPool(group, own, run, model=group is not functions, **options)
            self._pool_of |= dict.fromkeys(columns, pool)

    def start(self) -> None:
        """Load all functions and models, so that what is wrong with them is known at once.

        Raises:
            ConfigError, EnvironmentProblem: one cannot be loaded.
        """
        with ThreadPoolExecutor() as threads:
            list(threads.map(WorkerPool.start, self._pools()))

    def submit(self, tasks: Sequence[Task]) -> Future[list[Outcome]]:
        """The outcomes of ``tasks``, in order. Cancelled, it takes back what no worker has begun."""
        return together([self._pool_of[task.column].submit(task) for task in tasks], list)

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """The outcome of every task, in order. Returns when all have one."""
        return self.submit(tasks).result()

    def close(self) -> None:
        """End all workers, whatever they do; who waits for an outcome gets ``CancelledError``."""
        for pool in self._pools():
            pool.close()

    def _pools(self) -> list[WorkerPool]:
        return list(dict.fromkeys(self._pool_of.values()))


def together(parts: Sequence[Future[_Part]], made: Callable[[list[_Part]], _Whole]) -> Future[_Whole]:
    """What ``made`` makes of all results, in order, or the first error; who cancels it cancels the ``parts``."""
    whole = Future[_Whole]()
    lock, left = threading.Lock(), len(parts)

    def end() -> None:
        if not whole.set_running_or_notify_cancel():
            return
        try:
            whole.set_result(made([part.result() for part in parts]))
        except Exception as error:
            whole.set_exception(error)

    def count(_: Future[_Part]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            end()

    def pass_on(ended: Future[_Whole]) -> None:
        for part in parts if ended.cancelled() else ():
            part.cancel()

    whole.add_done_callback(pass_on)
    for part in parts:
        part.add_done_callback(count)
    if not parts:
        end()
    return whole

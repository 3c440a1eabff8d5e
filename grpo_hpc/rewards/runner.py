"""All rewards of a run: functions share a pool of workers, and each reward model has a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grpo_hpc.rewards.names import column_of
from grpo_hpc.rewards.registry import check_names, is_model
from grpo_hpc.rewards.worker_pool import Outcome, Task, WorkerPool


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
        # Threads that last: a worker process is killed when the thread that started it ends.
        self._threads = ThreadPoolExecutor(len(self._pools()))

    def start(self) -> None:
        """Load all functions and models, so that what is wrong with them is known at once.

        Raises:
            ConfigError, EnvironmentProblem: one cannot be loaded.
        """
        list(self._threads.map(WorkerPool.start, self._pools()))

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """The outcome of every task, in order; the pools work at the same time."""
        shares = {pool: [n for n, t in enumerate(tasks) if self._pool_of[t.column] is pool] for pool in self._pools()}
        done = self._threads.map(lambda pool, share: pool.run([tasks[n] for n in share]), shares, shares.values())
        pairs = zip(shares.values(), done, strict=True)
        found = {n: outcome for share, outcomes in pairs for n, outcome in zip(share, outcomes, strict=True)}
        return [found[n] for n in range(len(tasks))]

    def close(self) -> None:
        """End all workers."""
        for pool in self._pools():
            pool.close()
        self._threads.shutdown()

    def _pools(self) -> list[WorkerPool]:
        return list(dict.fromkeys(self._pool_of.values()))

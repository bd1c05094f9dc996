"""Seeds of several models side by side, one process a core."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any

from rcprobe.report import SeedRun
from rcprobe.training import TrainConfig

PRELOAD = [
    "rcprobe_plugins.studies.jobs",
    "rcprobe_plugins.models.radd",
    "rcprobe_plugins.models.gpt2_mini",
    "rcprobe.runner",
    "nnsight",
]


@dataclass(frozen=True)
class Job:
    """One seed of one model, trained forward only on a dataset and probed along the way."""

    model: str
    options: Mapping[str, Any]
    dataset: str
    dataset_options: Mapping[str, Any]
    train: TrainConfig
    seed: int


def run_jobs(jobs: Sequence[Job], progress: Callable[[int, int], None]) -> list[SeedRun]:
    """Run jobs on all cores and return their results in order; ``progress`` hears (job number, steps done).

    Workers are forked from a server that imported everything once: that import costs seconds, and forking a
    process that has already computed isn't safe. Each job computes on one thread, so its numbers don't depend on
    how many cores there are.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server inherits it: Ctrl-C is the parent's to handle
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, handler)
    steps = context.SimpleQueue()
    pool = ProcessPoolExecutor(min(len(jobs), _cores()), context, initializer=_start, initargs=(steps,))
    try:
        futures = [pool.submit(_work, number, job) for number, job in enumerate(jobs)]
        running: set[Future[SeedRun]] = set(futures)
        while running:
            done, running = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
            while not steps.empty():
                progress(*steps.get())
            for future in done:
                future.result()  # the first job that fails ends the study
        return [future.result() for future in futures]
    except BaseException:
        for process in (pool._processes or {}).values():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_steps: Any = None


def _start(steps: Any) -> None:
    import torch

    global _steps
    _steps = steps
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


def _work(number: int, job: Job) -> SeedRun:
    from rcprobe.loading import load
    from rcprobe.probe import resolve_metrics
    from rcprobe.runner import load_dataset, run_seed

    m = load(job.model, options=job.options, seed=job.seed)
    dataset = load_dataset(job.dataset, job.dataset_options)
    metrics = resolve_metrics(None)
    return run_seed(m, dataset, metrics, job.train, job.seed, progress=lambda step, _: _steps.put((number, step)))

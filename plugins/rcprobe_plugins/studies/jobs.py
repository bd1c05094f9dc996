"""Seeds of several models on all cores: trained side by side, then probed one by one.

Importing this module doesn't import torch, so that the server of workers can begin to while the caller does.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rcprobe.facts import Dataset
    from rcprobe.loaded import LoadedModel
    from rcprobe.report import SeedRun
    from rcprobe.training import TrainConfig
    from rcprobe_plugins.studies.fast_trainer import Recording

PRELOAD = [
    "rcprobe_plugins.studies.fast_trainer",
    "rcprobe_plugins.models.radd",
    "rcprobe_plugins.models.gpt2_mini",
    "rcprobe.runner",
    "nnsight",
]


@dataclass(frozen=True)
class Job:
    """Seeds of one tiny model, trained forward only on a dataset and probed along the way.

    ``label`` names it to whoever waits. ``kept`` is the file for what was trained; if it is there, nothing is trained
    again.
    """

    label: str
    model: str
    options: Mapping[str, Any]
    dataset: str
    dataset_options: Mapping[str, Any]
    train: "TrainConfig"
    seeds: tuple[int, ...]
    kept: Path | None = None


def start_server() -> None:
    """Start the process that workers are forked from, and return while it imports what they need.

    That import costs seconds, so it is done once; and forking a process that has already computed isn't safe.
    """
    forkserver.set_forkserver_preload(PRELOAD)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server inherits it: Ctrl-C is the parent's to handle
    untuned = "GLIBC_TUNABLES" not in os.environ
    if untuned:  # large pages, for the server alone: a training is a tenth faster
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    try:
        forkserver.ensure_running()
    finally:
        if untuned:
            del os.environ["GLIBC_TUNABLES"]
        signal.signal(signal.SIGINT, handler)


def run_jobs(jobs: Sequence[Job], progress: Callable[[int, float], None]) -> "list[list[SeedRun]]":
    """Run jobs on all cores: for each, its seeds' results in order. ``progress`` hears (job number, share done).

    A job's seeds are trained together, in one worker and on one thread, so numbers don't depend on how many cores
    there are.
    """
    steps = multiprocessing.get_context("forkserver").SimpleQueue()
    with workers(cores(), steps) as pool:
        trainings = {pool.submit(_train, number, job): number for number, job in enumerate(jobs)}
        probings: list[list[Future[SeedRun]]] = [[] for _ in jobs]
        running: set[Future[Any]] = set(trainings)
        while running:
            done, running = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
            while not steps.empty():
                number, step = steps.get()
                progress(number, 0.5 * step / jobs[number].train.steps)
            for future in done:
                found = future.result()  # the first job that fails ends the study
                if future in trainings:
                    number, job = trainings[future], jobs[trainings[future]]
                    seeds = zip(job.seeds, found, strict=True)
                    probings[number] = [pool.submit(_probe, job, seed, recording) for seed, recording in seeds]
                    running.update(probings[number])
            for number, futures in enumerate(probings):
                if futures:
                    progress(number, 0.5 + 0.5 * sum(future.done() for future in futures) / len(futures))
        return [[future.result() for future in futures] for futures in probings]


@contextmanager
def workers(count: int, steps: Any = None) -> Iterator[ProcessPoolExecutor]:
    """Processes that work on one thread each. None outlives the block or this process, however that ends.

    ``steps`` is a queue that a training in a worker reports to.
    """
    start_server()
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(steps,))
    try:
        yield pool
    except BaseException:
        for process in (pool._processes or {}).values():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def cores() -> int:
    """How many processes this one may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_steps: Any = None


def _start(steps: Any) -> None:
    import torch

    global _steps
    _steps = steps
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed can't end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _train(number: int, job: Job) -> "list[Recording]":
    from rcprobe.loading import load
    from rcprobe.runner import load_dataset
    from rcprobe_plugins.studies.fast_trainer import record
    from rcprobe_plugins.studies.kept_training import keep_training, kept_training

    models = [load(job.model, options=job.options, seed=seed) for seed in job.seeds]
    data = load_dataset(job.dataset, job.dataset_options)

    def train() -> "list[Recording]":
        return record(models, data.facts, job.train, job.seeds, lambda step, _: _steps.put((number, step)))

    if job.kept is None:
        return train()
    described = _described(job, models, data)
    found = kept_training(job.kept, described)
    if found is None:
        found = train()
        keep_training(job.kept, found, described)
    return found


def _described(job: Job, models: "Sequence[LoadedModel]", data: "Dataset") -> dict[str, Any]:
    """All that the weights depend on."""
    from rcprobe.manifest import make_manifest

    manifest = make_manifest(
        models[0], data, (), job.seeds, job.train, "auto", decoding=None, config=None, revisions=None, stops=()
    )
    starts = [m.fingerprint() for m in models]
    return {**manifest["settings"], "dataset_options": dict(job.dataset_options), "starts": starts}


def _probe(job: Job, seed: int, recording: "Recording") -> "SeedRun":
    from rcprobe.loading import load
    from rcprobe.metrics import resolve_metrics
    from rcprobe.runner import load_dataset, run_seed

    m = load(job.model, options=job.options, seed=seed)
    dataset = load_dataset(job.dataset, job.dataset_options)
    return run_seed(m, dataset, resolve_metrics(None), job.train, seed, training=recording.replay)

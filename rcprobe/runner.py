"""``run``: a model, a dataset, a report."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rcprobe.decoding import Decoding
from rcprobe.errors import TrainingError, UsageError
from rcprobe.facts import Dataset, Direction, Fact, Query
from rcprobe.loaded import LoadedModel
from rcprobe.loading import load
from rcprobe.manifest import config_of, make_manifest, without_path
from rcprobe.metrics import Metric, resolve_metrics
from rcprobe.model_files import load_model, save_model
from rcprobe.plugins import registry
from rcprobe.probe import Probe
from rcprobe.probing.sizes import BatchSize
from rcprobe.probing.verify import verify_shift
from rcprobe.progress import Display
from rcprobe.report import Report, SeedRun, load_report, save_report
from rcprobe.revisions import Revision, become, check_asked, described, find_revisions, places, said
from rcprobe.seed_folder import SeedFolder
from rcprobe.store import RunFolder, open_run
from rcprobe.summary import summarise
from rcprobe.training import Checkpoint, TrainConfig
from rcprobe.training import train as train_model
from rcprobe.training.choice import best_rate, try_rates
from rcprobe.training.choice import said as said_of_rates
from rcprobe.training.method import adapted, check_training, put_trained_state, trained_state
from rcprobe.training.processes import Processes, processes

Progress = Callable[[int, int], None]
Training = Callable[..., Iterator[Checkpoint]]


def run(
    model: str | Path | LoadedModel,
    dataset: str | Dataset | Sequence[Fact],
    *,
    metrics: Sequence[str | Metric] | None = None,
    train: TrainConfig | None = None,
    revisions: Sequence[str] | None = None,
    seeds: int = 1,
    limit: int | None = None,
    batch_size: BatchSize = "auto",
    decoding: Decoding | None = None,
    out: str | Path | None = None,
    resume: Literal["auto", "never"] = "auto",
    fresh: bool = False,
    progress: bool = True,
) -> Report:
    """Ask a model about a dataset's facts both ways and judge the signatures.

    ``model`` is a name, path or hub id for ``load``, or what ``load`` returned; ``dataset`` a registered name,
    a CSV file, a ``Dataset`` or facts. ``train`` trains it on forward statements first, probing along the way. With
    several ``seeds`` each starts from the model's factory, or, for a model that came with weights, from those
    weights; a trained model keeps the weights of the last probe when there is one seed, and gets its own back when
    there are several. ``limit`` takes the first facts only; ``decoding`` says how answers are written, where a
    metric reads them. ``revisions`` are checkpoints of the model, on the hub or in folders
    (``rcprobe.revisions.places`` says where), loaded one after the other; each is a step of one seed, and ``model`` is
    left with the one loaded last.

    ``out`` is the folder to keep the run in; None keeps nothing. If the same run stopped there, it goes on, and its
    numbers are those of a run that never stopped (``resume="never"`` refuses instead); another run there is refused
    with what differs. ``fresh`` starts over in a new folder beside it, x-2 for x. Raises subclasses of
    ``RcprobeError``.
    """
    if revisions is not None:
        check_asked(revisions, train)
    data = load_dataset(dataset) if isinstance(dataset, str) else _as_dataset(dataset)
    whole, data = data, data.limited(limit)
    chosen = resolve_metrics(metrics)
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; use 1 or more")
    team = processes()
    with _opened(out, team, resume, fresh) as kept:
        m = model if isinstance(model, LoadedModel) else _load(model, revisions)
        if seeds > 1 and train is None and m.factory is None:
            raise UsageError(
                "several seeds of one set of weights, without training, would be the same run; use seeds=1"
            )
        history = find_revisions(m, revisions) if revisions else ()
        if train is not None:
            check_training(m, data.facts, train)
        first = train.seed if train else 0
        numbers = range(first, first + seeds)
        if kept is not None:
            config = config_of(m, whole, chosen, numbers, train, batch_size, limit, decoding, revisions or ())
            _begin(kept, m, data, chosen, numbers, train, batch_size, decoding, history, config)
        team.wait()
        with Display(progress and team.first) as display:
            if train is not None and train.lr_grid:
                train, note = _with_chosen_rate(m, data, train, display, kept)
                data = replace(data, notes=(*data.notes, note))
            if history:
                data = replace(data, notes=(*data.notes, said(history)))
            if train is not None and train.steps < train.warmup:
                reached = f"the learning rate got to {train.lr_at(train.steps):.2g} of {train.lr:g}"
                data = replace(
                    data, notes=(*data.notes, f"training ended in its {train.warmup} warm-up steps: {reached}")
                )
            runs = _run_seeds(m, data, chosen, numbers, train, batch_size, decoding, display, kept, history)
            if kept is not None and kept.finished():
                return load_report(kept)
            report = summarise(m, data, chosen, runs, train=train, decoding=decoding, revisions=described(history))
            if kept is not None:
                if kept.writes:
                    save_report(report, kept.path, display.bar("writing values.csv"))
                kept.finish()
                report = replace(report, folder=kept.path)
    if team.first:
        registry().notify("run_finished", report=report)
    return report


def _begin(
    kept: RunFolder,
    m: LoadedModel,
    data: Dataset,
    metrics: Sequence[Metric],
    seeds: range,
    train: TrainConfig | None,
    batch_size: BatchSize,
    decoding: Decoding | None,
    history: Sequence[Revision],
    config: Mapping[str, Any] | None,
) -> None:
    """Write what the run is, or make sure that it is the one that is kept."""
    manifest = make_manifest(
        m,
        data,
        metrics,
        seeds,
        train,
        batch_size,
        decoding=decoding,
        config=config,
        revisions=described(history),
        stops=train.probed() if train else [found.step for found in history] or (0,),
    )
    kept.begin(manifest, data)


def _load(model: str | Path, revisions: Sequence[str] | None) -> LoadedModel:
    if not revisions:
        return load(model)
    source, revision = places(str(model), revisions)[0]
    return load(source, revision=revision)


@contextmanager
def _opened(
    out: str | Path | None, team: Processes, resume: Literal["auto", "never"], fresh: bool
) -> Iterator[RunFolder | None]:
    """The folder to keep a run in; of several processes the first holds and writes it, the others read there."""
    if out is None:
        yield None
    elif team.first:
        with open_run(out, resume=resume, fresh=fresh) as kept:
            team.told(str(kept.path))
            yield kept
            team.wait()
    else:
        yield RunFolder(Path(team.told("")), writes=False)
        team.wait()


def _with_chosen_rate(
    m: LoadedModel, data: Dataset, train: TrainConfig, display: Display, kept: RunFolder | None
) -> tuple[TrainConfig, str]:
    """The training at the best rate of its grid, and what to say of that; a kept run chooses once."""
    tried = kept.tried_rates() if kept is not None else None
    keep = kept.keep_tried_rates if kept is not None else None
    found = try_rates(m, data, train, display.bar("learning rates"), tried=tried, keep=keep)
    return replace(train, lr=float(processes().told(repr(best_rate(found))))), said_of_rates(found)


def _run_seeds(
    m: LoadedModel,
    data: Dataset,
    metrics: Sequence[Metric],
    seeds: range,
    train: TrainConfig | None,
    batch_size: BatchSize,
    decoding: Decoding | None,
    display: Display,
    kept: RunFolder | None,
    history: Sequence[Revision],
) -> list[SeedRun]:
    """Each seed from its own start; a model that came with weights has them back at the end if there are several."""
    several = len(seeds) > 1
    overwritten = several and m.factory is None and train is not None and train.method == "full"
    weights = trained_state(m.model) if overwritten else {}
    runs = []
    for seed in seeds:
        folder = kept.seed(seed) if kept is not None else None
        if several and folder is not None and folder.finished():
            runs.append(_kept_seed(seed, folder))
            continue
        one = m.replica(seed) if several and m.factory is not None else m
        bar = display.bar("revisions" if history else f"seed {seed}, training")
        probing = display.bar(f"seed {seed}, probing")
        try:
            with adapted(one, train, seed, keep=not several) if train is not None else nullcontext():
                found = run_seed(
                    one,
                    data,
                    metrics,
                    train,
                    seed,
                    batch_size,
                    bar,
                    probing=probing,
                    kept=folder,
                    decoding=decoding,
                    revisions=history,
                )
        finally:
            put_trained_state(m.model, weights)
        runs.append(found)
    return runs


def run_seed(
    m: LoadedModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    train: TrainConfig | None,
    seed: int,
    batch_size: BatchSize = "auto",
    progress: Progress | None = None,
    training: Training = train_model,
    *,
    probing: Progress | None = None,
    kept: SeedFolder | None = None,
    decoding: Decoding | None = None,
    revisions: Sequence[Revision] = (),
) -> SeedRun:
    """One seed: train if asked, probe at each stop, or each of the ``revisions`` of a model that isn't trained.

    A training that diverges ends as the run's ``failure``. ``progress`` hears of training steps or revisions,
    ``probing`` of a probe's passes. ``training`` is ``rcprobe.training.train``, or what yields the same stops with the
    same weights in the model; with ``kept``, whose steps are not done again, it is given ``state`` and ``keep`` too.
    Raises ``RunError`` naming a kept file that is damaged.
    """
    if kept is not None and kept.finished():
        run = _kept_seed(seed, kept)
        if train is not None and run.failure is None:
            load_model(m, kept.model, run.fingerprint)
        return run
    probe = Probe(m, dataset, metrics, seed=seed, batch_size=batch_size, decoding=decoding, progress=probing)
    if kept is not None:
        probe.batch_size = probe.batch_used = kept.batch_size(probe.settle)
    failure = None
    try:
        if train is not None:
            _train(m, probe, train, progress, training, kept)
        elif revisions:
            _follow(m, probe, revisions, progress, kept)
        else:
            if m.factory is None:
                verify_shift(m, _queries(probe, "reverse"))
            _probe(probe, 0, None, kept)
    except TrainingError as error:
        failure = str(error)
    fingerprint = m.fingerprint()
    if kept is not None:
        if train is not None and failure is None and kept.writes:
            save_model(m, kept.model)
        kept.finish(failure, fingerprint, [step.step for step in probe.steps], probe.batch_used)
    return SeedRun(seed, tuple(probe.steps), failure, fingerprint, probe.batch_used)


def _train(
    m: LoadedModel,
    probe: Probe,
    train: TrainConfig,
    progress: Progress | None,
    training: Training,
    kept: SeedFolder | None,
) -> None:
    """Train from where ``kept`` stands, probing at each stop."""
    options: dict[str, Any] = {}
    if kept is not None:
        reached, state = kept.load_state() or (0, None)
        probe.steps += [kept.step(number) for number in train.probed() if number < reached]
        options = {"state": state, "keep": kept.save_state}
        processes().wait()  # all stand where the first does, before it goes on and keeps more
    for stop in training(m, probe.dataset.facts, train, probe.seed, progress, **options):
        if stop.step == train.steps:
            verify_shift(m, _queries(probe, "forward"))
        _probe(probe, stop.step, stop.loss, kept)


def _follow(
    m: LoadedModel, probe: Probe, revisions: Sequence[Revision], progress: Progress | None, kept: SeedFolder | None
) -> None:
    """Probe each revision. Of those that ``kept`` has, none is loaded but the last, which the model is left with."""
    done = kept.numbers() if kept is not None else ()
    for number, revision in enumerate(revisions):
        if progress is not None:
            progress(number, len(revisions))
        if revision is revisions[-1] or revision.step not in done:
            become(m, revision)
        if revision is revisions[-1]:
            verify_shift(m, _queries(probe, "forward"))
        _probe(probe, revision.step, None, kept)


def _probe(probe: Probe, number: int, loss: float | None, kept: SeedFolder | None) -> None:
    """Measure a step, or take it as it was kept."""
    if kept is not None and number in kept.numbers():
        probe.steps.append(kept.step(number))
        return
    found = probe.step(number, loss)
    if kept is not None:
        kept.save_step(found)


def _queries(probe: Probe, direction: Direction) -> list[Query]:
    return [getattr(pair, direction) for pair in probe.pairs.get("swapped", [])]


def _kept_seed(seed: int, kept: SeedFolder) -> SeedRun:
    result = kept.result()
    return SeedRun(seed, result.steps, result.failure, result.fingerprint, result.batch_size)


def load_dataset(name: str, options: Mapping[str, Any] | None = None) -> Dataset:
    """A registered dataset by name, or the facts of a file: what is registered for its suffix reads it.

    Raises ``UnknownNameError``; ``UsageError`` for an option that it doesn't take or a file that can't be read.
    """
    given, registered = dict(options or {}), registry().names("datasets")
    suffix = Path(name).suffix
    if name not in registered and suffix in registered:
        make, given["path"] = registry().get("datasets", suffix), name
    else:
        make = registry().get("datasets", name)
    known = inspect.signature(make).parameters
    unknown = [option for option in given if option not in known]
    if unknown:
        raise UsageError(f"dataset {name!r}: unknown option {unknown[0]!r}; known: {', '.join(known) or 'none'}")
    try:
        dataset = make(**given)
    except (TypeError, ValueError) as error:
        asked = ", ".join(f"{option}={value!r}" for option, value in given.items()) or "no option"
        raise UsageError(f"dataset {name!r} can't be made with {asked} ({type(error).__name__}: {error})") from error
    if not isinstance(dataset, Dataset):
        raise UsageError(f"dataset {name!r} gave a {type(dataset).__name__}, not an rcprobe.Dataset")
    kept = {key: without_path(value) if isinstance(value, str) else value for key, value in (options or {}).items()}
    return replace(dataset, options=kept)


def _as_dataset(facts: Dataset | Sequence[Fact]) -> Dataset:
    return facts if isinstance(facts, Dataset) else Dataset("facts", tuple(facts))

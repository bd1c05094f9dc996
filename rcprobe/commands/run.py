"""``rcprobe run``."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcprobe.commands.output import bars_for_people, duration, print_json, say, tell_failures
from rcprobe.errors import RunError, UsageError
from rcprobe.plugins import registry

if TYPE_CHECKING:
    from rcprobe.config import RunConfig
    from rcprobe.estimate import Cost
    from rcprobe.loaded import LoadedModel


def _models() -> list[str]:
    return registry().names("models")


def _datasets() -> list[str]:
    return registry().names("datasets")


def _metrics() -> list[str]:
    return registry().names("metrics")


Model = Annotated[
    str | None,
    typer.Argument(
        help="A registered model, a folder, a GGUF file or a hub id.", show_default=False, autocompletion=_models
    ),
]
Data = Annotated[
    str | None,
    typer.Argument(
        help="A registered dataset, or a table (.csv, .jsonl, …).",
        show_default=False,
        autocompletion=_datasets,
    ),
]


def run_command(
    model: Model = None,
    dataset: Data = None,
    config: Annotated[str | None, typer.Option(help="A TOML file, or a run's manifest.json; flags win.")] = None,
    steps: Annotated[int | None, typer.Option(help="Train so many steps, forward only, first.")] = None,
    train: Annotated[str | None, typer.Option(help="Fine-tune first, forward only: lora or full.")] = None,
    lr: Annotated[
        list[float] | None, typer.Option(help="The learning rate; of several, the best forward one is taken.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds (1).")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many facts.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the model; repeatable.")] = None,
    data_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the dataset; repeatable.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Measure these alone; repeatable.", autocompletion=_metrics)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts at once (what memory holds).")] = None,
    revision: Annotated[str | None, typer.Option(help="The commit, branch or tag of a hub id.")] = None,
    revisions: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Probe each of these revisions or checkpoint folders in turn.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="A registered family to read a checkpoint as.")] = None,
    peft: Annotated[str | None, typer.Option(help="A folder of low-rank adapters to put on the model.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights too (tensors alone).")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu (the default), cuda, …")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    out: Annotated[str | None, typer.Option(help="The folder to keep the run in, or to go on in.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="If --out is in use, start over beside it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Probe a model with a dataset's facts, trained first if asked.

    Example: rcprobe run radd letters --steps 1500 --seeds 5 --out runs/radd
    """
    from rcprobe.commands.refuse import refuse
    from rcprobe.config import FINE_TUNING, RunConfig, read_config

    if fresh and out is None and config is None:
        raise UsageError("--fresh starts over beside a folder; name it with --out")
    flags = {
        "model": model,
        "dataset": dataset,
        "train": _training(steps, lr or []),
        "seeds": seeds,
        "limit": limit,
        "options": _options("--option", option or []) or None,
        "dataset_options": _options("--data-option", data_option or []) or None,
        "metrics": metric or None,
        "batch_size": batch_size,
        "revision": revision,
        "revisions": None if revisions is None else revisions.split(","),
        "adapter": adapter,
        "peft": peft,
        "allow_pickle": allow_pickle or None,
        "device": device,
        "dtype": dtype,
        "out": out,
    }
    asked = (read_config(config) if config is not None else RunConfig()).with_flags(flags)
    if train is not None:
        asked = replace(asked, train={**FINE_TUNING, **asked.train, "method": train})
    tell_failures()  # before a name is missed, or hours go by that a tracker doesn't hear of
    told = list(registry().failures)
    refuse(asked, config)
    if asked.revisions is not None:
        _check_history(asked)
    show = not (quiet or as_json)
    if dry_run:
        cost = _cost(asked, show)
        if as_json:
            print_json(_labelled(cost))
        elif not quiet:
            _print_cost(asked, cost)
    else:
        _run(asked, fresh=fresh, show=show, as_json=as_json, quiet=quiet)
    tell_failures(told)


def _run(asked: "RunConfig", *, fresh: bool, show: bool, as_json: bool, quiet: bool) -> None:
    import rcprobe
    from rcprobe.report.terminal import print_report
    from rcprobe.training.processes import speaks

    training = asked.training()
    data = rcprobe.load_dataset(asked.dataset, asked.dataset_options)
    if not (fresh or quiet):
        _tell_what_is_there(asked.out)
    loaded = _load(asked, show)
    run = rcprobe.run  # what it needs is imported before an interrupt could fall into that
    try:
        report = run(
            loaded,
            data,
            metrics=asked.metrics,
            train=training,
            seeds=asked.seeds,
            limit=asked.limit,
            batch_size=asked.batch_size,
            decoding=asked.answering(),
            out=asked.out,
            fresh=fresh,
            progress=show,
            revisions=asked.revisions,
        )
    except KeyboardInterrupt:
        if speaks() and not (fresh or quiet):
            with suppress(RunError):
                _tell_what_is_there(asked.out, "; the same command goes on with it")
        raise
    if not speaks():
        return
    if as_json:
        print_json(report.to_dict())
    elif not quiet:
        print_report(report)
    if fresh and not quiet:
        say(f"kept in {report.folder}", err=True)


def _load(asked: "RunConfig", show: bool) -> "LoadedModel":
    from rcprobe.loading import load

    bars_for_people(show)
    source, revision = asked.model, asked.revision
    if asked.revisions:
        from rcprobe.revisions import places

        source, revision = places(asked.model, asked.revisions)[0]
    return load(
        source,
        options=asked.options,
        device=asked.device,
        dtype=asked.dtype,
        revision=revision,
        device_map=asked.device_map,
        quantization_config=asked.quantization_config,
        allow_pickle=asked.allow_pickle,
        adapter=asked.adapter,
        peft=asked.peft,
    )


def _check_history(asked: "RunConfig") -> None:
    from rcprobe.revisions import check_asked

    check_asked(asked.revisions or [], asked.training())
    if asked.revision is not None:
        raise UsageError("--revision names one revision, --revisions several; give one of the two")


def _cost(asked: "RunConfig", show: bool) -> "Cost":
    import rcprobe
    from rcprobe.estimate import estimate
    from rcprobe.metrics import resolve_metrics

    training = asked.training()
    data = rcprobe.load_dataset(asked.dataset, asked.dataset_options).limited(asked.limit)
    cost = estimate(_load(asked, show), data, resolve_metrics(asked.metrics), training, asked.seeds, asked.batch_size)
    return cost.times(len(asked.revisions)) if asked.revisions else cost


def _labelled(cost: "Cost") -> dict[str, Any]:
    pairs = {name: {"askable": can, "of": all_} for name, (can, all_) in cost.pairs.items()}
    return {**cost.__dict__, "pairs": pairs}


def _print_cost(asked: "RunConfig", cost: "Cost") -> None:
    pairs = ", ".join(
        f"{name} {can:,}" + (f" of {all_:,}" if can < all_ else "") for name, (can, all_) in cost.pairs.items()
    )
    trained = f"{cost.steps:,} training steps and " if cost.steps else ""
    rows = {
        "facts": f"{cost.facts:,}",
        "pairs": pairs,
        "work": f"{trained}{cost.probes} probes of {cost.batches} batches, {asked.seeds} seed{'s'[: asked.seeds != 1]}",
        "parameters": f"{cost.parameters:,}",
        "time": f"about {duration(cost.seconds)}",
        "memory": f"about {cost.memory / 2**20:,.0f} MiB at the peak",
        "how": cost.how,
    }
    for name, text in rows.items():
        say(f"{name:<11} {text}")


def _tell_what_is_there(out: str | None, way_on: str = "") -> None:
    from rcprobe.store import MANIFEST, RunFolder

    if out and (Path(out) / MANIFEST).exists():
        done, of = RunFolder(Path(out)).progress()
        say(f"{out} holds {done} of {of} probed steps{way_on}", err=True)


def _training(steps: int | None, rates: list[float]) -> dict[str, Any] | None:
    given: dict[str, Any] = {} if steps is None else {"steps": steps}
    if rates:
        given |= {"lr": rates[0], "lr_grid": []} if len(rates) == 1 else {"lr_grid": rates}
    return given or None


def _options(flag: str, pairs: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UsageError(f"{flag} {pair!r} is not of the form name=value")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options

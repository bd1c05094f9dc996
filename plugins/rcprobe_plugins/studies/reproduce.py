"""``rcprobe reproduce``: the paper's tables, beside ours."""

from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcprobe.commands.output import print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rcprobe.report import Report
    from rcprobe.report.sheet import Sheet
    from rcprobe_plugins.studies.one_layer import Setting
    from rcprobe_plugins.studies.reviews.answer import Answer

TABLES = ("tab1", "tab2", "tab3", "tab4", "tab5", "fig3")
TUNED = ("tab7", "fig4", "fig6")
QUICK_SEEDS = 3


def command(
    table: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(TABLES)}, reviews, or all of these; {', '.join(TUNED)}: fine-tuned models.",
            show_default=False,
        ),
    ],
    seeds: Annotated[
        int | None,
        typer.Option(help="Seeds of each model (8; 3 with --quick and of tab7; 1 with --mini).", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small and short: a minute or two a table.")] = False,
    question: Annotated[str, typer.Option(help="Of reviews: letters, as in ae; all of a to i by default.")] = "",
    mini: Annotated[bool, typer.Option("--mini", help="Of tab7, fig4, fig6: a small model, on a CPU.")] = False,
    model: Annotated[str | None, typer.Option(help="Of --mini: a causal model's folder or hub id.")] = None,
    data: Annotated[Path | None, typer.Option(help="Of tab7, fig4, fig6: the folder of the public files.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Of tab7, fig4, fig6: say what would be run, and stop.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A folder for CSV, LaTeX, HTML and SVG; tab7, fig4, fig6 go on in theirs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train the one-layer models of the paper and print its tables beside ours, every seed shown; fine-tune large
    models on facts in one direction (tab7, fig4, fig6); or answer what its readers still ask (reviews): a sentence
    with its interval and a figure for each question.

    Example: rcprobe reproduce tab2 --quick --out runs/tab2
    """
    from rcprobe.errors import TrainingError, UnknownNameError, UsageError

    if seeds is not None and seeds < 1:
        raise UsageError(f"--seeds {seeds}: use 1 or more")
    if question and table not in ("reviews", "all"):
        raise UsageError(f"--question {question} is of reviews: rcprobe reproduce reviews --question {question}")
    if out is not None and not (quiet or dry_run):
        from rcprobe.report.figures import installed

        if not installed():
            missing = "no HTML and no figures without matplotlib and jinja2"
            say(f"rcprobe: {missing}: pip install 'rcprobe[report]'", err=True)
    if table in TUNED:
        from rcprobe_plugins.studies.fine_tuned_command import reproduce_tuned

        reproduce_tuned(
            table, seeds, out, mini=mini, model=model, data=data, dry_run=dry_run, quick=quick, as_json=as_json,
            quiet=quiet,
        )  # fmt: skip
        return
    if table not in (*TABLES, "reviews", "all"):
        raise UnknownNameError("table", table, (*TABLES, *TUNED, "reviews", "all"))
    theirs = {"--mini": mini, "--model": model is not None, "--data": data is not None, "--dry-run": dry_run}
    given = [flag for flag, is_given in theirs.items() if is_given]
    if given:
        raise UsageError(f"{given[0]} is of {', '.join(TUNED)}, not of {table}")
    if question:
        from rcprobe_plugins.studies.reviews.questions import known_questions

        known_questions(question)  # before a folder is made
    show = not (quiet or as_json)
    count = seeds or (QUICK_SEEDS if quick else 8)
    asked = {"table": table, "seeds": count, "quick": quick, "question": question}
    with nullcontext() if out is None else _kept(out, asked, show=show) as kept:
        tables = TABLES if table == "all" else () if table == "reviews" else (table,)
        sheets = _tables(tables, count, quick, out, kept, show=show)
        answers: list[Answer] = []
        if table in ("reviews", "all"):
            from rcprobe_plugins.studies.reviews.command import answer_questions

            answers = answer_questions(question, seeds, quick, out, show=show)
    if as_json:
        said = [{"question": one.question, "asked": one.asked, "says": one.says} for one in answers]
        print_json({sheet.key: sheet.to_dict() for sheet in sheets} | ({"reviews": said} if said else {}))
    diverged = ", ".join(one.question for one in answers if one.rows.empty)
    if diverged:
        raise TrainingError(f"not answered: {diverged}; a training diverged, as said above and kept with the answers")


@contextmanager
def _kept(out: Path, asked: dict[str, Any], *, show: bool) -> "Iterator[Path]":
    """The study's folder for what it trains; whoever interrupts the study is told what is there."""
    from rcprobe_plugins.studies.kept_training import study_folder

    with study_folder(out, asked) as kept:
        try:
            yield kept
        except KeyboardInterrupt:
            if show and any(kept.glob("*.safetensors")):
                say(f"rcprobe: the models that are trained are kept in {kept}; the same command goes on", err=True)
            raise


def _tables(
    tables: tuple[str, ...], seeds: int, quick: bool, folder: Path | None, kept: Path | None, *, show: bool
) -> "list[Sheet]":
    """Print and save each table as soon as it is there."""
    sheets = []
    for sheet in reproduce(tables, seeds, quick, kept=kept, show=show):
        from rcprobe.report.sheet import print_sheet, save_sheet

        sheets.append(sheet)
        if show:
            print_sheet(sheet)
        if folder is not None:
            save_sheet(sheet, folder)
    return sheets


def reproduce(
    tables: tuple[str, ...], seeds: int, quick: bool = False, *, kept: Path | None = None, show: bool = False
) -> "Iterator[Sheet]":
    """The tables' sheets, one by one; a model that several tables need is trained once, before the first.

    ``kept`` is the folder for what was trained, as ``train_settings`` takes it.
    """
    from functools import partial

    from rcprobe_plugins.studies.one_layer import recipe, train_settings

    wanted = {table: settings_of(table, quick) for table in tables}
    every = list(dict.fromkeys(setting for settings in wanted.values() for setting in settings))
    trained = train_settings(every, seeds, partial(recipe, quick=quick), kept=kept, show=show) if every else {}
    for table in tables:
        yield _sheet(table, {setting: trained[setting] for setting in wanted[table]})


def settings_of(table: str, quick: bool = False) -> "list[Setting]":
    """The models whose training a table needs."""
    from rcprobe_plugins.studies.one_layer import LENGTHS, Setting, encodings

    lengths = LENGTHS[:1] if quick else LENGTHS
    rope = [Setting("radd", "rope", length) for length in lengths]
    return {
        "tab1": [s for r in rope for s in (r, Setting("gpt2-mini", "absolute", r.length))],
        "tab2": [Setting("radd", name, length) for length in lengths[:2] for name in encodings(quick)],
        "tab3": [],
        "tab4": [],
        "tab5": rope,
        "fig3": rope,
    }[table]


def _sheet(table: str, reports: "dict[Setting, Report]") -> "Sheet":
    from rcprobe_plugins.studies import bounds, one_layer_tables

    if table in ("tab3", "tab4"):
        return bounds.tab3() if table == "tab3" else bounds.tab4()
    trained: Mapping[str, Callable[[dict[Setting, Report]], Sheet]] = {
        "tab1": one_layer_tables.tab1,
        "tab2": one_layer_tables.tab2,
        "tab5": bounds.tab5,
        "fig3": one_layer_tables.fig3,
    }
    return trained[table](reports)

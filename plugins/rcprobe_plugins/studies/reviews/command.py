"""``rcprobe reproduce reviews``: what the paper's readers still ask."""

from pathlib import Path
from typing import Annotated

import typer


def reviews_command(
    question: Annotated[str, typer.Option(help="Letters of the questions, as in ae; all of a to i by default.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Small models, briefly trained: minutes, not an hour.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Seeds of each model: 8, or 3 with --quick.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for values, figures and sentences.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
) -> None:
    """Answer what readers of the paper still ask: one sentence with its interval, one figure a question.

    Example: rcprobe reproduce reviews --question ai --quick --out runs/reviews
    """
    from dataclasses import replace

    from rcprobe.cli import print_json
    from rcprobe.errors import UsageError
    from rcprobe.report.report import new_folder
    from rcprobe_plugins.studies.jobs import cores
    from rcprobe_plugins.studies.reviews.cells import QUICK, Size
    from rcprobe_plugins.studies.reviews.questions import QUESTIONS, reviews, save_answer

    if seeds is not None and seeds < 1:
        raise UsageError(f"--seeds {seeds}: use 1 or more")
    size = replace(QUICK if quick else Size(), workers=cores())
    size = size if seeds is None else replace(size, seeds=seeds)
    letters = list(question) or list(QUESTIONS)
    found = reviews(size, letters)
    folder = new_folder(out) if out is not None else None
    kept = []
    for letter in letters:
        typer.echo(f"({letter}) training {size.seeds} seeds a model …", err=True)
        answer = next(found)
        if folder is not None:
            save_answer(answer, folder)
        if as_json:
            kept.append({"question": answer.question, "asked": answer.asked, "says": answer.says})
        else:
            typer.echo(f"({answer.question}) {answer.asked}\n    {answer.says}")
    if as_json:
        print_json(kept)

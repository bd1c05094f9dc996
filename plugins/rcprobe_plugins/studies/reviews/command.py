"""``rcprobe reproduce reviews``: what the paper's readers still ask."""

from dataclasses import replace
from pathlib import Path

import typer

from rcprobe_plugins.studies.jobs import cores
from rcprobe_plugins.studies.reviews.cells import QUICK, Size
from rcprobe_plugins.studies.reviews.questions import QUESTIONS, reviews, save_answer


def answer_questions(
    letters: str, seeds: int | None, quick: bool, folder: Path | None, *, show: bool
) -> list[dict[str, str]]:
    """Answer questions by their letters (all for none), one after another: question, what was asked, what ours says.

    ``folder`` gets values, figures and sentences. Raises ``UnknownNameError`` for a letter of no question.
    """
    size = replace(QUICK if quick else Size(), workers=cores())
    size = size if seeds is None else replace(size, seeds=seeds)
    asked = list(letters) or list(QUESTIONS)
    found = reviews(size, asked)
    answers = []
    for letter in asked:
        if show:
            typer.echo(f"({letter}) training {size.seeds} seeds a model …", err=True)
        answer = next(found)
        if folder is not None:
            save_answer(answer, folder)
        if show:
            typer.echo(f"({answer.question}) {answer.asked}\n    {answer.says}")
        answers.append({"question": answer.question, "asked": answer.asked, "says": answer.says})
    return answers

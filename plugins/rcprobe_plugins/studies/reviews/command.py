"""``rcprobe reproduce reviews``: what the paper's readers still ask."""

from dataclasses import replace
from pathlib import Path

import typer

from rcprobe.progress import Display
from rcprobe_plugins.studies.jobs import cores
from rcprobe_plugins.studies.reviews.answer import Answer
from rcprobe_plugins.studies.reviews.cells import QUICK, Size
from rcprobe_plugins.studies.reviews.questions import QUESTIONS, reviews, save_answer, save_answers


def answer_questions(letters: str, seeds: int | None, quick: bool, folder: Path | None, *, show: bool) -> list[Answer]:
    """Answer questions by their letters (all for none), one after another.

    ``folder`` gets values, figures and sentences, after each answer. Raises ``UnknownNameError`` for a letter of no
    question.
    """
    size = replace(QUICK if quick else Size(), workers=cores())
    size = size if seeds is None else replace(size, seeds=seeds)
    asked = list(letters) or list(QUESTIONS)
    answers: list[Answer] = []
    with Display(show) as display:
        found = reviews(replace(size, progress=display.bar(f"{size.seeds} seeds a model")), asked)
        questions = display.bar("questions")
        for number, answer in enumerate(found):
            answers.append(answer)
            if show:
                typer.echo(f"({answer.question}) {answer.asked}\n    {answer.says}")
            if folder is not None:
                save_answer(answer, folder)
                save_answers(answers, folder)
            if questions is not None:
                questions(number + 1, len(asked))
    return answers

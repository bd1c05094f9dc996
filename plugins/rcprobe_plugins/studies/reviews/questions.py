"""The questions by letter, and what asking them writes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from rcprobe.errors import TrainingError, UnknownNameError
from rcprobe.files import whole, write_bytes, write_json
from rcprobe.report.figures import installed, write_figures
from rcprobe.report.sheet import Grid, Sheet, page, to_latex
from rcprobe_plugins.studies.reviews.answer import Answer
from rcprobe_plugins.studies.reviews.cells import Size
from rcprobe_plugins.studies.reviews.first_order import step_sizes
from rcprobe_plugins.studies.reviews.flow import condition
from rcprobe_plugins.studies.reviews.layers import by_layer, telling
from rcprobe_plugins.studies.reviews.split import by_matrix
from rcprobe_plugins.studies.reviews.variants import depth, encodings, maskable, objectives

QUESTIONS: Mapping[str, Callable[[Size], Answer]] = {
    "a": encodings,
    "b": depth,
    "c": objectives,
    "d": maskable,
    "e": step_sizes,
    "f": by_matrix,
    "g": by_layer,
    "h": telling,
    "i": condition,
}


def known_questions(letters: Sequence[str]) -> None:
    """Raise ``UnknownNameError`` for a letter of no question."""
    for letter in letters:
        if letter not in QUESTIONS:
            raise UnknownNameError("question", letter, QUESTIONS)


def reviews(size: Size, questions: Sequence[str] = tuple(QUESTIONS)) -> Iterator[Answer]:
    """The answers to the named questions, one by one as they are found. Raises ``UnknownNameError`` before any."""
    known_questions(questions)
    return (_answer(letter, size) for letter in questions)


def _answer(letter: str, size: Size) -> Answer:
    """The answer, or that a model diverged: a mean without it would be of those that didn't."""
    try:
        return QUESTIONS[letter](size)
    except TrainingError as error:
        return Answer(letter, f"Not answered: {error}.", pd.DataFrame(columns=["cell", "seed"]), ())


def save_answer(answer: Answer, folder: Path) -> None:
    """Write an answer's sentence (JSON), every value (CSV) and, where matplotlib is installed, its figure with the
    figure's numbers. Raises ``RunError`` naming a file that can't be written.
    """
    data = answer.figure()
    said = {"question": answer.question, "asked": answer.asked, "says": answer.says}
    write_json(folder / f"{data.key}.json", said)
    with whole(folder / f"{data.key}-values.csv") as temporary:
        answer.rows.to_csv(temporary, index=False)
    if installed():
        write_figures([data], folder)


def save_answers(answers: Sequence[Answer], folder: Path) -> None:
    """Write all answers as a table (LaTeX) and, where matplotlib is installed, as a page with their figures (HTML).
    Raises ``RunError`` naming a file that can't be written.
    """
    rows = tuple((answer.question, answer.asked, answer.says) for answer in answers)
    grid = Grid("Each question and what was found", ("", "question", "finding"), rows)
    says = ("Each question's finding stands in the table with its 95 % interval, and its figure below.",)
    figures = tuple(replace(answer.figure(), says="") for answer in answers)
    sheet = Sheet("reviews", "What readers of the paper ask", says, (grid,), (), figures=figures)
    write_bytes(folder / "reviews.tex", to_latex(sheet).encode())
    if installed():
        write_bytes(folder / "reviews.html", page(sheet).encode())

"""Small sets of facts that come with the package, so that text can be asked offline."""

import csv
from importlib.resources import files

from rcprobe.facts import Dataset, Fact
from rcprobe_plugins.datasets.relation import SHUFFLED
from rcprobe_plugins.datasets.relation import shuffled as exchange

CAPITALS = (
    ("{a} is the capital of {b}.", "{b}'s capital is {a}."),
    ("The city of {a} is the seat of the government of {b}.", "The government of {b} has its seat in the city of {a}."),
    ("{a} is the city from which the country called {b} is governed.", "{b} is a country governed from {a}."),
)
ELEMENTS = (
    ("{a} is the symbol of {b}.", "{b}'s symbol is {a}."),
    ("The letters {a} stand for the element {b}.", "The element {b} is written with the letters {a}."),
    ("In the periodic table, {a} means {b}.", "In the periodic table, {b} is found as {a}."),
)


def capitals(shuffled: bool = False) -> Dataset:
    """Capital cities and their countries: a is the city, b the country.

    Compiled for this package from general knowledge of the members of the United Nations; countries with several
    capitals, one that is disputed, or one of the country's own name are left out. ``shuffled`` gives every city
    another's country, as a control.
    """
    return _dataset("capitals", CAPITALS, shuffled)


def elements(shuffled: bool = False) -> Dataset:
    """Chemical elements: a is the symbol, b the name, of atomic numbers 1 to 118 (IUPAC).

    Compiled for this package. ``shuffled`` gives every symbol another's name, as a control.
    """
    return _dataset("elements", ELEMENTS, shuffled)


def _dataset(name: str, pairs: tuple[tuple[str, str], ...], shuffled: bool) -> Dataset:
    text = files("rcprobe_plugins.datasets").joinpath(f"{name}.csv").read_text(encoding="utf-8")
    forward, reverse = tuple(f for f, _ in pairs), tuple(r for _, r in pairs)
    facts = [Fact(row["a"], row["b"], forward, reverse) for row in csv.DictReader(text.splitlines())]
    notes = (SHUFFLED,) if shuffled else ()
    return Dataset(name, tuple(exchange(facts) if shuffled else facts), notes=notes)

"""A dataset: facts in plain text, and two ways to state each."""

import rcprobe

CAPITALS = {
    "Athens": "Greece",
    "Baghdad": "Iraq",
    "Bangkok": "Thailand",
    "Beijing": "China",
    "Berlin": "Germany",
    "Brussels": "Belgium",
    "Budapest": "Hungary",
    "Cairo": "Egypt",
    "Copenhagen": "Denmark",
    "Dublin": "Ireland",
    "Havana": "Cuba",
    "Helsinki": "Finland",
    "Jakarta": "Indonesia",
    "Lima": "Peru",
    "Lisbon": "Portugal",
    "London": "England",
    "Madrid": "Spain",
    "Moscow": "Russia",
    "Oslo": "Norway",
    "Ottawa": "Canada",
    "Paris": "France",
    "Rome": "Italy",
    "Stockholm": "Sweden",
    "Tokyo": "Japan",
    "Vienna": "Austria",
    "Warsaw": "Poland",
}

# Training sees forward statements only, a before b. The k-th reverse one is asked beside the k-th forward.
FORWARD = ("{a} is the capital of {b}.", "{a} is where the government of {b} sits.")
REVERSE = ("{b}'s capital is {a}.", "The government of {b} sits in {a}.")


def capitals() -> rcprobe.Dataset:
    """26 capitals (a) of countries (b), each stated in two ways.

    An answer is judged against the whole vocabulary and, in the reading named here, against all other
    capitals (or countries, where the country is asked for).
    """
    facts = tuple(rcprobe.Fact(capital, country, FORWARD, REVERSE) for capital, country in CAPITALS.items())
    candidates = (tuple(CAPITALS), tuple(CAPITALS.values()))
    return rcprobe.Dataset("capitals-in-words", facts, readings={"capitals or countries": candidates})

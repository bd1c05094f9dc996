"""What the model writes, against all right answers."""

import torch
from torch import Tensor

from rcprobe import Observation, metric
from rcprobe.facts import Query
from rcprobe.matching import match

KINDS = ("exact", "loose", "prefix", "contains")


@metric(reads={"answers"}, pairing="swapped", title="written answers", on_request=True)
def answers(seen: Observation) -> dict[str, Tensor]:
    """Right (1) or wrong (0) for each query as it was decoded, any right answer being good enough (Tab. 7).

    ``exact`` after lower-casing and stripping, ``loose`` also without final punctuation, ``prefix`` where the text
    starts with an answer, ``contains`` where it holds one; NaN for what couldn't be asked. ``steps`` are the forward
    passes that an answer took.
    """
    assert seen.answers is not None
    columns = {f"{way}, {kind}": _blank(seen) for way in ("forward", "reverse") for kind in (*KINDS, "steps")}
    for i, both in seen.answers.items():
        queries = (seen.pairs[i].forward, seen.pairs[i].reverse)
        for way, query, answer in zip(("forward", "reverse"), queries, both, strict=True):
            cased = query.target.casefold() == query.evidence.casefold()  # d and D of the letters task
            found = match(answer.text, right_answers(query), cased=cased)
            for kind in KINDS:
                columns[f"{way}, {kind}"][i] = float(getattr(found, kind))
            columns[f"{way}, steps"][i] = answer.steps
    return columns


def right_answers(query: Query) -> tuple[str, ...]:
    """The target and every other right answer."""
    return (query.target, *query.other_texts)


def _blank(seen: Observation) -> Tensor:
    return torch.full((len(seen.pairs),), torch.nan, dtype=torch.float64)

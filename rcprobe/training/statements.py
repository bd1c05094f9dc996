"""What training shows: the statements of trained facts as tokens. Shapes: S statements, L length."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rcprobe.errors import DataError
from rcprobe.facts import Fact, Span
from rcprobe.loaded import LoadedModel
from rcprobe.queries import unreadable
from rcprobe.training.config import TrainConfig


def forward_statements(m: LoadedModel, facts: Sequence[Fact]) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"]]:
    """Token ids of all forward statements of trained facts, padded right, and which of them are real.

    Raises ``DataError`` where every fact is held out, or a statement is longer than the model takes.
    """
    rows = [torch.tensor(_tokens(m, text)) for text, _ in _statements(facts)]
    longest = max(len(row) for row in rows)
    if m.max_length is not None and longest > m.max_length:
        raise DataError(f"a forward statement has {longest} tokens, the model holds {m.max_length}")
    pad = torch.nn.utils.rnn.pad_sequence
    real = pad([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return pad(rows, batch_first=True, padding_value=m.pad_id), real


def _tokens(m: LoadedModel, text: str) -> list[int]:
    try:
        ids = list(m.encoding(text).ids)
    except Exception as error:
        raise DataError(f"training: {m.source}'s tokenizer can't read {text!r} ({error})") from error
    reason = unreadable(m, ids) or ("the text holds the mask; take it out" if m.mask_id in ids else None)
    if reason is not None:
        raise DataError(f"training: {m.source} can't read {text!r}: {reason}")
    return ids


def maskable_tokens(
    m: LoadedModel, facts: Sequence[Fact], config: TrainConfig, real: Bool[Tensor, "S L"]
) -> Bool[Tensor, "S L"]:
    """Which tokens of the forward statements a masked objective may mask: ``config.maskable`` says which.

    Raises ``DataError`` for a statement without the entity that its completion starts with.
    """
    if config.maskable == "all":
        return real
    places = _entities if config.maskable == "entities" else _completion
    may = torch.zeros_like(real)
    for row, (text, spans) in enumerate(_statements(facts)):
        wanted = places(text, spans)
        for place, (start, end) in enumerate(m.encoding(text).offsets):
            may[row, place] = any(start < stop and end > first for first, stop in wanted)
    return may & real


def _entities(text: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    return spans


def _completion(text: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """From the entity that stands second to the end."""
    if len(spans) < 2:
        raise DataError(f"training: maskable = 'completion' needs both entities in a statement; one lacks in {text!r}")
    return ((max(start for start, _ in spans), len(text)),)


def _statements(facts: Sequence[Fact]) -> list[tuple[str, tuple[Span, ...]]]:
    found = [lesson for fact in facts if fact.trained for lesson in fact.lessons()]
    if not found:
        raise DataError("nothing to train on: every fact is held out")
    return found

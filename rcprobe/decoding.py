"""Writing answers out: which tokens a masked model commits at each step, and a causal model's continuation.

Shapes: B prompts, L length, N layers, H heads, n open positions of one prompt, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rcprobe.errors import PluginError, UsageError
from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel
from rcprobe.plugins import registry
from rcprobe.probing.batch import Batch, padded
from rcprobe.probing.capture import capture
from rcprobe.probing.captured import log_softmax
from rcprobe.probing.sizes import BatchSize, resolve, worked_through
from rcprobe.queries import token_ids


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    ``decoder`` is a registered name, for masked models; causal ones write from left to right. ``steps`` is the number
    of forward passes a masked answer takes (None: one a token), ``temperature`` 0 takes the likeliest token.
    ``length`` None writes as many tokens as the answer has, in its place; a number writes so many after the left
    context, as if the answer's length were unknown. ``block`` fills so many positions before it looks at the next
    (None: all at once). ``seed`` draws tokens and random orders. Raises ``UsageError`` for values out of range.
    """

    decoder: str = "confidence"
    steps: int | None = None
    temperature: float = 0.0
    length: int | None = None
    block: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "length", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"decoding: {name} is {value}; it must be at least 1")
        if self.temperature < 0:
            raise UsageError(f"decoding: temperature is {self.temperature}; it must be 0 or more")


@dataclass(frozen=True)
class Open:
    """One prompt before a step: its open positions, and what the model says of them.

    Attributes:
        positions: where they stand, from left to right.
        tokens: the token that each would be given.
        log_probs: over the vocabulary, in float32 at least.
        count: how many are due at this step.
        attention: weights from open position (row) to open position, where the decoder reads them.
        generator: the prompt's own random numbers.
    """

    positions: Int[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    log_probs: Float[Tensor, "n V"]
    count: int
    attention: Float[Tensor, "N H n n"] | None
    generator: torch.Generator

    @property
    def confidence(self) -> Float[Tensor, " n"]:
        """log p of each position's token."""
        return self.log_probs.gather(1, self.tokens[:, None]).squeeze(1)


Choice = Callable[[Open], Tensor]


@dataclass(frozen=True)
class Decoder:
    """A rule that says which open positions to commit now: indices [k] into them."""

    name: str
    choose: Choice
    attention: bool = False


def decoder(*, attention: bool = False) -> Callable[[Choice], Decoder]:
    """Make a decoder of a function from what is ``Open`` to the indices of those to commit; ``attention`` asks for
    the weights between open positions.

    >>> import rcprobe
    >>> @rcprobe.decoder()
    ... def surest(state):
    ...     return state.confidence.topk(1).indices
    >>> surest.name
    'surest'
    """
    return lambda function: Decoder(function.__name__, function, attention)


@dataclass(frozen=True)
class Answer:
    """What a model wrote for a query, and in how many forward passes."""

    ids: tuple[int, ...]
    text: str
    steps: int


def decode(
    m: LoadedModel, queries: Sequence[Query], how: Decoding | None = None, *, batch_size: BatchSize = "auto"
) -> list[Answer]:
    """Write the answers of queries that can be asked; each is written as if it were alone.

    Raises ``UnknownNameError`` for a decoder that isn't registered, ``PluginError`` for one that commits nothing or
    what isn't open.
    """
    how = how or Decoding()
    rule = None if m.adapter.objective == "causal" else registry().checked("decoders", how.decoder, Decoder)
    return write(m, queries, how, rule, batch_size=batch_size)


def write(
    m: LoadedModel, queries: Sequence[Query], how: Decoding, rule: Decoder | None, *, batch_size: BatchSize = "auto"
) -> list[Answer]:
    """``decode`` by a decoder itself, registered or not; None for a causal model."""

    def work(indices: list[int]) -> list[Answer]:
        prompts = [_prompt(m, queries[i], how) for i in indices]
        while busy := [prompt for prompt in prompts if prompt.blocks]:
            for prompt, state in zip(busy, _look(m, busy, how, rule), strict=True):
                _commit(m, prompt, state, rule)
        return [_answer(m, prompt) for prompt in prompts]

    longest = max((len(query.input_ids) + (how.length or 0) for query in queries), default=1)
    reach = max((_reach(m, _prompt(m, query, how)) for query in queries), default=0)
    if m.max_length is not None and reach > m.max_length:
        raise UsageError(f"decoding: length {how.length} needs {reach} positions, the model holds {m.max_length}")
    size = resolve(m, batch_size, longest, gradients=False)
    order = sorted(range(len(queries)), key=lambda i: len(queries[i].input_ids))
    found: dict[int, Answer] = {}
    for indices, answers, _ in worked_through(order, size, lambda _: 1, work):
        found.update(zip(indices, answers, strict=True))
    return [found[i] for i in range(len(queries))]


@dataclass
class _Prompt:
    """A prompt as it fills up.

    ``place`` are the answer's positions, ``blocks`` those still open, block by block, ``due`` how many each of a
    block's steps is to commit, ``steps`` how many were taken.
    """

    text: str
    ids: list[int]
    place: list[int]
    blocks: list[list[int]]
    due: list[list[int]]
    generator: torch.Generator
    steps: int = 0


def _prompt(m: LoadedModel, query: Query, how: Decoding) -> _Prompt:
    first = query.row + m.adapter.shift
    count = how.length or len(query.target_ids)
    place = list(range(first, first + count))
    generator = torch.Generator().manual_seed(how.seed)
    if m.adapter.objective == "causal":
        blocks = [[position] for position in place]
        return _Prompt(query.text, list(query.input_ids[:first]), place, blocks, [[1]] * count, generator)
    assert m.mask_id is not None
    ids = list(query.input_ids)
    if how.length is not None:
        after = ids[first + len(query.target_ids) :]
        closing = [
            token for token in after[-1:] if token in m.tokenizer.all_special_ids
        ]  # what a family ends texts with
        ids = [*ids[:first], *[m.mask_id] * count, *closing]
    width = how.block or count
    blocks = [place[start : start + width] for start in range(0, count, width)]
    steps = how.steps or count
    return _Prompt(query.text, ids, place, blocks, [_evenly(len(b), steps * len(b) / count) for b in blocks], generator)


def _reach(m: LoadedModel, prompt: _Prompt) -> int:
    """How many positions the model reads of it; a causal one doesn't read the last that it writes."""
    return prompt.place[-1] if m.adapter.objective == "causal" else len(prompt.ids)


def _evenly(count: int, steps: float) -> list[int]:
    """``count`` over so many steps, at least one each, the larger shares first."""
    most = max(1, min(count, round(steps)))
    return [count // most + (step < count % most) for step in range(most)]


def _look(m: LoadedModel, prompts: Sequence[_Prompt], how: Decoding, rule: Decoder | None) -> list[Open]:
    """One forward pass: what the model says of each prompt's open positions in its first block."""
    attention = rule is not None and rule.attention
    places = [prompt.blocks[0] for prompt in prompts]
    captured = capture(m, _batch(m, prompts, places), scores=attention)
    log_probs = log_softmax(m, captured.logits)
    if m.mask_id is not None:
        log_probs[..., m.mask_id] = -torch.inf  # a mask is no answer
    found = []
    for b, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        n = len(place)
        of_prompt = log_probs[b, :n].cpu()
        tokens = of_prompt.argmax(dim=-1)
        if how.temperature:
            odds = (of_prompt / how.temperature).softmax(dim=-1)
            tokens = torch.multinomial(odds, 1, generator=prompt.generator).squeeze(1)
        weights = captured.log_weights[b, :, :, :n, :n].exp().cpu() if attention else None
        due = prompt.due[0][0] if prompt.due[0] else n
        found.append(Open(torch.tensor(place), tokens, of_prompt, min(due, n), weights, prompt.generator))
    return found


def _batch(m: LoadedModel, prompts: Sequence[_Prompt], places: Sequence[Sequence[int]]) -> Batch:
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    positions = padded(places).to(m.device)
    return Batch(
        input_ids=padded([prompt.ids for prompt in prompts], m.pad_id).to(m.device),
        attention_mask=(torch.arange(int(lengths.max())) < lengths[:, None]).long().to(m.device),
        rows=(positions - m.adapter.shift).clamp(min=0),
        targets=torch.zeros_like(positions),
        counts=torch.ones_like(positions, dtype=torch.bool),
        score_rows=positions,
        evidence=positions,
    )


def _commit(m: LoadedModel, prompt: _Prompt, state: Open, rule: Decoder | None) -> None:
    if rule is None:
        token = int(state.tokens[0])
        prompt.ids.append(token)
        ended = token == getattr(m.tokenizer, "eos_token_id", None)
        prompt.blocks, prompt.due = ([], []) if ended else (prompt.blocks[1:], prompt.due[1:])
        prompt.steps += 1
        return
    chosen = [int(k) for k in rule.choose(state)]
    n = len(state.positions)
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= k < n for k in chosen):
        raise PluginError(
            f"decoder {rule.name!r} chose {chosen} of {n} open positions; it needs one or more, once each"
        )
    for k in chosen:
        prompt.ids[int(state.positions[k])] = int(state.tokens[k])
        prompt.blocks[0].remove(int(state.positions[k]))
    prompt.due[0] = prompt.due[0][1:]
    prompt.steps += 1
    if not prompt.blocks[0]:
        prompt.blocks, prompt.due = prompt.blocks[1:], prompt.due[1:]


def _answer(m: LoadedModel, prompt: _Prompt) -> Answer:
    ids = tuple(prompt.ids[prompt.place[0] : prompt.place[-1] + 1])
    special = set(m.tokenizer.all_special_ids)
    spoken = special & set(token_ids(m.tokenizer, prompt.text) or ())  # the letters' placeholder is also their padding
    told = [token for token in ids if token not in special - spoken]
    return Answer(ids, str(m.tokenizer.decode(told, skip_special_tokens=False)), prompt.steps)

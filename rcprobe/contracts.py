"""What plugins of each kind must keep to, tried: ``rcprobe plugins check NAME`` and ``pytest --rcprobe-conformance``.

``conformance.py`` has the checks of model families, which are many; here are those of the other kinds.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rcprobe.adapter import Adapter
from rcprobe.conformance import check_adapter, tiny_model, told
from rcprobe.decoding import Decoder, Decoding, Open, write
from rcprobe.encoding import Encoding, encoding_options, misdeclared
from rcprobe.errors import DataError, UsageError
from rcprobe.facts import Dataset, Fact, Pairing, Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.metrics import Metric
from rcprobe.plugins import registry
from rcprobe.probing.engine import READS, observe
from rcprobe.probing.verify import Check
from rcprobe.queries import encode, token_ids

WIDTH, LENGTH = 16, 16
SIZES = (1, 2, 5)  # open positions on which a decoder is tried
VOCABULARY = 7
PAIRS = 400  # of a dataset, about as many as are encoded
CONTROLS = 2


def check(name: str) -> dict[str, tuple[Check, ...]]:
    """Every check of what is registered under a name, by kind. Raises ``UnknownNameError`` and ``PluginError``."""
    names = registry()
    return {entry.kind: CHECKS[entry.kind](name) for entry in names.named(name)}


def check_dataset(make: Callable[..., Any]) -> tuple[Check, ...]:
    """Whether a dataset's function gives the same facts each time, and facts that any model can be asked."""
    return _tried("dataset", lambda: _dataset(make))


def check_metric(metric: Metric, name: str = "") -> tuple[Check, ...]:
    """Whether a metric measures a tiny model as it declares, alike each time, and leaves undefined what is."""
    return _tried("metric", lambda: _metric(metric, name or metric.name))


def check_encoding(kind: type[Encoding], name: str = "") -> tuple[Check, ...]:
    """Whether an encoding does what it declares, with one head and with two, and keeps all it learns in its state."""
    return _tried("encoding", lambda: _encoding(kind, name or kind.__name__))


def check_decoder(decoder: Decoder) -> tuple[Check, ...]:
    """Whether a decoder always commits what is open, alike each time, and writes a tiny model's answer."""
    return _tried("decoder", lambda: _decoder(decoder))


CHECKS: Mapping[str, Callable[[str], tuple[Check, ...]]] = {
    "models": lambda name: _adapter(registry().checked("models", name, Adapter), name),
    "encodings": lambda name: check_encoding(registry().checked("encodings", name, Encoding), name),
    "datasets": lambda name: check_dataset(registry().get("datasets", name)),
    "metrics": lambda name: check_metric(registry().checked("metrics", name, Metric), name),
    "decoders": lambda name: check_decoder(registry().checked("decoders", name, Decoder)),
}


def _adapter(family: type[Adapter], name: str) -> tuple[Check, ...]:
    """Weights that a run keeps are read back by the name, so it must be the registered one."""
    if family.name != name:
        seen = f"it is registered as {name!r}, and calls itself {family.name!r}; set name = {name!r}"
        return (Check("name", False, seen), *check_adapter(family))
    return check_adapter(family)


def _tried(what: str, checks: Callable[[], Iterator[Check]]) -> tuple[Check, ...]:
    """The checks up to the first that raises; what it raises is what was wrong."""
    found: list[Check] = []
    try:
        found.extend(checks())
    except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
        found.append(Check(what, False, told(error)))
    return tuple(found)


# --- datasets ---


def _dataset(make: Callable[..., Any]) -> Iterator[Check]:
    options = inspect.signature(make).parameters.values()
    wild = [option.name for option in options if option.kind in (option.VAR_POSITIONAL, option.VAR_KEYWORD)]
    if wild:
        yield Check("options", False, f"it takes any option ({wild[0]}); name each, so that a misspelt one is refused")
        return
    needed = [option.name for option in options if option.default is option.empty]
    if needed:
        yield Check("facts", None, f"it can't be made without {', '.join(needed)}; nothing else was tried")
        return
    try:
        dataset = make()
    except DataError:
        raise
    except UsageError as error:
        yield Check("facts", None, f"it can't be made here: {error}")
        return
    if not isinstance(dataset, Dataset):
        yield Check("facts", False, f"it gave a {type(dataset).__name__}, not an rcprobe.Dataset")
        return
    yield Check(
        "facts", True, f"{len(dataset.facts)} facts, {len(dataset.facts[0].forward)} template pairs in the first"
    )
    same = make() == dataset
    yield Check("repeatable", same, "two calls give the same facts" if same else "two calls give other facts")
    yield from _readings(dataset)
    yield from _asked(dataset)


def _readings(dataset: Dataset) -> Iterator[Check]:
    for name, groups in dataset.readings.items():
        candidates = {answer for group in groups for answer in group}
        lost = [text for fact in dataset.facts for text in (fact.a, fact.b) if text not in candidates]
        seen = (
            f"{name}: {lost[0]!r} is among no candidates" if lost else f"{name}: every answer is among the candidates"
        )
        yield Check("readings", not lost, seen)


def _asked(dataset: Dataset) -> Iterator[Check]:
    facts = dataset.facts[: max(1, PAIRS // len(dataset.facts[0].forward))]
    ways: tuple[tuple[Literal["masked", "causal"], Pairing], ...] = (
        ("masked", "same_target"),
        ("masked", "swapped"),
        ("causal", "swapped"),
    )
    for objective, pairing in ways:
        pairs = encode(_reader(facts, objective), facts, pairing)
        reasons = Counter(pair.unsupported for pair in pairs if pair.unsupported)
        seen = f"{len(pairs)} pairs can be asked of a {objective} model ({pairing})"
        if reasons:
            reason, count = reasons.most_common(1)[0]
            seen = f"{count} of {len(pairs)} pairs can't be asked of a {objective} model ({pairing}): {reason}"
        yield Check("queries", not reasons, seen)


def _reader(facts: Sequence[Fact], objective: Literal["masked", "causal"]) -> LoadedModel:
    """What reads every statement of the facts, a token a character; it computes nothing."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = [fact.statement(way, k)[0] for fact in facts for k in range(len(fact.forward)) for way in _WAYS]
    tokens = ["[PAD]", "[MASK]", "[UNK]", *sorted(set("".join(texts).encode("utf-8", "ignore").decode()))]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", mask_token="[MASK]")
    model = nn.Module()
    model.config = SimpleNamespace()  # type: ignore[assignment]
    embedding = nn.Embedding(len(tokens), 1)
    model.get_input_embeddings = lambda: embedding  # type: ignore[assignment]
    reader = type("Reader", (Adapter,), {"objective": objective, "shift": int(objective == "causal")})
    return LoadedModel(model, reader(), tokenizer, f"any {objective} model")


_WAYS: tuple[Literal["forward", "reverse"], ...] = ("forward", "reverse")


# --- metrics ---


def _metric(metric: Metric, name: str) -> Iterator[Check]:
    if metric.name != name:
        yield Check("name", False, f"it is registered as {name!r}, and its results are called {metric.name!r}; give "
                    "the function the name that it is registered under")  # fmt: skip
        return
    unknown = metric.reads - READS
    if unknown:
        yield Check("reads", False, f"it reads {sorted(unknown)[0]!r}, which is none of {', '.join(sorted(READS))}")
        return
    tiny = _tiny()
    if tiny is None:
        yield _NO_MODEL
        return
    m, facts = tiny
    for pairing in metric.pairings:
        pairs = encode(m, facts, pairing)
        seen = observe(m, [*pairs, _unasked(pairs[0])], read=metric.reads, controls=CONTROLS)
        columns, again = metric.measure(seen), metric.measure(seen)
        names = ", ".join(list(columns)[:4]) + (", …" if len(columns) > 4 else "")
        yield Check("values", True, f"{pairing}: one value a pair, columns: {names}")
        same = all(np.array_equal(columns[name], again[name], equal_nan=True) for name in columns)
        yield Check("repeatable", same, f"{pairing}: measured twice, {'the same' if same else 'other'} values")
        numbers = [name for name, column in columns.items() if not np.isnan(column[-1]).all()]
        yield Check(
            "undefined",
            not numbers,
            f"{pairing}: column {numbers[0]!r} has a number for a pair that couldn't be asked; leave it NaN"
            if numbers
            else f"{pairing}: a pair that couldn't be asked has no number",
        )


def _unasked(pair: QueryPair) -> QueryPair:
    f, r = (
        Query(query.direction, query.text, query.target, query.evidence, unsupported="left out on trial")
        for query in (pair.forward, pair.reverse)
    )
    return replace(pair, forward=f, reverse=r)


_NO_MODEL = Check("tiny model", None, "no masked model with a tokenizer is registered to try it on")


def _tiny() -> tuple[LoadedModel, list[Fact]] | None:
    """The first registered masked family that builds a small model with storage, and facts its tokenizer reads.

    A family that can't be built or run is somebody else's: what is tried here isn't at fault, so the next one is taken.
    """
    for name in registry().names("models"):
        try:
            family = registry().checked("models", name, Adapter)
            if family.objective != "masked" or not family.tiny or family.ov_circuit is None:
                continue
            m = tiny_model(family)
            facts = _readable(m)
            observe(m, encode(m, facts, "same_target"), read={"log_probs"})
        except Exception:  # noqa: BLE001 - a stranger's code may raise anything
            continue
        if facts:
            return m, facts
    return None


def _readable(m: LoadedModel) -> list[Fact]:
    """Four facts of tokens that stay one token each in a sentence, whatever the tokenizer puts between them."""
    texts = [str(m.tokenizer.decode([i])).strip() for i in range(min(m.vocabulary, 500)) if i != m.mask_id]
    words = [text for text in dict.fromkeys(texts) if text.isalnum() and len(token_ids(m.tokenizer, text) or ()) == 1]
    for between in ("", " "):
        if len(words) < 9 or len(token_ids(m.tokenizer, between.join(words[:9])) or ()) != 9:
            continue
        forward, reverse = ("{a}", words[0], "{b}"), ("{b}", words[0], "{a}")
        return [Fact(words[k], words[k + 4], between.join(forward), between.join(reverse)) for k in range(1, 5)]
    return []


# --- encodings ---


def _encoding(kind: type[Encoding], name: str) -> Iterator[Check]:
    options = encoding_options(name, kind)
    said = ", ".join(f"{option} = {value!r}" for option, value in options.items())
    yield Check("declarations", True, f"both are made; options: {said or 'none'}")
    for heads in (1, 2):
        wrong = misdeclared(kind(WIDTH, heads, LENGTH), WIDTH, heads, LENGTH)
        yield Check("behaviour", not wrong, f"heads {heads}: {wrong or 'shapes and declarations hold'}")
    one, other = kind(WIDTH, 1, LENGTH), kind(WIDTH, 1, LENGTH)
    other.load_state_dict(one.state_dict())
    same = all(torch.equal(a, b) for a, b in zip(_given(one), _given(other), strict=True))
    yield Check(
        "state",
        same,
        "a model read from a file has the same encoding"
        if same
        else "a model read from a file would have another encoding: keep what is drawn in a parameter or a buffer",
    )


def _given(encoding: Encoding) -> list[Tensor]:
    x = torch.randn(1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    parts, bias = x[:, None], encoding.bias(LENGTH)
    with torch.no_grad():
        given = [encoding.embed(x), *encoding.rotate(parts, parts), encoding.read(encoding.place(parts))]
    return [*given, torch.zeros(()) if bias is None else bias.detach()]


# --- decoders ---


def _decoder(decoder: Decoder) -> Iterator[Check]:
    for state in _states(decoder.attention):
        before = (state.tokens.clone(), state.log_probs.clone())
        start = state.generator.get_state()
        chosen = [int(k) for k in decoder.choose(state)]
        state.generator.set_state(start)
        again = [int(k) for k in decoder.choose(state)]
        n, what = (
            len(state.positions),
            f"of {len(state.positions)} open positions, {state.count} due, it chose {chosen}",
        )
        if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= k < n for k in chosen):
            yield Check("choice", False, f"{what}; it needs one or more, once each")
            return
        if chosen != again:
            yield Check("repeatable", False, f"{what}, then {again}; draw from the state's generator alone")
            return
        if not (torch.equal(before[0], state.tokens) and torch.equal(before[1], state.log_probs)):
            yield Check("state", False, f"{what}, and changed what it was given")
            return
    yield Check("choice", True, f"of {SIZES[0]} to {SIZES[-1]} open positions it commits one or more, alike each time")
    tiny = _tiny()
    if tiny is None:
        yield _NO_MODEL
        return
    m, facts = tiny
    queries = [pair.reverse for pair in encode(m, facts, "same_target")]
    written = write(m, queries, Decoding(length=4), decoder)
    steps = sorted({answer.steps for answer in written})
    masks = [answer.text for answer in written if m.mask_id in answer.ids]
    seen = f"{len(written)} answers of 4 tokens in {steps[0]} to {steps[-1]} steps"
    yield Check("answers", not masks, seen if not masks else f"it left a mask in {masks[0]!r}")


def _states(attention: bool) -> Iterator[Open]:
    """What a decoder may be given: any number of open positions, any number due."""
    generator = torch.Generator().manual_seed(0)
    for n in SIZES:
        for count in {1, n}:
            log_probs = torch.randn(n, VOCABULARY, generator=generator).log_softmax(-1)
            weights = torch.rand(1, 1, n, n, generator=generator) / n if attention else None
            yield Open(torch.arange(n), log_probs.argmax(-1), log_probs, count, weights, generator)

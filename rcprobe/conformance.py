"""What any adapter must pass: a tiny random model of its family, read by the engine and once more plainly.

Each check says in words what is wrong. ``rcprobe plugins check NAME`` and ``pytest --rcprobe-conformance`` run them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rcprobe.adapter import Adapter
from rcprobe.checkpoint import architecture, errors_only
from rcprobe.controls import assign
from rcprobe.errors import AdapterError, RcprobeError
from rcprobe.facts import Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.loading import candidates
from rcprobe.probing.agreement import (
    batches_agree,
    gradients_agree,
    padding_agrees,
    parts_add_up,
    scores_agree,
)
from rcprobe.probing.captured import forward_arguments
from rcprobe.probing.gradients import gradient_products
from rcprobe.probing.parameters import parameter_parts
from rcprobe.probing.storage import storage
from rcprobe.probing.verify import Check, checked

TOLERANCE = 1e-5  # norms and softmaxes of many families compute in float32, whatever the weights are
CONTROLS = 4
HOW_SMALL = "give it `tiny` (options of `build`) or `tiny_config` (a config.json in small); see docs/add-a-model.md"


def check_adapter(family: type[Adapter]) -> tuple[Check, ...]:
    """Every check of an adapter on a tiny random model of its family; what one raises is what was wrong."""
    with errors_only():
        try:
            m = tiny_model(family)
        except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
            return (Check("tiny model", False, f"it can't be built ({told(error)}); {HOW_SMALL}"),)
        found = []
        for name, check in _checks(family, m):
            try:
                found += check()
            except Exception as error:  # noqa: BLE001 - as above
                found.append(Check(name, False, told(error)))
    return tuple(found)


def report(name: str, found: Sequence[Check]) -> str:
    """The checks of a plugin in words, a line each; what is wrong first."""
    wrong = sum(check.passed is False for check in found)
    passed = "every check that applies passed" if any(check.passed for check in found) else "nothing could be checked"
    head = f"{name}: {f'{wrong} of {len(found)} checks failed' if wrong else passed}"
    words = {False: "wrong", True: "ok", None: "–"}
    ordered = sorted(found, key=lambda check: check.passed is not False)
    return "\n".join([head, *(f"  {words[check.passed]:<6} {check.name}: {check.seen}" for check in ordered)])


def tiny_model(family: type[Adapter]) -> LoadedModel:
    """A random model of a family in float64, nothing in it zero or one, from its ``tiny_config`` or ``tiny``.

    Raises what the family raises.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family.tiny_config:
            family = family.resolve(family.tiny_config)
            model = architecture(family)._from_config(family.config(family.tiny_config))
            mask = len(model.get_input_embeddings().weight) - 1 if family.mask_token is None else family.mask_token
            pad = getattr(model.config, "pad_token_id", None)
            tokenizer: Any = SimpleNamespace(mask_token_id=mask, pad_token_id=0 if pad is None else pad)
        else:
            model, tokenizer = family.build(family.tiny), family.default_tokenizer(family.tiny)
        model = model.double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.15 * torch.randn_like(parameter)
    return LoadedModel(model, family(), tokenizer, family.name)


def random_pairs(m: LoadedModel) -> list[QueryPair]:
    """Four pairs of random tokens: three of one stratum, so that controls find partners, and a longer one.

    Targets and evidence have two tokens each. Raises ``AdapterError`` for a model too small to hold them.
    """
    gap = m.adapter.shift + 1
    length = 2 * gap + 5
    avoid = {m.mask_id, m.pad_id}
    tokens = [i for i in range(min(m.vocabulary, 1000)) if i not in avoid]
    if (m.max_length or length + 2) < length + 2 or len(tokens) < length:
        raise AdapterError(
            f"the tiny model holds {m.max_length} positions and {len(tokens)} plain tokens; give it more"
        )
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for fact, size in enumerate((length, length, length, length + 2)):
        prompts = [torch.tensor(tokens)[torch.randperm(len(tokens), generator=generator)[:size]] for _ in range(2)]
        forward, reverse = (_query(m, prompt.tolist(), gap, fact) for prompt, _ in zip(prompts, "fr", strict=True))
        if m.adapter.objective == "masked":
            forward = _query(m, prompts[0].tolist(), gap, fact, target_first=True)
        pairs.append(QueryPair(fact, 0, "swapped", forward, reverse, fact, trained=True))
    return pairs


def _query(m: LoadedModel, ids: list[int], gap: int, fact: int, target_first: bool = False) -> Query:
    first, second = (gap, gap + 1), (2 * gap + 2, 2 * gap + 3)
    target, evidence = (first, second) if target_first else (second, first)
    if m.adapter.objective == "causal":
        prompt = ids[: target[-1]]
    else:
        assert m.mask_id is not None
        prompt = [m.mask_id if i in target else token for i, token in enumerate(ids)]
    return Query(
        "forward" if target_first else "reverse",
        text="",
        target=f"target{fact}",
        evidence=f"evidence{fact}",
        input_ids=tuple(prompt),
        target_ids=tuple(ids[i] for i in target),
        rows=tuple(i - m.adapter.shift for i in target),
        evidence_positions=evidence,
    )


def _checks(family: type[Adapter], m: LoadedModel) -> Iterator[tuple[str, Callable[[], list[Check]]]]:
    yield "declaration", lambda: _declared(family, m)
    yield "groups", lambda: [_groups(m)]
    yield "behaviour", lambda: [*checked(m), _shift(m)]
    yield "readings", lambda: _readings(m)
    yield "storage", lambda: [_storage(m)]


def _declared(family: type[Adapter], m: LoadedModel) -> list[Check]:
    """What is wrong on paper already."""
    found = []
    for pattern in family.keys:
        if re.compile(pattern).groups > 1:
            found.append(Check("keys", False, f"{pattern!r} has several groups; transformers can use one a rule"))
    if family.tiny_config:
        claims = [name for name, other in candidates(family.tiny_config).items() if name != family.name]
        mine = family.matches(family.tiny_config)
        seen = f"it claims its own tiny_config{' before ' + ', '.join(claims) if claims else ''}"
        found.append(Check("matches", mine, seen if mine else "`matches` doesn't claim the adapter's own tiny_config"))
    count = len(m.adapter.lora_modules(m.model))
    seen = f"{count} linear modules" if count else "lora_targets names none: no low-rank adapters"
    return [*found, Check("LoRA targets", bool(count) or None, seen)]


def _groups(m: LoadedModel) -> Check:
    parts = parameter_parts(m.adapter, [name for name, _ in m.model.named_parameters()])
    return Check("groups", True, f"every parameter is in one: {', '.join(sorted({part.group for part in parts}))}")


def _shift(m: LoadedModel) -> Check:
    """A causal model's own loss tells its shift; of a masked one, weights that know something must."""
    if m.adapter.objective == "masked" or m.adapter.shift < 1:
        return Check("shift", None, "random weights can't tell; `run` checks it on a model that knows its facts")
    if "labels" not in forward_arguments(m.model):
        return Check("shift", None, "the model computes no loss of its own to compare with")
    prompt = torch.tensor([random_pairs(m)[0].reverse.input_ids], device=m.device)
    with torch.no_grad():
        out = m.model(input_ids=prompt, labels=prompt)
    loss = float(out.loss)
    log_probs = out.logits[0].double().log_softmax(-1)
    for shift in range(1, prompt.shape[1]):
        own = -log_probs[:-shift].gather(1, prompt[0, shift:, None]).mean()
        if abs(float(own) - loss) < 1e-4 * loss:
            right = shift == m.adapter.shift
            seen = f"the model's own loss reads token i at position i − {shift}"
            return Check("shift", right, seen if right else f"{seen}, and the adapter declares {m.adapter.shift}")
    return Check("shift", None, "the model's own loss is no plain mean of log-probabilities")


def _readings(m: LoadedModel) -> list[Check]:
    pairs = random_pairs(m)
    queries = [query for pair in pairs for query in (pair.forward, pair.reverse)]
    controls = assign(pairs, CONTROLS)
    found = gradient_products(m, pairs, controls, parameters="all", batch_size=4)
    return [
        scores_agree(m, queries, TOLERANCE),
        padding_agrees(m, queries, TOLERANCE),
        gradients_agree(m, pairs, controls, found, TOLERANCE),
        parts_add_up(m, pairs, found, TOLERANCE),
        batches_agree(m, pairs, controls, found, TOLERANCE),
    ]


def _storage(m: LoadedModel) -> Check:
    circuit = m.adapter.ov_circuit
    if circuit is None:
        return Check("storage", None, "the adapter declares no ov_circuit: storage will be undefined")
    ids = [query.target_ids[0] for pair in random_pairs(m) for query in (pair.forward, pair.reverse)]
    table: Tensor = storage(m.model, circuit, ids, ids)
    sound = bool(table.isfinite().all())
    return Check("storage", sound, f"{table.shape[0]} layers, {table.shape[1]} heads" if sound else "it isn't finite")


def told(error: Exception) -> str:
    """An error as a check tells it: rcprobe's own words, or another's with its type."""
    return str(error) if isinstance(error, RcprobeError) else f"{type(error).__name__}: {error}"

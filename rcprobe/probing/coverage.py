"""How each parameter's gradients will be read, settled once a model, and checked before any product is formed."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import collate
from rcprobe.probing.capture import capture
from rcprobe.probing.captured import Captured, forward_arguments, head_path
from rcprobe.probing.factors import Factor, Formed, Inputs, Outer, combine, rule_for, uses_of
from rcprobe.probing.parameters import Named, thawed

PER_QUERY = "gradient of each query"
UNREAD = "none fits what its adapter does"
UNMET = "gradient of each query of a batch that reaches it"


@dataclass(frozen=True)
class Coverage:
    """How gradients are read.

    ``rules`` maps each parameter to its rule; those under ``PER_QUERY`` take a backward pass a query (no rule fits
    them, or the rule's gradient wasn't the true one), those under ``UNMET`` too, but where a batch runs their module
    alone: the check's prompts didn't, as some experts' and an image tower's. ``taps`` are the modules to read,
    ``watched`` those of ``UNMET``, ``uses`` the places that hold a parameter.
    """

    rules: Mapping[str, str]
    taps: tuple[str, ...]
    uses: Mapping[str, Sequence[tuple[str, str]]]
    expand_positions: bool
    watched: tuple[str, ...] = ()

    def read_one_by_one(self, captured: Captured) -> set[str]:
        """The parameters that take a backward pass for each query of this batch."""
        return {
            name
            for name, rule in self.rules.items()
            if rule == PER_QUERY or (rule == UNMET and any(captured.calls.get(path) for path, _ in self.uses[name]))
        }


Modules = Sequence[weakref.ref[nn.Module]]
_COVERED: WeakKeyDictionary[nn.Module, dict[tuple[tuple[str, int], ...], tuple[Modules, Coverage]]] = (
    WeakKeyDictionary()
)


def cover(
    m: LoadedModel, named: Named, queries: Sequence[Query], dense: Sequence[tuple[str, nn.Parameter]] = ()
) -> Coverage:
    """Choose a rule for each parameter and check it: on a small batch, the factors must add up to autograd's gradient.

    The check differentiates a random function of what enters and leaves the head (a head of zeros would hide
    everything under it); a parameter whose factors don't add up is read query by query instead, and a weight under
    an adapter (``dense``) not at all. It runs once for a model and its parameters, but again where a gradient
    vanished: a branch that is still closed (an adapter's B of zeros) shows only later what lies behind it.
    """
    known = _COVERED.setdefault(m.model, {})
    modules = [weakref.ref(module) for module in m.model.modules()]
    dense = dense or []
    everything = [*named, *dense]
    key = tuple((name, id(parameter)) for name, parameter in everything)
    if key not in known or known[key][0] != modules:
        uses = uses_of(m.model, {id(p): name for name, p in everything})
        with thawed([p for _, p in dense]):
            plan, telling = _checked(m, everything, uses, queries, adapted=bool(dense))
        plan = replace(
            plan, rules={**plan.rules, **{n: UNREAD for n, _ in dense if plan.rules[n] in (PER_QUERY, UNMET)}}
        )
        if not telling:
            return plan
        known[key] = (modules, plan)
    return known[key][1]


def _checked(
    m: LoadedModel, named: Named, uses: Mapping[str, Sequence[tuple[str, str]]], queries: Sequence[Query], adapted: bool
) -> tuple[Coverage, bool]:
    """The coverage, and whether the check will tell the same later: its values finite, no gradient zero that a rule
    covers (or any, in an ``adapted`` model).
    """
    modules = dict(m.model.named_modules())
    found = {path: rule_for(modules[path]) for places in uses.values() for path, _ in places}
    # a place without a rule may be a mere second name (the bias of BERT's head); if it isn't, the check tells
    uses = {name: [p for p in places if found[p[0]] is not None] or places for name, places in uses.items()}
    named_rules = {path: rule[0] for path, rule in found.items() if rule is not None}
    rules, taps = {}, {}
    for name, places in uses.items():
        covered = bool(places) and all(path in named_rules for path, _ in places)
        rules[name] = " + ".join(named_rules[path] for path, _ in places) if covered else PER_QUERY
        taps.update(dict.fromkeys(path for path, _ in places) if covered else {})
    length = max(len(query.input_ids) for query in queries[:2])
    # as many prompts as no table that they share has rows: neither L, nor 2L − 1, nor L²
    sample = [queries[k % len(queries[:2])] for k in range(3 if length > 3 else 7)]
    plan = Coverage(rules, tuple(taps), uses, False)
    captured = _captured(m, sample, plan)
    if _shared(captured, len(sample), length) and _takes_positions(m.model):
        plan = Coverage(rules, tuple(taps), uses, True)
        captured = _captured(m, sample, plan)
    wrong, vanished = _wrong(m, captured, plan, named, len(sample), _shared(captured, len(sample), length))
    unmet = {
        name
        for name in vanished
        if rules[name] != PER_QUERY and not any(captured.calls.get(path) for path, _ in uses[name])
    }
    rules = {n: UNMET if n in unmet else PER_QUERY if n in wrong else rule for n, rule in rules.items()}
    kept = dict.fromkeys(p for n, places in uses.items() if rules[n] not in (PER_QUERY, UNMET) for p, _ in places)
    watched = dict.fromkeys(path for name in uses if name in unmet for path, _ in uses[name])
    telling = bool(captured.logits.isfinite().all()) and not (vanished if adapted else vanished - wrong)
    return Coverage(rules, tuple(kept), uses, plan.expand_positions, tuple(watched)), telling


def factor_gradients(
    m: LoadedModel, captured: Captured, plan: Coverage, gradients: Mapping[str, Sequence[Tensor]], inputs: Inputs
) -> dict[str, Factor]:
    """Factors of every covered parameter, from what went into modules and the gradients of what came out."""
    modules = dict(m.model.named_modules())
    pieces: dict[tuple[str, str], list[Factor]] = {}
    for path in plan.taps:
        rule = rule_for(modules[path])
        assert rule is not None
        for call, gradient in zip(captured.calls[path], gradients[path], strict=True):
            for attribute, factor in rule[1](modules[path], call, gradient, inputs).items():
                pieces.setdefault((path, attribute), []).append(factor)
    return {
        name: combine([factor for place in places for factor in pieces.get(place, [])])
        for name, places in plan.uses.items()
        if plan.rules[name] not in (PER_QUERY, UNREAD, UNMET) and any(pieces.get(place) for place in places)
    }


def output_gradients(value: Tensor, captured: Captured, plan: Coverage, keep: bool) -> dict[str, list[Tensor]]:
    """∂value/∂(what came out of each tapped module), one for each visit; ``keep`` leaves the graph for another go."""
    outputs = [call.output for path in plan.taps for call in captured.calls[path] if call.output.requires_grad]
    if not outputs:
        return {}
    found = iter(torch.autograd.grad(value, outputs, retain_graph=keep, allow_unused=True, materialize_grads=True))
    return {
        path: [
            next(found) if call.output.requires_grad else torch.zeros_like(call.output) for call in captured.calls[path]
        ]
        for path in plan.taps
    }


def _captured(m: LoadedModel, queries: Sequence[Query], plan: Coverage) -> Captured:
    taps = tuple(dict.fromkeys([*plan.taps, head_path(m.model)]))
    return capture(m, collate(m, queries), scores=False, taps=taps, expand_positions=plan.expand_positions)


def _shared(captured: Captured, n: int, length: int) -> set[str]:
    """Modules that ran once for all prompts, so that their gradient can't be told apart by prompt.

    What comes out must be [n, …], or [n·L, W] as expert layers flatten it.
    """
    return {
        path
        for path, calls in captured.calls.items()
        for call in calls
        if not (call.output.shape[0] == n or (call.output.ndim == 2 and call.output.shape[0] == n * length))
    }


def _takes_positions(model: nn.Module) -> bool:
    return "position_ids" in forward_arguments(model)


def _wrong(
    m: LoadedModel, captured: Captured, plan: Coverage, named: Named, n: int, shared: set[str]
) -> tuple[set[str], set[str]]:
    """Parameters whose factors don't add up to autograd's gradient, or that sit in a shared module; and those whose
    gradient is zero.
    """
    unshared = Coverage(plan.rules, tuple(p for p in plan.taps if p not in shared), plan.uses, plan.expand_positions)
    value = _random_function(captured, m)
    parameters = [p for _, p in named]
    true = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    gradients = output_gradients(value, captured, unshared, keep=False)
    factors = factor_gradients(m, captured, unshared, gradients, Inputs(n))
    scale = max(float(_norm(g)) for g in true)
    tolerance = 5e-2 if m.dtype.itemsize < 4 else 1e-3
    wrong, vanished = set(), set()
    for (name, parameter), gradient in zip(named, true, strict=True):
        places = plan.uses[name]
        if not gradient.any():
            vanished.add(name)
        if any(path in shared for path, _ in places):
            wrong.add(name)
        elif plan.rules[name] != PER_QUERY:
            total = _total(factors.get(name), parameter)
            if total.shape != gradient.shape:
                wrong.add(name)
                continue
            size = float(_norm(gradient))
            off = float(_norm(total.to(gradient.dtype) - gradient))
            if off > tolerance * size + 1e-7 * scale + _rounding(places, gradients):
                wrong.add(name)
    return wrong, vanished


def _rounding(places: Sequence[tuple[str, str]], gradients: Mapping[str, Sequence[Tensor]]) -> float:
    """What rounding may leave of a bias whose gradient cancels: a step of the dtype in each thing that is summed."""
    found = 0.0
    for path, attribute in places:
        for gradient in gradients.get(path, ()) if attribute == "bias" else ():
            found += torch.finfo(gradient.dtype).eps * float(_norm(gradient.flatten(0, -2).abs().sum(dim=0)))
    return found


def _norm(gradient: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
    return found


def _random_function(captured: Captured, m: LoadedModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    entering = captured.calls[head_path(m.model)][0].input
    reached = [value for value in (captured.logits, entering) if value.requires_grad]
    return sum((v * torch.randn(v.shape, generator=generator).to(v)).sum() for v in reached)  # type: ignore[return-value]


def _total(factor: Factor | None, parameter: nn.Parameter) -> Tensor:
    if factor is None:
        return torch.zeros_like(parameter)
    if isinstance(factor, Outer):
        return factor.formed(parameter.shape[0]).sum(dim=0)
    assert isinstance(factor, Formed)
    total = factor.values.sum(dim=0)
    return total.reshape(parameter.shape) if total.numel() == parameter.numel() else total

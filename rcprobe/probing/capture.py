"""Reading a model through nnsight: the only file that knows nnsight or the names inside a model's source."""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rcprobe.errors import CaptureError, UsageError
from rcprobe.loaded import LoadedModel, evaluating
from rcprobe.probing.batch import Batch
from rcprobe.probing.captured import (
    Call,
    Captured,
    head_path,
    log_softmax,
    model_inputs,
    negative_log_prob,
    read_call,
    stack,
    target_rows,
)
from rcprobe.probing.watch import AttentionWatch

CALL = "attention_interface"
Item = TypeVar("Item")


def capture(
    m: LoadedModel,
    batch: Batch,
    *,
    scores: bool = True,
    logits: bool = True,
    taps: Sequence[str] = (),
    expand_positions: bool = False,
    layers: Sequence[int] | None = None,
) -> Captured:
    """One traced forward pass over a batch.

    Reads logits, at the target rows alone (the head runs on no other), each layer's scores at the batch's cells if
    asked (``layers`` chooses among those with softmax attention), and what goes in and out of each module of
    ``taps`` (dotted names), with the graph that made it. Without ``logits`` the pass ends after the last score.
    Raises ``UsageError`` for a layer that the model lacks.
    """
    import nnsight

    wrapper = m.wrapped
    paths: Sequence[str] = attention_paths(m.model) if scores else ()
    watch = AttentionWatch(batch) if scores and not paths else nullcontext()
    paths = _chosen(paths, layers) if paths else ()
    envoys = _envoys(wrapper)
    head = envoys[head_path(m.model)]
    tapped = [envoys[path] for path in taps]
    inputs = model_inputs(m.model, batch, expand_positions)
    with evaluating(m.model), torch.set_grad_enabled(bool(taps)), watch, wrapper.trace(**inputs) as tracer:
        if tapped:
            cache = nnsight.save(tracer.cache(modules=tapped, device=None, detach=False, include_inputs=True))
        cells = nnsight.save([])
        for path in paths:
            source = envoys[path].source
            args, kwargs = getattr(source, _last_call(source.names)).inputs
            cells.append(read_call(args, kwargs, batch))
        if logits or not paths:
            head.input = target_rows(head.input, batch)
            answered = nnsight.save(wrapper.output.logits)
        elif paths:
            tracer.stop()
    calls = {path: _visits(cache, envoy.path) for path, envoy in zip(taps, tapped, strict=True)} if taps else {}
    if isinstance(watch, AttentionWatch):
        cells = _chosen(watch.cells, layers)
    found = answered if logits else torch.empty(len(batch.rows), 0, 0)
    return Captured(logits=found, calls=calls, **stack(cells, batch))


def capture_gradient(m: LoadedModel, batch: Batch, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """The gradient of Σ −log p(target tokens) over the batch; None for a parameter the loss doesn't reach."""
    import nnsight

    wrapper = m.wrapped
    with evaluating(m.model), torch.enable_grad(), wrapper.trace(**model_inputs(m.model, batch)):
        loss = negative_log_prob(log_softmax(m, target_rows(wrapper.output.logits, batch)), batch).sum()
        gradients = nnsight.save(torch.autograd.grad(loss, parameters, allow_unused=True))
    return list(gradients)


def attention_paths(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the modules that end in one attention call, in the order they run."""
    return tuple(path for path, module in model.named_modules() if f"{CALL}(" in _source(type(module)))  # type: ignore[arg-type]


def _chosen(of_layers: Sequence[Item], layers: Sequence[int] | None) -> Sequence[Item]:
    wrong = [layer for layer in layers or () if not 0 <= layer < len(of_layers)]
    if wrong:
        raise UsageError(f"layers: {wrong[0]} is none of the model's {len(of_layers)} with readable scores, from 0")
    return of_layers if layers is None else [of_layers[layer] for layer in sorted(set(layers))]


def _envoys(wrapper: Any) -> dict[str, Any]:
    """Dotted name → nnsight's handle. By name alone, a submodule called ``output`` or ``input`` would be its value."""
    return {path.partition(".")[2]: envoy for path, envoy in wrapper.modules(names=True)}


def _visits(cache: Any, path: str) -> list[Call]:
    if path not in cache:  # the pass didn't run this module
        return []
    view = cache[path]
    inputs, outputs = view.inputs, view.output
    if len(view) == 1:
        inputs, outputs = [inputs], [outputs]
    return [Call(args, kwargs, output) for (args, kwargs), output in zip(inputs, outputs, strict=True)]


@cache
def _source(module: type[nn.Module]) -> str:
    forward: Any = inspect.unwrap(module.forward)
    try:
        return inspect.getsource(forward)
    except (OSError, TypeError):  # written in C, or typed at a prompt
        return ""


def _last_call(names: Sequence[str]) -> str:
    # the number nnsight appends changed between its versions; the call itself comes after the look-up of that name
    calls = [name for name in names if name.startswith(CALL)]
    if not calls:
        raise CaptureError(
            "nnsight can't see the attention call inside a forward that is wrapped (a type checker's or another "
            "decorator); load the model without it"
        )
    return calls[-1]

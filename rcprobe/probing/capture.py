"""Reading a model through nnsight: the only file that knows nnsight or the names inside a model's source."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rcprobe.loaded import LoadedModel, evaluating
from rcprobe.probing.batch import Batch
from rcprobe.probing.captured import Captured, model_inputs, negative_log_prob, read_call, stack, target_logits

CALL = "attention_interface"


def capture(m: LoadedModel, batch: Batch, *, scores: bool = True) -> Captured:
    """One traced forward pass: logits at the target rows and, if asked, each layer's scores at the batch's cells."""
    import nnsight

    wrapper = m.wrapped
    paths = attention_paths(m.model) if scores else ()
    with evaluating(m.model), torch.no_grad(), wrapper.trace(**model_inputs(m.model, batch)):
        cells = nnsight.save([])
        for path in paths:
            source = wrapper.get(path).source
            args, kwargs = getattr(source, _last_call(source.names)).inputs
            cells.append(read_call(args, kwargs, batch))
        logits = nnsight.save(target_logits(wrapper.output.logits, batch))
    return Captured(logits=logits, **stack(cells, len(batch.row)))


def capture_gradient(m: LoadedModel, batch: Batch, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """The gradient of Σ −log p(target tokens) over the batch; None for a parameter the loss doesn't reach."""
    import nnsight

    wrapper = m.wrapped
    with evaluating(m.model), torch.enable_grad(), wrapper.trace(**model_inputs(m.model, batch)):
        loss = negative_log_prob(m, wrapper.output.logits, batch)
        gradients = nnsight.save(torch.autograd.grad(loss, parameters, allow_unused=True))
    return list(gradients)


def attention_paths(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the modules that end in one attention call, in the order they run."""
    return tuple(path for path, module in model.named_modules() if f"{CALL}(" in _source(type(module)))


def _source(module: type[nn.Module]) -> str:
    forward: Any = inspect.unwrap(module.forward)
    try:
        return inspect.getsource(forward)
    except (OSError, TypeError):  # written in C, or typed at a prompt
        return ""


def _last_call(names: Sequence[str]) -> str:
    # the number nnsight appends changed between its versions; the call itself comes after the look-up of that name
    return [name for name in names if name.startswith(CALL)][-1]

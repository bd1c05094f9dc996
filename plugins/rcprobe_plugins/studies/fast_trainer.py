"""Seeds of a tiny model trained side by side: the plain trainer's numbers, sooner.

Shapes: S seeds, B prompts, L length, N = B·L tokens, M tokens that the loss counts, H heads, D head width, W model
width, V vocabulary, P parameters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from rcprobe.encoding import Encoding
from rcprobe.errors import UsageError
from rcprobe.facts import Fact
from rcprobe.loaded import LoadedModel
from rcprobe.training import Checkpoint, TrainConfig
from rcprobe.training.objectives import objective_of, weighted_cross_entropy
from rcprobe.training.trainer import Average, adamw, forward_statements, maskable_tokens
from rcprobe_plugins.models.blocks import TinyModel

Weights = Mapping[str, Tensor]
Layout = Sequence[tuple[Sequence[str], torch.Size]]


@dataclass(frozen=True)
class Recording:
    """One seed's training: each stop with the averaged weights [P] that are to be probed there."""

    stops: tuple[tuple[Checkpoint, NDArray[Any]], ...]

    def replay(
        self,
        m: LoadedModel,
        facts: Sequence[Fact],
        config: TrainConfig,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Checkpoint]:
        """What ``rcprobe.training.train`` would yield with the same arguments, the weights in ``m`` likewise.

        Raises ``TrainingError`` where the loss isn't finite.
        """
        parameters = list(m.model.parameters())
        for stop, weights in self.stops:
            stop.check(seed)
            pieces = torch.split(torch.from_numpy(weights), [p.numel() for p in parameters])
            with torch.no_grad():
                for parameter, piece in zip(parameters, pieces, strict=True):
                    parameter.copy_(piece.view_as(parameter))
            yield stop


def record(
    models: Sequence[LoadedModel],
    facts: Sequence[Fact],
    config: TrainConfig,
    seeds: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> list[Recording]:
    """Train tiny models, alike but for their weights, one seed each, and record what is to be probed.

    The models keep their weights. ``progress`` is told (step, of how many) now and then. Raises ``UsageError`` for
    what only the plain trainer can do: other models, dropout, frozen weights, statements of several lengths.
    """
    m = models[0]
    ids, real = forward_statements(m, facts)
    _refuse(models, bool(real.all()))
    flat = nn.Parameter(torch.stack([nn.utils.parameters_to_vector(x.model.parameters()).detach() for x in models]))
    layout = _layout(m.model)
    _check(m, layout, flat.detach(), ids[: config.batch_size])
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    optimiser, average = adamw([flat], config), Average([flat], config.ema)
    objective, may = objective_of(m, config), maskable_tokens(m, facts, config, real)
    stops, losses = set(config.probed()), list[Tensor]()
    recorded = [[(Checkpoint(0, None), weights)] for weights in flat.detach().cpu().numpy().copy()]
    for step in range(1, config.steps + 1):
        asked = []
        for generator in generators:
            drawn = torch.randint(len(ids), (config.batch_size,), generator=generator)
            statements = ids[drawn].to(m.device)
            asked.append((statements, *objective.draw(m, statements, may[drawn].to(m.device), generator)))
        loss = _losses(m, _named(layout, flat), *(torch.stack(tensors) for tensors in zip(*asked, strict=True)))
        (flat.grad,) = torch.autograd.grad(loss.sum(), flat)
        norm = flat.grad.norm(dim=1, keepdim=True)
        flat.grad.mul_((config.clip / (norm + 1e-6)).clamp(max=1.0))
        optimiser.param_groups[0]["lr"] = config.lr_at(step)
        optimiser.step()
        average.update()
        losses.append(loss.detach())
        if progress is not None and step % 20 == 0:
            progress(step, config.steps)
        if step in stops:
            means = torch.stack(losses).mean(dim=0).tolist()
            losses.clear()
            for stop, mean, weights in zip(recorded, means, average.shadow[0].cpu().numpy().copy(), strict=True):
                stop.append((Checkpoint(step, mean), weights))
    return [Recording(tuple(stop)) for stop in recorded]


def _refuse(models: Sequence[LoadedModel], one_length: bool) -> None:
    for m in models:
        if not isinstance(m.model, TinyModel):
            raise UsageError(f"{m.source} is no tiny model; train it with rcprobe.training.train")
        if m.config.dropout or not all(p.requires_grad for p in m.model.parameters()) or not one_length:
            raise UsageError(
                f"{m.source}: dropout, frozen weights and statements of several lengths need rcprobe.training.train"
            )


def _check(m: LoadedModel, layout: Layout, flat: Float[Tensor, "S P"], ids: Int[Tensor, "B L"]) -> None:
    """Refuse a model whose own forward gives other logits; tried away from its start, where a head may be zero."""
    noise = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(flat)
    weights = _named(layout, flat[:1] + 0.1 * noise)
    ids = ids.to(m.device)
    with torch.no_grad():
        one = {name: w[0] for name, w in weights.items()}
        own = functional_call(m.model, one, kwargs={"input_ids": ids}, tie_weights=False).logits
        found = _logits(m.model, weights, ids[None], torch.arange(ids.numel(), device=m.device)[None])
    if not torch.allclose(own.flatten(0, 1), found[0], rtol=1e-3, atol=1e-3, equal_nan=True):
        raise UsageError(f"{m.source}: its forward isn't that of a tiny model; train it with rcprobe.training.train")


def _layout(model: nn.Module) -> Layout:
    """How P is laid out: each parameter's names (two where it is tied) and shape."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [(names[id(p)], p.shape) for p in model.parameters()]


def _named(layout: Layout, flat: Float[Tensor, "S P"]) -> Weights:
    """Name → weights [S, …]."""
    pieces = torch.split(flat, [shape.numel() for _, shape in layout], dim=1)
    named = {}
    for (names, shape), piece in zip(layout, pieces, strict=True):
        named.update(dict.fromkeys(names, piece.view(len(flat), *shape)))
    return named


def _losses(
    m: LoadedModel,
    weights: Weights,
    ids: Int[Tensor, "S B L"],
    shown: Int[Tensor, "S B L"],
    weight: Float[Tensor, "S B L"],
) -> Float[Tensor, " S"]:
    weight, shift = weight.flatten(1), m.adapter.shift
    counted = weight > 0
    most = int(counted.sum(dim=1).max())
    # as many tokens of each seed, so some of weight 0
    at = counted.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    logits = _logits(m.model, weights, shown, (at - shift).clamp(min=0))
    targets = ids.flatten(1).gather(1, at)
    return weighted_cross_entropy(m.adapter.logits(logits, m.mask_id), targets, weight.gather(1, at))


def _logits(model: Any, weights: Weights, ids: Int[Tensor, "S B L"], at: Int[Tensor, "S M"]) -> Float[Tensor, "S M V"]:
    """Logits at the tokens ``at``, which index a seed's N: what ``TinyModel.forward`` gives there without dropout."""
    seeds, prompts, length = ids.shape
    x = _pick(weights["embed_tokens.weight"], ids.flatten(1))
    x = _each(model.encoding, "embed", weights, x.view(seeds, prompts, length, -1))[0].flatten(1, 2)
    bias = _bias(model, weights, length, x)
    for number, block in enumerate(model.blocks):
        name = f"blocks.{number}"
        qkv = _linear(_norm(x, weights, f"{name}.norm1"), weights, f"{name}.attention.qkv")
        qkv = qkv.view(seeds, prompts, length, 3, model.config.heads, -1)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        query, key = _each(model.encoding, "rotate", weights, query, key)
        (value,) = _each(model.encoding, "place", weights, value)
        scores = query @ key.transpose(-1, -2) * block.attention.scaling
        attended = (scores if bias is None else scores + bias).softmax(dim=-1) @ value
        (attended,) = _each(model.encoding, "read", weights, attended)
        attended = attended.transpose(2, 3).reshape(x.shape)
        if number == len(model.blocks) - 1:
            attended, x = _pick(attended, at), _pick(x, at)
        x = x + _linear(attended, weights, f"{name}.attention.out")
        hidden = F.gelu(_linear(_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.0"), approximate="tanh")
        x = x + _linear(hidden, weights, f"{name}.mlp.2")
    return _linear(_norm(x, weights, "norm"), weights, "lm_head")


def _pick(x: Float[Tensor, "S R W"], at: Int[Tensor, "S M"]) -> Float[Tensor, "S M W"]:
    seeds, rows, width = x.shape
    first = torch.arange(0, seeds * rows, rows, device=x.device)[:, None]
    return x.reshape(-1, width).index_select(0, (at + first).flatten()).view(seeds, -1, width)


def _linear(x: Float[Tensor, "S R I"], weights: Weights, name: str) -> Float[Tensor, "S R O"]:
    weight, bias = weights[f"{name}.weight"].transpose(1, 2), weights.get(f"{name}.bias")
    return x @ weight if bias is None else torch.baddbmm(bias[:, None], x, weight)


def _norm(x: Float[Tensor, "S R W"], weights: Weights, name: str) -> Float[Tensor, "S R W"]:
    normed = F.layer_norm(x, x.shape[-1:])
    return torch.addcmul(weights[f"{name}.bias"][:, None], normed, weights[f"{name}.weight"][:, None])


def _bias(model: Any, weights: Weights, length: int, like: Tensor) -> Tensor | None:
    """What is added to scores [S, B, H, L, L]: the encoding's bias, and −∞ to the right of a causal token."""
    bias: Tensor | None = model.encoding.bias(length)
    if bias is not None and any(_own(weights)):
        bias = torch.stack([functional_call(_Method(model.encoding, "bias"), w, length) for w in _own(weights)])
    causal = like.new_full((length, length), -torch.inf).triu(1) if model.causal else None
    if bias is None or causal is None:
        return causal if bias is None else bias.to(like)
    return bias.to(like) + causal


def _each(encoding: Encoding, method: str, weights: Weights, *x: Float[Tensor, "S B ..."]) -> tuple[Tensor, ...]:
    """The encoding's method with each seed's own weights; without any, seeds are merely more prompts."""
    if getattr(type(encoding), method) is getattr(Encoding, method):
        return x
    own = _own(weights)
    if not any(own):
        found = getattr(encoding, method)(*(tensor.flatten(0, 1) for tensor in x))
        return tuple(part.view(*x[0].shape[:2], *part.shape[1:]) for part in _several(found))
    call = _Method(encoding, method)
    given = zip(own, zip(*x, strict=True), strict=True)
    seeds = [_several(functional_call(call, w, tensors)) for w, tensors in given]
    return tuple(torch.stack(parts) for parts in zip(*seeds, strict=True))


def _several(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found


def _own(weights: Weights) -> list[dict[str, Tensor]]:
    """For each seed, its encoding's weights by name."""
    owned = {name: w for name, w in weights.items() if name.startswith("encoding.")}
    return [{name: w[seed] for name, w in owned.items()} for seed in range(len(weights["norm.weight"]))]


class _Method(nn.Module):
    """A method of an encoding as the forward that ``functional_call`` asks for."""

    def __init__(self, encoding: Encoding, method: str) -> None:
        super().__init__()
        self.encoding, self.method = encoding, method

    def forward(self, *given: Any) -> Any:
        return getattr(self.encoding, self.method)(*given)

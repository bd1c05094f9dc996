"""Seeds of a tiny model trained side by side: the plain trainer's numbers, sooner.

Shapes: S seeds, B prompts, L length, N = B·L tokens, M tokens that the loss counts, H heads, D head width, W model
width, V vocabulary, P parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from rcprobe.errors import UsageError
from rcprobe.facts import Fact
from rcprobe.loaded import LoadedModel
from rcprobe.training import Checkpoint, TrainConfig
from rcprobe.training.objectives import Statements, objective_of, weighted_cross_entropy
from rcprobe.training.statements import forward_statements, maskable_tokens
from rcprobe.training.trainer import Average, adamw
from rcprobe_plugins.models.blocks import TinyModel
from rcprobe_plugins.studies.mask_queries import MaskQueries
from rcprobe_plugins.studies.stacked import Weights, layout_of, named
from rcprobe_plugins.studies.stacked_forward import logits


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
    layout = layout_of(m.model)
    masks = tables_of(m, ids[: config.batch_size])
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    optimiser, average = adamw([flat], config), Average([flat], config.ema)
    objective, may = objective_of(m, config), maskable_tokens(m, facts, config, real)
    stops, losses = set(config.probed()), list[Tensor]()
    recorded = [[(Checkpoint(0, None), weights)] for weights in flat.detach().cpu().numpy().copy()]
    for step in range(1, config.steps + 1):
        asked = []
        for generator in generators:
            drawn = torch.randint(len(ids), (config.batch_size,), generator=generator)
            batch = Statements(*(tensor[drawn].to(m.device) for tensor in (ids, real, may)))
            asked.append((batch.ids, *objective.draw(m, batch, generator)))
        loss = _losses(m, masks, named(layout, flat), *(torch.stack(tensors) for tensors in zip(*asked, strict=True)))
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
            for stop, mean, weights in zip(recorded, means, average.values()[0].cpu().numpy().copy(), strict=True):
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


def tables_of(m: LoadedModel, ids: Int[Tensor, "B L"]) -> MaskQueries | None:
    """The tables of a one-layer model's masks, or None where none hold; tried on some statements.

    Raises ``UsageError`` for a model whose own forward gives other logits than ours.
    """
    model: Any = m.model
    ids = ids.to(m.device).clone()
    if m.mask_id is not None:
        ids[:, ::2] = m.mask_id
    own = nn.utils.parameters_to_vector(model.parameters()).detach()
    noise = torch.randn(len(own), generator=torch.Generator().manual_seed(0)).to(own)
    weights = named(layout_of(model), (own + 0.1 * noise)[None])  # away from a start whose head may be zero
    with torch.no_grad():
        one = {name: w[0] for name, w in weights.items()}
        expected = functional_call(model, one, kwargs={"input_ids": ids}, tie_weights=False).logits.flatten(0, 1)

        def agree(at: Int[Tensor, " M"], masks: MaskQueries | None) -> bool:
            found = logits(model, weights, ids[None], at[None], masks)[0]
            return torch.allclose(expected[at], found, rtol=1e-3, atol=1e-3, equal_nan=True)

        if not agree(torch.arange(ids.numel(), device=m.device), None):
            raise UsageError(f"{m.source}: its forward is no tiny model's; train it with rcprobe.training.train")
        if m.mask_id is None or len(model.blocks) > 1:
            return None
        masks = MaskQueries(model, weights, ids.shape[1], m.mask_id)
        return masks if agree((ids.flatten() == m.mask_id).nonzero()[:, 0], masks) else None


def _losses(
    m: LoadedModel,
    masks: MaskQueries | None,
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
    if masks is not None and not bool(((shown.flatten(1) == m.mask_id) | ~counted).all()):
        masks = None  # this loss also counts tokens that it shows
    model: Any = m.model
    found = logits(model, weights, shown, (at - shift).clamp(min=0), masks)
    targets = ids.flatten(1).gather(1, at)
    return weighted_cross_entropy(m.adapter.logits(found, m.mask_id), targets, weight.gather(1, at))

"""Seeds of a tiny model trained side by side: the plain trainer's numbers, sooner.

Shapes: S seeds, B prompts, L length, N = B·L tokens, M tokens that the loss counts, H heads, D head width, W model
width, V vocabulary, P parameters.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from rcprobe.errors import TrainingError, UsageError
from rcprobe.facts import Fact
from rcprobe.loaded import LoadedModel, evaluating
from rcprobe.training import Checkpoint, TrainConfig, train
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
    """Train models, alike but for their weights, one seed each, and record what is to be probed.

    The numbers are those of ``rcprobe.training.train``: seeds are trained side by side where that gives them, else
    one after the other by it. The models keep their weights. ``progress`` is told (step, of how many) now and then.
    Raises ``UsageError`` for adapters and for a rate that is still to be chosen.
    """
    if config.method != "full" or config.lr_grid:
        raise UsageError("adapters and a choice of rates need rcprobe.run; a study trains every weight at one rate")
    ids, real = forward_statements(models[0], facts)
    if config.precision is None and bool(real.all()) and _stackable(models, ids[: config.batch_size]):
        with evaluating(models[0].model):
            return _side_by_side(models, facts, ids, config, seeds, progress)
    return [
        _alone(m, facts, config, seed, _part(progress, number, len(seeds)))
        for number, (m, seed) in enumerate(zip(models, seeds, strict=True))
    ]


def _alone(
    m: LoadedModel,
    facts: Sequence[Fact],
    config: TrainConfig,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> Recording:
    parameters = list(m.model.parameters())
    own = [p.detach().clone() for p in parameters]
    stops: list[tuple[Checkpoint, NDArray[Any]]] = []
    try:
        for stop in train(m, facts, config, seed, progress):
            stops.append((stop, nn.utils.parameters_to_vector(parameters).detach().cpu().numpy()))
    except TrainingError:  # raised again when it is replayed
        stops.append((Checkpoint(config.probed()[len(stops)], math.nan), stops[-1][1]))
    with torch.no_grad():
        for parameter, weights in zip(parameters, own, strict=True):
            parameter.copy_(weights)
    return Recording(tuple(stops))


def _part(progress: Callable[[int, int], None] | None, number: int, of: int) -> Callable[[int, int], None] | None:
    """``progress`` as the seed of that number moves it."""
    return progress and (lambda step, steps: progress((number * steps + step) // of, steps))


def _side_by_side(
    models: Sequence[LoadedModel],
    facts: Sequence[Fact],
    ids: Int[Tensor, "N L"],
    config: TrainConfig,
    seeds: Sequence[int],
    progress: Callable[[int, int], None] | None,
) -> list[Recording]:
    m, real = models[0], torch.ones_like(ids, dtype=torch.bool)
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


def _stackable(models: Sequence[LoadedModel], ids: Int[Tensor, "B L"]) -> bool:
    """Whether the stacked forward of the first model is what each model computes in training.

    It isn't with dropout, or where a third party's encoding draws a table of its own for each seed.
    """
    return all(
        isinstance(m.model, TinyModel)
        and not m.config.dropout  # a small one drops nothing of a small try
        and all(p.requires_grad for p in m.model.parameters())
        and _agree(models[0], m, ids, None)
        for m in models
    )


def tables_of(m: LoadedModel, ids: Int[Tensor, "B L"]) -> MaskQueries | None:
    """The tables of a one-layer model's masks, or None where none hold; tried on some statements."""
    model: Any = m.model
    if m.mask_id is None or len(model.blocks) > 1:
        return None
    masks = MaskQueries(model, _moved(m), ids.shape[1], m.mask_id)
    return masks if masks.turns_affinely(_moved(m)) and _agree(m, m, ids, masks) else None


def _agree(stacked: LoadedModel, m: LoadedModel, ids: Int[Tensor, "B L"], masks: MaskQueries | None) -> bool:
    """Whether the stacked forward of one model gives another's logits in training, the other's weights moved."""
    ids = ids.to(m.device).clone()
    if m.mask_id is not None:
        ids[:, ::2] = m.mask_id
    at = torch.arange(ids.numel(), device=m.device)
    if masks is not None:
        at = at[ids.flatten() == masks.mask_id]
    weights = _moved(m)
    one = {name: w[0] for name, w in weights.items()}
    modes = {part: part.training for part in m.model.modules()}
    m.model.train()
    with torch.no_grad():
        with torch.random.fork_rng([m.device] if m.device.type == "cuda" else []):
            expected = functional_call(m.model, one, kwargs={"input_ids": ids}, tie_weights=False).logits.flatten(0, 1)
        for part, mode in modes.items():
            part.training = mode
        with evaluating(stacked.model):  # as it trains
            found = logits(stacked.model, weights, ids[None], at[None], masks)[0]
    return torch.allclose(expected[at], found, rtol=1e-3, atol=1e-3, equal_nan=True)


def _moved(m: LoadedModel) -> Weights:
    """A model's weights, moved away from a start whose head may be zero."""
    own = nn.utils.parameters_to_vector(m.model.parameters()).detach()
    noise = torch.randn(len(own), generator=torch.Generator().manual_seed(0)).to(own)
    return named(layout_of(m.model), (own + 0.1 * noise)[None])


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

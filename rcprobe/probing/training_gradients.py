"""The gradient that training takes on a fact's forward statement, against that of its reverse query.

Shapes: B pairs, D draws of the masks a statement, L length, T tokens that the loss counts, V vocabulary.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rcprobe.facts import QueryPair
from rcprobe.loaded import LoadedModel, evaluating
from rcprobe.probing.batch import Batch
from rcprobe.probing.capture import capture
from rcprobe.probing.captured import log_softmax, model_inputs, target_rows
from rcprobe.probing.coverage import cover, factor_gradients, output_gradients
from rcprobe.probing.factors import Formed, Inputs
from rcprobe.probing.gradients import Factors, PairFactors
from rcprobe.probing.parameters import Which, chosen, parameter_parts
from rcprobe.probing.sizes import BatchSize, resolve, worked_through
from rcprobe.training.objectives import OBJECTIVES, Statements, own_objective

DRAWS = 8  # of the masks of one statement


def training_cosine(
    m: LoadedModel, pairs: Sequence[QueryPair], *, parameters: Which = "trainable", batch_size: BatchSize = "auto"
) -> Float[Tensor, " B"]:
    """cos(g_train, g←) of supported pairs over all parameters, in float64; NaN where a gradient vanishes.

    g_train is the gradient of the family's own objective on the forward statement: every token of it for a causal
    model, the mean over ``DRAWS`` seeded draws of the masks for a masked one. Without dropout, as all gradients here.
    """
    found = torch.full((len(pairs),), torch.nan, dtype=torch.float64)
    if not pairs:
        return found
    draws = DRAWS if m.adapter.objective == "masked" else 1
    with torch.enable_grad(), chosen(m.model, parameters) as choice:
        parts = parameter_parts(m.adapter, [name for name, _ in choice.named], [])
        plan = cover(m, choice.named, [query for pair in pairs[:1] for query in (pair.forward, pair.reverse)])
        longest = max(len(pair.reverse.input_ids) + len(pair.forward.input_ids) for pair in pairs)
        size = resolve(m, batch_size, longest, gradients=True)

        def work(indices: list[int]) -> None:
            asked = [pairs[i] for i in indices]
            both = PairFactors(m, asked, plan, choice.named, parts, None, None, None)
            (reverse,) = both.traced([pair.reverse for pair in asked], [], None)
            training = _training_factors(m, both, asked, draws)
            inner, train2, reverse2 = both.inner(
                [(training, reverse, None), (training, training, None), (reverse, reverse, None)]
            ).unbind(dim=1)
            found[indices] = inner.sum(-1) / (train2.sum(-1) * reverse2.sum(-1)).sqrt()

        for _ in worked_through(range(len(pairs)), size, lambda _: 1 + draws, work):
            pass
    return found


def _training_factors(m: LoadedModel, both: PairFactors, pairs: Sequence[QueryPair], draws: int) -> Factors:
    """A statement's draws lie side by side, so the sum over positions that every factor is runs over them too."""
    batch, weights = _statements(m, pairs, draws)
    plan, inputs = both.plan, Inputs(len(pairs))
    taps = (*plan.taps, *plan.watched)
    captured = capture(m, batch, scores=False, taps=taps, expand_positions=plan.expand_positions)
    value = (_losses(m, captured.logits, batch) * weights).sum()
    factors = factor_gradients(m, captured, plan, output_gradients(value, captured, plan, keep=False), inputs)
    one_by_one = plan.read_one_by_one(captured)
    rest = [(name, p) for name, p in both.named if name in one_by_one]
    if rest:
        formed = [_formed(m, [pair], draws, [p for _, p in rest]) for pair in pairs]
        for i, (name, _) in enumerate(rest):
            factors[name] = Formed(torch.stack([gradients[i] for gradients in formed]))
    lift = torch.ones(len(pairs), device=m.device)
    return Factors(both.cut(factors, len(pairs)), lift)


def _formed(m: LoadedModel, pairs: Sequence[QueryPair], draws: int, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradient of the statements' loss by parameters that no rule factors, as it is."""
    batch, weights = _statements(m, pairs, draws)
    with evaluating(m.model):
        logits = target_rows(m.model(**model_inputs(m.model, batch)).logits, batch)
        value = (_losses(m, logits, batch) * weights).sum()
        return list(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True))


def _losses(m: LoadedModel, logits: Float[Tensor, "B T V"], batch: Batch) -> Float[Tensor, "B T"]:
    return -log_softmax(m, logits).gather(-1, batch.targets[..., None]).squeeze(-1)


def _statements(m: LoadedModel, pairs: Sequence[QueryPair], draws: int) -> tuple[Batch, Float[Tensor, "N T"]]:
    """Each pair's forward statement as training would show it, ``draws`` times over, and the weights of its tokens."""
    draw = OBJECTIVES[own_objective(type(m.adapter))].draw
    prompts, targets, kept = [], [], []
    for pair in pairs:
        ids = torch.tensor([m.encoding(pair.forward.text).ids] * draws)
        generator = torch.Generator().manual_seed(pair.fact)  # the same draws in whatever batch
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        shown, weight = draw(m, Statements(ids, everywhere, everywhere), generator)
        prompts += list(shown)
        targets += list(ids)
        kept += list(weight)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=m.device)
    pad = torch.nn.utils.rnn.pad_sequence
    weights = pad(kept, batch_first=True).to(m.device)
    rows = torch.arange(weights.shape[1], device=m.device).expand(weights.shape)
    unread = torch.zeros(len(prompts), 1, dtype=torch.long, device=m.device)
    return Batch(
        input_ids=pad(prompts, batch_first=True, padding_value=m.pad_id).to(m.device),
        attention_mask=(rows < lengths[:, None]).long(),
        rows=(rows - m.adapter.shift).clamp(min=0),
        targets=pad(targets, batch_first=True).to(m.device),
        counts=weights > 0,
        score_rows=unread,
        evidence=unread,
    ), weights

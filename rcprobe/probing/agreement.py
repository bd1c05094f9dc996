"""The engine's readings against plainer ones of the same model, each difference told in words."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rcprobe.controls import Assignment
from rcprobe.facts import Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import collate
from rcprobe.probing.capture import capture
from rcprobe.probing.captured import model_inputs
from rcprobe.probing.gradients import GradientProducts, gradient_products
from rcprobe.probing.plain_gradients import plain_products
from rcprobe.probing.verify import Check, attention_weights

VANISHING = 1e-2  # of the tolerance: what rounding leaves of a part's gradient that is zero, by the whole's size


def scores_agree(m: LoadedModel, queries: Sequence[Query], tolerance: float) -> Check:
    """Softmaxed scores of a padded batch against the weights that the model shows for each prompt alone."""
    name = "scores against an eager reading"
    captured = capture(m, collate(m, queries))
    if not captured.scores.shape[1]:
        return Check(name, None, "no softmax attention call found: scores are unsupported")
    worst = 0.0
    for b, query in enumerate(queries):
        shown = attention_weights(m.model, collate(m, [query]))
        if not shown:
            return Check(name, None, "the model doesn't show its attention weights")
        if len(shown) != captured.scores.shape[1]:
            return Check(name, False, f"{captured.scores.shape[1]} layers were read, the model shows {len(shown)}")
        want = torch.stack([layer[0, :, query.row, query.evidence_positions[0]] for layer in shown])
        worst = max(worst, float((captured.log_weights[b, ..., 0, 0].exp() - want).abs().max()))
        if not torch.equal(captured.attendable[b, ..., 0, 0], want > 0):
            return Check(name, False, "a cell that the mask forbids is read as allowed, or the other way round")
    seen = f"the largest difference of an attention weight is {worst:.1e}"
    return Check(name, worst <= tolerance, seen)


def padding_agrees(m: LoadedModel, queries: Sequence[Query], tolerance: float) -> Check:
    """Logits and scores of each prompt in a padded batch against those of the prompt alone."""
    batch = collate(m, queries)
    together, worst = capture(m, batch), 0.0
    for b, query in enumerate(queries):
        alone = capture(m, collate(m, [query]))
        logits = together.logits[b, : len(query.rows)]
        for one, other in ((alone.logits[0], logits), (alone.scores[0], together.scores[b])):
            if one.numel():
                worst = max(worst, float((one - other).abs().max() / one.abs().max().clamp(min=1)))
    seen = f"a prompt's logits and scores alone and in a padded batch are {worst:.1e} apart"
    return Check("padding in batches", worst <= tolerance, seen)


def gradients_agree(
    m: LoadedModel, pairs: Sequence[QueryPair], controls: Assignment, found: GradientProducts, tolerance: float
) -> Check:
    """Every product of every part against two separate backward passes a pair."""
    plain = plain_products(m, pairs, controls, found.parts)
    inner, forward, reverse = plain[:, 0], plain[:, 1], plain[:, 2]
    control, theirs = plain[:, 3::2], plain[:, 4::2]
    compared = (
        (found.inner, inner, forward, reverse),
        (found.forward_norm2, forward, forward, forward),
        (found.reverse_norm2, reverse, reverse, reverse),
        (found.control_inner, control, forward[:, None].expand_as(theirs), theirs),
        (found.control_norm2, theirs, theirs, theirs),
    )
    off = torch.stack([_off(*each, tolerance).flatten(0, -2).amax(dim=0) for each in compared]).amax(dim=0)
    at = int(off.argmax())
    name = "gradient products against two backward passes"
    if off[at] > 1:
        return Check(name, False, f"those of {found.parts[at].name} differ by more than {tolerance:.0e} of their size")
    return Check(name, True, f"{len(found.parts)} parts, each within {tolerance:.0e} of its size")


def parts_add_up(m: LoadedModel, pairs: Sequence[QueryPair], found: GradientProducts, tolerance: float) -> Check:
    """The parts' sum against the gradient over all parameters by plain autograd, without the engine."""
    worst = 0.0
    for i, pair in enumerate(pairs):
        f, r = _whole(m, pair.forward), _whole(m, pair.reverse)
        for got, one, other in (
            (found.inner[i], f, r),
            (found.forward_norm2[i], f, f),
            (found.reverse_norm2[i], r, r),
        ):
            worst = max(worst, abs(float(got.sum() - one @ other)) / float(one.norm() * other.norm()))
    seen = f"the sum over parts and the gradient of the whole model are {worst:.1e} apart"
    return Check("parts against the whole", worst <= tolerance, seen)


def batches_agree(
    m: LoadedModel, pairs: Sequence[QueryPair], controls: Assignment, found: GradientProducts, tolerance: float
) -> Check:
    """The same products whatever goes through at once."""
    other = gradient_products(m, pairs, controls, parameters="all", batch_size=256)
    sizes = (found.forward_norm2, found.reverse_norm2)
    off = _off(other.inner, found.inner, *sizes, tolerance)
    same = bool(off.max() <= 1)
    seen = "large batches give what small ones give" if same else "the products change with the size of the batch"
    return Check("batch size", same, seen)


def _off(got: Tensor, want: Tensor, one: Tensor, other: Tensor, tolerance: float) -> Tensor:
    """|Δ⟨x, y⟩| over what is allowed: ``tolerance``·‖x‖·‖y‖ of the part, or rounding of the whole where it vanishes."""
    whole = (one.sum(-1, keepdim=True) * other.sum(-1, keepdim=True)).sqrt()
    allowed = tolerance * (one * other).sqrt() + (VANISHING * tolerance) ** 2 * whole
    off = (got - want).abs() / allowed.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(got.isnan() == want.isnan(), off.nan_to_num(0.0), torch.inf)


def _whole(m: LoadedModel, query: Query) -> Float[Tensor, " P"]:
    """The gradient over all parameters in one vector, of the prompt alone."""
    parameters = list(m.model.parameters())
    batch = collate(m, [query])
    logits = m.model(**model_inputs(m.model, batch)).logits[0, list(query.rows)]
    rows = m.adapter.logits(logits, m.mask_id).log_softmax(-1)
    loss = -rows[range(len(query.rows)), query.target_ids].sum()
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])

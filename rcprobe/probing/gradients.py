"""Inner products of per-query gradients over every parameter, without forming a gradient.

One forward pass of the queries, one backward pass to module *outputs*, and per module the products of what went in
and the gradients of what came out. The plain definition, two backward passes a pair, is in ``plain_gradients``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rcprobe.controls import Assignment
from rcprobe.facts import Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import collate
from rcprobe.probing.capture import capture
from rcprobe.probing.captured import negative_log_prob
from rcprobe.probing.coverage import PER_QUERY, Coverage, cover, factor_gradients, output_gradients
from rcprobe.probing.factors import Factor, Formed, Grams, shrink, split
from rcprobe.probing.parameters import Named, Part, Which, chosen, parameter_parts
from rcprobe.probing.plain_gradients import query_gradients
from rcprobe.queries import with_target

Factors = list[Factor]  # one a part


@dataclass(frozen=True)
class GradientProducts:
    """⟨g→, g←⟩ and squared norms of B pairs over P parts, and the same against K controls a pair, in float64.

    ``kinds[k]`` says what the k-th control's reverse query asks: ``same_target`` (the pair's target, from a
    partner's evidence), ``other_target`` (a partner's target, from the pair's evidence), ``other_fact`` (both the
    partner's). ``partner`` holds indices into the pairs, −1 where a pair has no such partner (products NaN).
    ``rules`` says how each parameter's gradients were read.
    """

    parts: tuple[Part, ...]
    inner: Float[Tensor, "B P"]
    forward_norm2: Float[Tensor, "B P"]
    reverse_norm2: Float[Tensor, "B P"]
    kinds: tuple[str, ...]
    partner: Int[Tensor, "B K"]
    control_inner: Float[Tensor, "B K P"]
    control_norm2: Float[Tensor, "B K P"]
    rules: Mapping[str, str]

    def cosine(self, keep: Sequence[int] | None = None) -> Float[Tensor, " B"]:
        """cos(g→, g←) over the parts of the given indices (all by default); NaN where a gradient vanishes."""
        i = list(range(len(self.parts))) if keep is None else list(keep)
        return _cosine(self.inner[:, i], self.forward_norm2[:, i], self.reverse_norm2[:, i])

    def control_cosine(self, kind: str) -> Float[Tensor, " B"]:
        """The mean cosine of each pair with its controls of one kind; NaN where it has none."""
        columns = [k for k, name in enumerate(self.kinds) if name == kind]
        forward = self.forward_norm2[:, None, :].expand_as(self.control_norm2)
        cosines = _cosine(self.control_inner, forward, self.control_norm2)[:, columns]
        return cosines.nanmean(dim=1)


def gradient_products(
    m: LoadedModel,
    pairs: Sequence[QueryPair],
    controls: Assignment,
    *,
    parameters: Which = "trainable",
    batch_size: int = 256,
) -> GradientProducts:
    """Gradient products of supported pairs, and against the controls assigned to them.

    Batches hold whole blocks of the assignment, so results don't depend on ``batch_size`` (pairs in memory at once).
    Raises ``UsageError`` where no parameter takes a gradient, ``AdapterError`` for a parameter in no declared group.
    """
    kinds = controls.kinds
    with torch.enable_grad(), chosen(m.model, parameters) as named:
        parts = parameter_parts(m.adapter, [name for name, _ in named])
        if not pairs:
            return _nothing(parts, controls)
        plan = cover(m, named, [query for pair in pairs[:1] for query in (pair.forward, pair.reverse)])
        table = torch.full((len(pairs), 3 + 2 * len(kinds), len(parts)), torch.nan, dtype=torch.float64)
        for indices in controls.batches(batch_size):
            table[indices] = _Batch(m, [pairs[i] for i in indices], plan, named, parts).table(controls.within(indices))
    inner = {"inner": table[:, 0], "forward_norm2": table[:, 1], "reverse_norm2": table[:, 2]}
    control = {"control_inner": table[:, 3::2], "control_norm2": table[:, 4::2]}
    return GradientProducts(parts=parts, kinds=kinds, partner=controls.partner, rules=plan.rules, **inner, **control)


def _nothing(parts: tuple[Part, ...], controls: Assignment) -> GradientProducts:
    """The products of no pairs."""
    flat, cube = torch.empty(0, len(parts)).double(), torch.empty(0, len(controls.kinds), len(parts)).double()
    return GradientProducts(parts, flat, flat, flat, controls.kinds, controls.partner, cube, cube, {})


class _Batch:
    """One batch of pairs: factors of forward, reverse and relabelled reverse queries, and their products."""

    def __init__(
        self, m: LoadedModel, pairs: Sequence[QueryPair], plan: Coverage, named: Named, parts: Sequence[Part]
    ) -> None:
        self.m, self.pairs, self.plan, self.named, self.parts = m, pairs, plan, named, parts
        self.length = max(len(query.input_ids) for pair in pairs for query in (pair.forward, pair.reverse))

    def table(self, controls: Assignment) -> Float[Tensor, "n C P"]:
        """Columns ⟨f, r⟩, ‖f‖², ‖r‖², then ⟨f, c⟩, ‖c‖² for each control c."""
        forward = self._factors([pair.forward for pair in self.pairs], [])[0]
        reverse = [pair.reverse for pair in self.pairs]
        rounds = [self._relabelled(controls, r) for r in range(controls.rounds)]
        own, *other = self._factors(reverse, rounds)
        reverse_norm2 = self._inner(own, own)
        columns = [self._inner(forward, own), self._inner(forward, forward), reverse_norm2]
        norms = [self._inner(factors, factors) for factors in other]
        for k, kind in enumerate(controls.kinds):
            factors, norm2 = (own, reverse_norm2) if kind == "other_fact" else (other[k // 2], norms[k // 2])
            # a relabelled prompt serves two pairs: its own (another target), and the one whose target it was given
            index = torch.arange(len(self.pairs)) if kind == "other_target" else controls.partner[:, k]
            found = self._inner(forward, factors, index.clamp(min=0))
            missing = (controls.partner[:, k] < 0)[:, None]
            columns += [
                found.masked_fill(missing, torch.nan),
                norm2[index.clamp(min=0)].masked_fill(missing, torch.nan),
            ]
        return torch.stack(columns, dim=1)

    def _relabelled(self, controls: Assignment, r: int) -> list[Query]:
        """Each reverse prompt asked for its r-th partner's target (its own where it has none)."""
        partner = controls.partner[:, 2 * r + 1].tolist()
        return [
            with_target(pair.reverse, self.pairs[j].reverse.target_ids, self.m) if j >= 0 else pair.reverse
            for pair, j in zip(self.pairs, partner, strict=True)
        ]

    def _factors(self, queries: list[Query], rounds: list[list[Query]]) -> list[Factors]:
        """Factors of queries, and of the same prompts with other labels: a backward pass each over one forward pass."""
        if all(a.input_ids == b.input_ids for r in rounds for a, b in zip(queries, r, strict=True)):
            return self._trace(queries, rounds)
        return [
            self._trace(each, [])[0] for each in (queries, *rounds)
        ]  # a causal model reads the labels it is forced through

    def _trace(self, queries: list[Query], rounds: list[list[Query]]) -> list[Factors]:
        m, plan, n = self.m, self.plan, len(queries)
        captured = capture(m, collate(m, queries), scores=False, taps=plan.taps, expand_positions=plan.expand_positions)
        found = []
        for k, labelled in enumerate([queries, *rounds]):
            loss = negative_log_prob(m, captured.logits, collate(m, labelled))
            gradients = output_gradients(loss, captured, plan, keep=k < len(rounds))
            factors = factor_gradients(m, captured, plan, gradients, n)
            found.append(self._parts(factors, labelled))
        return found

    def _parts(self, factors: dict[str, Factor], queries: list[Query]) -> Factors:
        rest = [(name, p) for name, p in self.named if self.plan.rules[name] == PER_QUERY]
        if rest:
            formed = [query_gradients(self.m, query, [p for _, p in rest]) for query in queries]
            factors |= {name: Formed(torch.stack([g[i] for g in formed])) for i, (name, _) in enumerate(rest)}
        pieces: dict[str, list[Factor]] = {}
        whole = {part.parameter: part.count for part in self.parts}
        for name, parameter in self.named:
            factor = factors.get(name, Formed(torch.zeros(len(queries), 1, device=parameter.device)))
            cut = split(factor, whole[name], self.plan.output_axis(name))
            pieces[name] = [shrink(piece, self.length) for piece in cut]
        return [pieces[part.parameter][part.index] for part in self.parts]

    def _inner(self, x: Factors, y: Factors, index: Tensor | None = None) -> Float[Tensor, "n P"]:
        grams = Grams(index if index is None else index.to(self.m.device))
        return torch.stack([a.inner(b, grams) for a, b in zip(x, y, strict=True)], dim=1).cpu()  # type: ignore[arg-type]


def _cosine(inner: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # 0/0 is NaN: a cosine with a gradient that vanishes is undefined, not zero
    return inner.sum(-1) / (x.sum(-1) * y.sum(-1)).sqrt()

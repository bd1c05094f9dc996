"""Inner products of per-query gradients over every parameter, without forming a gradient.

One forward pass of the queries, one backward pass to module *outputs*, and per module the products of what went in
and the gradients of what came out. The plain definition, two backward passes a pair, is in ``plain_gradients``.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rcprobe.controls import Assignment
from rcprobe.errors import UsageError
from rcprobe.facts import Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import Batch, collate, relabelled
from rcprobe.probing.capture import capture
from rcprobe.probing.captured import Captured, log_softmax, negative_log_prob
from rcprobe.probing.coverage import UNMET, UNREAD, Coverage, cover, factor_gradients, output_gradients
from rcprobe.probing.factors import Factor, Formed, Grams, Inputs, shrink, split
from rcprobe.probing.parameters import Named, Part, Which, chosen, output_axis, parameter_parts
from rcprobe.probing.plain_gradients import query_gradients
from rcprobe.probing.sizes import BatchSize, resolve, worked_through
from rcprobe.queries import with_target


@dataclass(frozen=True)
class Factors:
    """Gradients of n queries, one factor a part, each query's gradient multiplied by its ``lift``."""

    parts: Sequence[Factor]
    lift: Float[Tensor, " n"]


Columns = tuple[Factors, Factors, Tensor | None]  # whose gradients, against whose, and which of those


@dataclass(frozen=True)
class GradientProducts:
    """⟨g→, g←⟩ and squared norms of B pairs over P parts, and the same against K controls a pair, in float64.

    ``kinds[k]`` says what the k-th control's reverse query asks: ``same_target`` (the pair's target, from a
    partner's evidence), ``other_target`` (a partner's target, from the pair's evidence), ``other_fact`` (both the
    partner's). ``partner`` holds indices into the pairs, −1 where a pair has no such partner (products NaN).
    ``rules`` says how each parameter's gradients were read, ``left_out`` why others weren't, ``batch_size`` how many
    prompts went through at once.

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
    left_out: Mapping[str, str]
    batch_size: int

    def indices(self, *, group: str | None = None, layer: int | None = None, dense: bool = False) -> list[int]:
        """Numbers of the parts of a group, a layer, or both; of the weights under adapters only where ``dense``."""
        return [
            i
            for i, part in enumerate(self.parts)
            if part.dense == dense and group in (None, part.group) and layer in (None, part.layer)
        ]

    def undefined(self) -> dict[str, int]:
        """Part → in how many pairs one of the two gradients vanishes, so that their cosine is undefined."""
        vanish = ((self.forward_norm2 == 0) | (self.reverse_norm2 == 0)).sum(dim=0).tolist()
        return {part.name: count for part, count in zip(self.parts, vanish, strict=True) if count}

    def coverage(self) -> dict[str, dict[str, int]]:
        """How many parameters were ``read`` by which rule, how many ``left out`` and why, and what is ``undefined``."""
        counts = {"read": Counter(self.rules.values()), "left out": Counter(self.left_out.values())}
        return {**{name: dict(count) for name, count in counts.items()}, "undefined": self.undefined()}

    def cosine(self, keep: Sequence[int] | None = None) -> Float[Tensor, " B"]:
        """cos(g→, g←) over the parts of the given indices (all but the dense ones by default).

        NaN where a gradient vanishes.
        """
        i = self.indices() if keep is None else list(keep)
        return _cosine(self.inner[:, i], self.forward_norm2[:, i], self.reverse_norm2[:, i])

    def control_cosine(self, kind: str, keep: Sequence[int] | None = None) -> Float[Tensor, " B"]:
        """The mean cosine of each pair with its controls of one kind; NaN where it has none."""
        i = self.indices() if keep is None else list(keep)
        columns = [k for k, name in enumerate(self.kinds) if name == kind]
        forward = self.forward_norm2[:, None, :].expand_as(self.control_norm2)
        cosines = _cosine(self.control_inner[..., i], forward[..., i], self.control_norm2[..., i])[:, columns]
        return cosines.nanmean(dim=1)


Scores = Literal["anchors", "spans"] | None  # which cells a pass also reads
Reader = Callable[[Sequence[Query], Batch, Captured], None]  # is shown what a pass over the queries showed


def gradient_products(
    m: LoadedModel,
    pairs: Sequence[QueryPair],
    controls: Assignment,
    *,
    parameters: Which = "trainable",
    batch_size: BatchSize = "auto",
    layers: Sequence[int] | None = None,
    dense: bool = True,
    reader: Reader | None = None,
    scores: Scores = None,
) -> GradientProducts:
    """Gradient products of supported pairs, and against the controls assigned to them.

    Batches hold whole blocks of the assignment, so results don't depend on ``batch_size`` (forward, or reverse,
    prompts in memory at once). ``layers`` keeps only the parameters of those layers; ``dense`` adds the weights
    under low-rank adapters. ``reader`` is shown each pass, with
    ``scores`` in it if asked.
    Raises ``UsageError`` where no parameter takes a gradient, ``AdapterError`` for a parameter in no declared group.
    """
    kinds = controls.kinds
    with torch.enable_grad(), chosen(m.model, parameters) as choice:
        under = choice.dense if dense else []
        parts = parameter_parts(m.adapter, [name for name, _ in choice.named], [name for name, _ in under])
        parts = tuple(part for part in parts if layers is None or part.layer in layers)
        inside = {part.parameter for part in parts}
        named, under = ([(name, p) for name, p in some if name in inside] for some in (choice.named, under))
        if not named:
            raise UsageError(f"layers {list(layers or ())}: no parameter that takes a gradient is in them")
        if not pairs:
            return _nothing(parts, controls, choice.left_out)
        plan = cover(m, named, [query for pair in pairs[:1] for query in (pair.forward, pair.reverse)], under)
        length = max(len(query.input_ids) for pair in pairs for query in (pair.forward, pair.reverse))
        size = resolve(m, batch_size, 2 * length, gradients=True)
        table = torch.full((len(pairs), 3 + 2 * len(kinds), len(parts)), torch.nan, dtype=torch.float64)

        def work(blocks: list[tuple[int, ...]]) -> None:
            indices = [i for block in blocks for i in block]
            both = PairFactors(m, [pairs[i] for i in indices], plan, [*named, *under], parts, layers, reader, scores)
            table[indices] = both.table(controls.within(indices))

        for _, _, used in worked_through(controls.blocks, size, len, work):
            size = used
    inner = {"inner": table[:, 0], "forward_norm2": table[:, 1], "reverse_norm2": table[:, 2]}
    control = {"control_inner": table[:, 3::2], "control_norm2": table[:, 4::2]}
    return GradientProducts(
        parts=parts,
        kinds=kinds,
        partner=controls.partner,
        rules=plan.rules,
        left_out=choice.left_out,
        batch_size=size,
        **inner,
        **control,
    )


def _nothing(parts: tuple[Part, ...], controls: Assignment, left_out: Mapping[str, str]) -> GradientProducts:
    """The products of no pairs."""
    flat, cube = torch.empty(0, len(parts)).double(), torch.empty(0, len(controls.kinds), len(parts)).double()
    return GradientProducts(parts, flat, flat, flat, controls.kinds, controls.partner, cube, cube, {}, left_out, 0)


class PairFactors:
    """One batch of pairs: factors of forward, reverse and relabelled reverse queries, and their products."""

    def __init__(
        self,
        m: LoadedModel,
        pairs: Sequence[QueryPair],
        plan: Coverage,
        named: Named,
        parts: Sequence[Part],
        layers: Sequence[int] | None,
        reader: Reader | None,
        scores: Scores,
    ) -> None:
        self.m, self.pairs, self.plan, self.named, self.parts = m, pairs, plan, named, parts
        self.layers, self.reader, self.scores = layers, reader, scores
        self.length = max(len(query.input_ids) for pair in pairs for query in (pair.forward, pair.reverse))

    def table(self, controls: Assignment) -> Float[Tensor, "n C P"]:
        """Columns ⟨f, r⟩, ‖f‖², ‖r‖², then ⟨f, c⟩, ‖c‖² for each control c."""
        (forward,) = self._factors([pair.forward for pair in self.pairs], [])
        reverse = [pair.reverse for pair in self.pairs]
        own, *other = self._factors(reverse, [self._relabelled(controls, r) for r in range(controls.rounds)])
        wanted: list[Columns] = [(forward, own, None), (forward, forward, None)]
        wanted += [(factors, factors, None) for factors in (own, *other)]
        norms = 2  # where the norms of own, then of each round's relabelled prompts, begin
        partners: dict[tuple[int, ...], Tensor] = {}  # one tensor for equal partners, whose Grams are then shared
        for k, kind in enumerate(controls.kinds):
            partner = controls.partner[:, k]
            index = partners.setdefault(tuple(partner.tolist()), partner.clamp(min=0).to(self.m.device))
            # a relabelled prompt serves two pairs: its own (another target), and the one whose target it was given
            against = own if kind == "other_fact" else other[k // 2]
            wanted.append((forward, against, None if kind == "other_target" else index))
        found = self.inner(wanted)
        columns = [found[:, 0], found[:, 1], found[:, norms]]
        for k, kind in enumerate(controls.kinds):
            norm2 = found[:, norms if kind == "other_fact" else norms + 1 + k // 2]
            if kind != "other_target":
                norm2 = norm2[controls.partner[:, k].clamp(min=0)]
            missing = (controls.partner[:, k] < 0)[:, None]
            inner = found[:, norms + 1 + controls.rounds + k]
            columns += [inner.masked_fill(missing, torch.nan), norm2.masked_fill(missing, torch.nan)]
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
            return self.traced(queries, rounds, self.reader)
        # a causal model reads the labels it is forced through
        return self.traced(queries, [], self.reader) + [self.traced(each, [], None)[0] for each in rounds]

    def traced(self, queries: list[Query], rounds: list[list[Query]], reader: Reader | None) -> list[Factors]:
        """Factors of queries, and of each round's labels on the same prompts, from one forward pass."""
        m, plan, inputs = self.m, self.plan, Inputs(len(queries))
        scores = self.scores if reader is not None else None
        batch = collate(m, queries, spans=scores == "spans")
        captured = capture(
            m,
            batch,
            scores=scores is not None,
            taps=(*plan.taps, *plan.watched),
            expand_positions=plan.expand_positions,
            layers=self.layers,
        )
        if reader is not None:
            reader(queries, batch, captured)
        log_probs = log_softmax(m, captured.logits)
        found = []
        for k, labelled in enumerate([queries, *rounds]):
            batch = relabelled(batch, labelled) if k else batch
            lift = _lift(log_probs.detach(), batch)
            value = (negative_log_prob(log_probs, batch) * lift).sum()
            gradients = output_gradients(value, captured, plan, keep=k < len(rounds))
            factors = factor_gradients(m, captured, plan, gradients, inputs)
            found.append(Factors(self._parts(factors, labelled, lift, plan.read_one_by_one(captured)), lift))
        return found

    def _parts(
        self, factors: dict[str, Factor], queries: list[Query], lift: Float[Tensor, " n"], one_by_one: set[str]
    ) -> list[Factor]:
        rest = [(name, p) for name, p in self.named if name in one_by_one]
        if rest:
            formed = [query_gradients(self.m, query, [p for _, p in rest]) for query in queries]
            lifted = [torch.stack([g[i] * s for g, s in zip(formed, lift, strict=True)]) for i in range(len(rest))]
            factors |= {name: Formed(values) for (name, _), values in zip(rest, lifted, strict=True)}
        return self.cut(factors, len(queries))

    def cut(self, factors: dict[str, Factor], n: int) -> list[Factor]:
        """One factor a part, of n queries' gradients by parameter; a parameter they don't reach gets zeros."""
        pieces: dict[str, list[Factor]] = {}
        whole = {part.parameter: part.count for part in self.parts}
        for name, parameter in self.named:
            rule = self.plan.rules[name]
            blank = (n, *[1] * (parameter.ndim if rule == UNMET else 1))  # formed for those queries that reach it
            unknown = torch.full(blank, torch.nan if rule == UNREAD else 0.0, device=parameter.device)
            factor = factors.get(name, Formed(unknown))
            cut = split(factor, whole[name], output_axis(self.m.model, name))
            pieces[name] = [shrink(piece, self.length) for piece in cut]
        return [pieces[part.parameter][part.index] for part in self.parts]

    def inner(self, wanted: Sequence[Columns]) -> Float[Tensor, "n C P"]:
        """⟨x, y⟩ for each wanted column and part."""
        found, grams, sides = [], Grams(), set[int]()
        for p in range(len(self.parts)):
            read = wanted[0][0].parts[p].sides()
            if read and not read & sides:
                grams, sides = Grams(), read  # a Gram is met again only by the modules that read the same input
            products = [x.parts[p].inner(y.parts[p], grams, index) for x, y, index in wanted]  # type: ignore[arg-type]
            found.append(torch.stack(products, dim=1))
        lifted = [x.lift.double() * (y.lift if index is None else y.lift[index]).double() for x, y, index in wanted]
        return (torch.stack(found, dim=2) / torch.stack(lifted, dim=1)[..., None]).cpu()


def _lift(log_probs: Float[Tensor, "n T V"], batch: Batch) -> Float[Tensor, " n"]:
    """Powers of two that bring each prompt's gradient near size one.

    The gradient by a logit is as small as the target's strongest rival is unlikely; near saturation, products of
    such gradients leave float32's range.
    """
    rival = log_probs.scatter(-1, batch.targets[..., None], -torch.inf).amax(dim=-1)
    strongest = rival.masked_fill(~batch.counts, -torch.inf).amax(dim=1).nan_to_num(0.0)
    return torch.exp2((-strongest / math.log(2)).floor().clamp(0, 100))


def _cosine(inner: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # 0/0 is NaN: a cosine with a gradient that vanishes is undefined, not zero
    return inner.sum(-1) / (x.sum(-1) * y.sum(-1)).sqrt()

"""Which other facts a fact is compared with: the controls of every signature."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from rcprobe.facts import Query, QueryPair

BLOCK = 32  # pairs among which partners are chosen; batches hold whole blocks


@dataclass(frozen=True)
class Assignment:
    """The K controls of each of B pairs.

    ``kinds[k]`` is ``same_target``, ``other_target`` or ``other_fact``; ``partner[i, k]`` the pair that lends its
    evidence or target, −1 where none is left. The first 2·``rounds`` columns are same and other target in turn: in
    round r each reverse prompt is also asked for its partner's target, which is another target for the prompt's own
    pair and the same target from other evidence for the partner's. ``blocks`` list pairs that are each other's
    partners.
    """

    kinds: tuple[str, ...]
    partner: Int[Tensor, "B K"]
    rounds: int
    blocks: tuple[tuple[int, ...], ...]

    def within(self, indices: Sequence[int]) -> "Assignment":
        """The assignment of the given pairs, partners numbered among them; they must be whole blocks."""
        place = {i: n for n, i in enumerate(indices)}
        partner = [[place[j] if j >= 0 else -1 for j in row] for row in self.partner[list(indices)].tolist()]
        shaped = torch.tensor(partner, dtype=torch.long).reshape(len(indices), len(self.kinds))
        return Assignment(self.kinds, shaped, self.rounds, ())


def assign(pairs: Sequence[QueryPair], count: int, seed: int = 0) -> Assignment:
    """Choose ``count`` controls for each pair that can be asked, among pairs of its stratum that share nothing with it.

    A partner has the same template pair, token counts, distances and lengths; it is of another cluster of facts,
    and no word of its entities or answers is one of the pair's (a shared surname would give evidence away). An
    eighth of the controls, at least one, ask the same target from other evidence (each costs a backward pass), as
    many another target from the same evidence, the rest another fact.
    """
    rounds = min(max(1, count // 8), count // 2)
    kinds = ("same_target", "other_target") * rounds + ("other_fact",) * (count - 2 * rounds)
    partner = torch.full((len(pairs), count), -1)
    blocks = _blocks(pairs, seed)
    words = [_words(pair.forward) | _words(pair.reverse) for pair in pairs]
    for block in blocks:
        for place, i in enumerate(block):
            others = block[place + 1 :] + block[:place]
            free = [j for j in others if pairs[j].cluster != pairs[i].cluster and not words[i] & words[j]]
            for r, j in enumerate(free[:rounds]):
                partner[i, 2 * r + 1] = j
                if partner[j, 2 * r] < 0:
                    partner[j, 2 * r] = i
            # from behind, where those stand whose evidence is lent: what is read of a partner is read once
            for k, j in enumerate(free[::-1][: count - 2 * rounds]):
                partner[i, 2 * rounds + k] = j
    return Assignment(kinds, partner, rounds, blocks)


def _blocks(pairs: Sequence[QueryPair], seed: int) -> tuple[tuple[int, ...], ...]:
    """Strata in the order of their length, cut into nearly equal blocks, facts in a seeded order."""
    strata: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        if pair.unsupported is None:
            strata[pair.stratum].append(i)
    # one order of facts for all strata, so that a fact meets the same partners at every distance
    order = np.random.default_rng(seed).permutation(1 + max((pair.fact for pair in pairs), default=0))
    blocks: list[tuple[int, ...]] = []
    for members in sorted(strata.values(), key=lambda group: len(pairs[group[0]].reverse.input_ids)):
        ring = sorted(members, key=lambda i: order[pairs[i].fact])
        pieces = np.array_split(np.array(ring), -(-len(ring) // BLOCK))
        blocks.extend(tuple(int(i) for i in piece) for piece in pieces)
    return tuple(blocks)


def other_targets(pairs: Sequence[QueryPair]) -> list[tuple[tuple[int, ...], ...]]:
    """For each pair, the targets of other trained facts that its reverse query could have asked for.

    They are cut as this template cuts them (" Oslo" is another token than "Oslo"), have the same number of tokens and
    are neither its own target nor another right answer; those of the facts that follow come first, so that the first
    few differ from fact to fact.
    """
    pools: dict[tuple[int, int], dict[tuple[int, ...], None]] = defaultdict(dict)
    for pair in pairs:
        if pair.unsupported is None and pair.trained:
            pools[pair.template, len(pair.reverse.target_ids)][pair.reverse.target_ids] = None
    found: list[tuple[tuple[int, ...], ...]] = []
    for pair in pairs:
        right = {pair.reverse.target_ids, *pair.reverse.other_answers}
        pool = list(pools[pair.template, len(pair.reverse.target_ids)]) if pair.unsupported is None else []
        own = pool.index(pair.reverse.target_ids) if pair.reverse.target_ids in pool else 0
        found.append(tuple(target for target in pool[own:] + pool[:own] if target not in right))
    return found


def _words(query: Query) -> set[str]:
    texts = (query.target, query.evidence, *query.other_texts)
    return {word for text in texts for word in re.split(r"\W+", text.casefold()) if word}

"""Which other facts a fact is compared with: the controls of every signature."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rcprobe.facts import Query, QueryPair


def partners(pairs: Sequence[QueryPair], count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """For each pair, up to ``count`` other pairs of its stratum that share nothing with it, in a seeded order.

    A partner has the same template pair, token counts, distances and lengths; it is of another cluster of facts,
    and no word of its entities or answers is one of the pair's (a shared surname would give evidence away).
    Returns indices into ``pairs``; pairs that can't be asked have none.
    """
    strata: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        if pair.unsupported is None:
            strata[pair.stratum].append(i)
    words = [_words(pair.forward) | _words(pair.reverse) for pair in pairs]
    # one order of facts for all templates, so that a fact meets the same partners at every distance
    order = np.random.default_rng(seed).permutation(1 + max((pair.fact for pair in pairs), default=0))
    chosen: list[tuple[int, ...]] = [()] * len(pairs)
    for members in strata.values():
        ring = sorted(members, key=lambda i: order[pairs[i].fact])
        for place, i in enumerate(ring):
            others = ring[place + 1 :] + ring[:place]
            free = (j for j in others if pairs[j].cluster != pairs[i].cluster and not words[i] & words[j])
            chosen[i] = tuple(j for j, _ in zip(free, range(count), strict=False))
    return chosen


def other_targets(pairs: Sequence[QueryPair]) -> list[tuple[tuple[int, ...], ...]]:
    """For each pair, the targets of other trained facts that its reverse query could have asked for.

    They have the same number of tokens and are neither its own target nor another right answer.
    """
    pools: dict[int, dict[tuple[int, ...], None]] = defaultdict(dict)
    for pair in pairs:
        if pair.unsupported is None and pair.trained:
            pools[len(pair.reverse.target_ids)][pair.reverse.target_ids] = None
    found: list[tuple[tuple[int, ...], ...]] = []
    for pair in pairs:
        right = {pair.reverse.target_ids, *pair.reverse.other_answers}
        pool = pools[len(pair.reverse.target_ids)] if pair.unsupported is None else ()
        found.append(tuple(target for target in pool if target not in right))
    return found


def _words(query: Query) -> set[str]:
    return {*query.target.casefold().split(), *query.evidence.casefold().split()}

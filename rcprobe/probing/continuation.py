"""What a causal model writes after the evidence: the answer need not stand at one place to be right."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import collate
from rcprobe.probing.capture import capture
from rcprobe.probing.sizes import BatchSize, resolve, worked_through

GREEDY = "greedy to the end"


def greedy_to_the_end(m: LoadedModel, queries: Sequence[Query], batch_size: BatchSize) -> Float[Tensor, " Q"]:
    """1 where the target stands in what a causal model writes, token by token, after the evidence; else 0.

    It writes as many tokens as the statement has left. Before the last place, the right next token may well be
    filler, so that the best token at the target's own place says little of what the model knows.
    """
    ids = [tuple(m.encoding(query.text).ids) for query in queries]
    prompts = [whole[: query.evidence_positions[-1] + 1] for whole, query in zip(ids, queries, strict=True)]
    ends: dict[tuple[int, ...], int] = {}
    for prompt, whole in zip(prompts, ids, strict=True):
        ends[prompt] = max(len(whole), ends.get(prompt, 0))
    written = {prompt: prompt for prompt in ends}
    while growing := [prompt for prompt, so_far in written.items() if len(so_far) < ends[prompt]]:
        growing.sort(key=lambda prompt: len(written[prompt]))
        size = resolve(m, batch_size, max(ends.values()), gradients=False)
        for group, tokens, _ in worked_through(
            growing, size, lambda _: 1, lambda some: _next(m, [written[p] for p in some])
        ):
            written.update((prompt, (*written[prompt], token)) for prompt, token in zip(group, tokens, strict=True))
    found = [
        _stands_in(query.target_ids, written[prompt][len(prompt) : len(whole)])
        for query, prompt, whole in zip(queries, prompts, ids, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)


def _next(m: LoadedModel, prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """The likeliest token after each prompt."""
    queries = [Query("forward", "", "", "", p, (0,), (len(p) - m.adapter.shift,), (0,)) for p in prompts]
    logits = m.adapter.logits(capture(m, collate(m, queries), scores=False).logits, m.mask_id)
    return [int(token) for token in logits[:, 0].argmax(dim=-1)]


def _stands_in(target: tuple[int, ...], written: tuple[int, ...]) -> bool:
    return any(written[i : i + len(target)] == target for i in range(len(written) - len(target) + 1))

"""Question (f): the inner product of forward and reverse gradients, matrix by matrix (App. C.2)."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from rcprobe.errors import TrainingError
from rcprobe.facts import Dataset, QueryPair
from rcprobe.loading import load
from rcprobe.probe import one_per_distance
from rcprobe.queries import encode
from rcprobe.report.panels import Dots
from rcprobe.statistics import over_seeds
from rcprobe.theory import OneLayer, Split, one_layer_gradients, split_product
from rcprobe.theory.rotary import BASE
from rcprobe_plugins.encodings.rope import turn
from rcprobe_plugins.studies.jobs import workers
from rcprobe_plugins.studies.reviews.answer import ACCURACY, ENOUGH, Answer, not_trained, said, series
from rcprobe_plugins.studies.reviews.cells import Size

PARTS = ("U", "W_V", "W_Q", "W_K", "E, query path", "E, key path", "E, value path", "E, crosses")
PAIRS = 60  # matched pairs that are split; the rest would only take time
TINY = 1e-300
RATE = 1e-2  # of Adam: at RADD's 1e-3 this model, without norms, doesn't learn in thousands of steps
WEIGHTS = ("unembed", "value", "query", "key", "embedding")


def by_matrix(size: Size) -> Answer:
    """(f) App. C.2's split by matrix, before and after training the attention-only model that it is about."""
    data = size.letters()
    rows = pd.concat(_splits(size, data), ignore_index=True)
    end = rows[rows.trained == "trained"]
    models = end[end.part == PARTS[0]]
    shares = {part: over_seeds(list(end[end.part == part].share)) for part in PARTS}
    ranked = sorted(PARTS, key=lambda part: -shares[part].value)
    positive = bool((end.whole > 0).all())  # a share of a negative whole would have the other sign
    enough = positive and min(share.n for share in shares.values()) >= ENOUGH
    decided = [part for part in PARTS if enough and (shares[part].low > 0 or shares[part].high < 0)]
    negative = [part for part in decided if shares[part].high < 0]
    unsure = [part for part in PARTS if part not in decided]
    says = (
        "Of the inner product of matched gradients in the trained attention-only model, "
        f"{', '.join(f'{part} gives {said(shares[part])}' for part in ranked)}; "
        f"negative: {', '.join(negative) or 'none'}; sign not decided: {', '.join(unsure) or 'none'}"
        f"{'' if positive else ' (the whole is negative in some seed)'}. The parts add up to autograd's inner product "
        f"to {rows.off.max():.0e} of it; forward P is {said(over_seeds(list(models.P)))}.{not_trained(models)}"
    )
    kinds = (("before training", "control"), ("trained", "forward"))
    panel = Dots(
        "Share of the inner product ⟨∇L→, ∇L←⟩",
        "share of the whole",
        tuple(series(rows[rows.trained == kind], "share", kind, style, "part") for kind, style in kinds),  # type: ignore[arg-type]
    )
    return Answer("f", says, rows, (panel,))


def train_one_layer(size: Size, statements: Int[Tensor, "S L"], mask: int, seed: int) -> tuple[OneLayer, OneLayer]:
    """The attention-only model of §3 under RoPE, in float64: at its start, and trained with t-DCE by Adam."""
    generator = torch.Generator().manual_seed(seed)
    width = size.width
    shapes = {"unembed": (mask, width), "embedding": (width, mask + 1)}
    weights = {
        name: torch.randn(*shapes.get(name, (width, width)), generator=generator, dtype=torch.float64) / width**0.5
        for name in WEIGHTS
    }
    start = OneLayer(**weights, base=BASE, scale=width**-0.5)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    model = OneLayer(**leaves, base=BASE, scale=width**-0.5)
    optimiser = torch.optim.Adam(leaves.values(), lr=RATE)
    for _ in range(size.train.steps):
        ids = statements[torch.randint(len(statements), (size.train.batch_size,), generator=generator)]
        p = torch.rand(len(ids), 1, generator=generator, dtype=torch.float64) * 0.999 + 0.001
        masked = torch.rand(ids.shape, generator=generator, dtype=torch.float64) < p
        logits = _logits(model, ids.masked_fill(masked, mask))
        losses = F.cross_entropy(logits[masked], ids[masked], reduction="none")
        loss = (losses / p.expand_as(masked)[masked]).sum() / len(ids)
        if not loss.isfinite():
            raise TrainingError(f"seed {seed}: the attention-only model's loss is {loss:g}")
        for leaf, gradient in zip(leaves.values(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
            leaf.grad = gradient
        optimiser.step()
    return start, replace(model, **{name: tensor.detach() for name, tensor in leaves.items()})


def _logits(model: OneLayer, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
    content = model.embedding.T[ids]
    query, key = (turn((content @ w.T)[:, None], BASE) for w in (model.query, model.key))
    mixed = (model.scale * query @ key.transpose(-1, -2)).softmax(dim=-1)[:, 0] @ content
    return mixed @ model.value.T @ model.unembed.T


def _splits(size: Size, data: Dataset) -> Iterator[pd.DataFrame]:
    """Each seed's split, as many at once as there are workers."""
    plain = replace(size, progress=None)  # workers take no callback
    with nullcontext() if size.workers == 1 else workers(size.workers) as pool:
        mapped = map if pool is None else pool.map
        for seed, rows in enumerate(mapped(_split, [plain] * size.seeds, [data] * size.seeds, range(size.seeds))):
            if size.progress is not None:
                size.progress(seed + 1, size.seeds)
            yield rows


def _split(size: Size, data: Dataset, seed: int) -> pd.DataFrame:
    m = load("radd", options={"width": 8, "max_length": 2 * size.length})  # its tokenizer and queries
    texts = [fact.statement("forward", k)[0] for fact in data.facts for k in range(len(fact.forward))]
    assert m.mask_id is not None
    models = train_one_layer(size, torch.tensor(m.tokenizer(texts)["input_ids"]), m.mask_id, seed)
    pairs = one_per_distance(encode(m, data.facts))
    chosen = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:PAIRS]
    pairs = [pairs[int(i)] for i in chosen]
    rows = []
    for kind, model in zip(("before training", "trained"), models, strict=True):
        splits = [_of_pair(model, pair) for pair in pairs]
        whole = sum(total for _, total, _, _ in splits)
        found = {part: sum(_parts(split)[part] for split, _, _, _ in splits) for part in PARTS}
        off = max(abs(split.total - total) / max(abs(total), TINY) for split, total, _, _ in splits)
        probability, right = (sum(column) / len(splits) for column in list(zip(*splits, strict=True))[2:])
        of = {"seed": seed, "trained": kind, "whole": whole, "off": off, "P": probability, ACCURACY: right}
        rows += [{"cell": "attention-only", **of, "part": part, "share": found[part] / whole} for part in PARTS]
    return pd.DataFrame(rows)


def _of_pair(model: OneLayer, pair: QueryPair) -> tuple[Split, float, float, bool]:
    """The split in closed form, the whole by autograd, the forward probability, and whether forward is answered."""
    gradients, whole, probability, right = [], [], 0.0, False
    for query in (pair.forward, pair.reverse):
        prompt, target = torch.tensor(query.input_ids), query.target_ids[0]
        gradients.append(one_layer_gradients(model, prompt, query.row, target))
        leaves = {name: getattr(model, name).clone().requires_grad_() for name in WEIGHTS}
        log_probs = _logits(replace(model, **leaves), prompt[None])[0, query.row].log_softmax(dim=-1)
        log_p = log_probs[target]
        formed = torch.autograd.grad(-log_p, list(leaves.values()))
        whole.append(torch.cat([gradient.flatten() for gradient in formed]))
        if query is pair.forward:
            probability, right = float(log_p.detach().exp()), int(log_probs.argmax()) == target
    return split_product(*gradients), float(whole[0] @ whole[1]), probability, right


def _parts(split: Split) -> dict[str, float]:
    paths = split.embedding
    crosses = float(paths.sum() - paths.diagonal().sum())
    values = (split.unembed, split.value, split.query, split.key, *paths.diagonal().tolist(), crosses)
    return dict(zip(PARTS, values, strict=True))

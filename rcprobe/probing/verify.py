"""``verify``: a model must behave as its adapter declares before any number is read from it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rcprobe.adapter import misdeclarations
from rcprobe.encoding import Encoding, misdeclared
from rcprobe.errors import VerificationError
from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel, evaluating
from rcprobe.probing.batch import Batch, collate
from rcprobe.probing.capture import capture
from rcprobe.probing.captured import model_inputs
from rcprobe.probing.storage import misplaced
from rcprobe.training.objectives import misnamed_loss

LENGTH = 8
STEPS = (0, -1, 1)  # from the declared row
TOGETHER = 32  # prompts: logits of all their positions are held


@dataclass(frozen=True)
class Check:
    """One check: its name, and what was seen; ``passed`` is None where the model doesn't allow it."""

    name: str
    passed: bool | None
    seen: str


def verify(m: LoadedModel) -> tuple[Check, ...]:
    """Check mask, finiteness, attention, padding, scores and positional encoding on random prompts.

    Raises ``VerificationError`` at the first check that fails, saying what was declared and what was seen. (The
    declared shift can only be told on a trained model: see ``verify_shift``.)
    """
    checks = []
    for found in checked(m):
        if found.passed is False:
            raise VerificationError(f"{m.source} ({m.adapter.name}): {found.name}: {found.seen}")
        checks.append(found)
    return tuple(checks)


def checked(m: LoadedModel) -> Iterator[Check]:
    """The checks one after another, failed ones too."""
    declared = misdeclarations(type(m.adapter)) or misnamed_loss(type(m.adapter))
    if declared:
        yield Check("declarations", False, declared)
        return
    if m.max_length is not None and m.max_length < 2:
        yield Check("length", False, "the model holds one position, and a query needs two: a target and its evidence")
        return
    if m.adapter.objective == "causal" and m.adapter.shift < 1:
        seen = (
            f"a causal model's logits at i predict i + 1, so shift is 1 or more; it declares {m.adapter.shift} and "
            "would be read at its own target"
        )
        yield Check("shift", False, seen)
    own = (_encoding,) if _encodings(m) else ()
    lost = "" if m.adapter.ov_circuit is None else misplaced(m.model, m.adapter.ov_circuit)
    if lost:
        yield Check(
            "ov_circuit",
            False,
            f"this model has no {lost}; correct the path, or set ov_circuit to None to go without storage",
        )
    for check in (_mask, _attention, _padding, _weights, *own):
        yield check(m)


def verify_shift(m: LoadedModel, queries: Sequence[Query]) -> Check:
    """Check that the declared shift predicts targets better than its neighbours, on a model that knows the queries.

    Compares the mean log p of the targets read at the declared rows, one earlier and one later. Raises
    ``VerificationError`` if a neighbour knows the answers (a nat above guessing) and the declared row is half a nat
    worse; a model that knows nothing decides nothing (``passed`` None).
    """
    asked = [query for query in queries if query.unsupported is None][:256]
    if not asked:
        return Check("shift", None, "no query could be asked")
    read = torch.cat([_log_probs(m, asked[i : i + TOGETHER]) for i in range(0, len(asked), TOGETHER)])
    found = dict(zip(STEPS, read.nanmean(dim=0).tolist(), strict=True))
    known = 1 - math.log(m.vocabulary)
    best = max((-1, 1), key=lambda step: found[step] if math.isfinite(found[step]) else -math.inf)
    if found[best] > max(known, found[0] + 0.5):
        raise VerificationError(
            f"{m.source} ({m.adapter.name}): shift: it declares {m.adapter.shift}, but logits read at shift "
            f"{m.adapter.shift - best} predict the targets {found[best] - found[0]:.2f} nats better"
        )
    confirmed = found[0] > known and not found[best] >= found[0] - 0.01
    return Check("shift", True if confirmed else None, f"mean log p {found[0]:.2f} at the declared shift")


def _log_probs(m: LoadedModel, queries: Sequence[Query]) -> Tensor:
    """[n, 3]: log p of each query's first target, read at its row and as many steps beside it; NaN outside."""
    batch = collate(m, queries)
    with evaluating(m.model), torch.no_grad():
        logits = m.model(**model_inputs(m.model, batch)).logits
        row = batch.rows[:, :1] + torch.tensor(STEPS, device=logits.device)
        inside = (row >= 0) & (row < batch.attention_mask.sum(dim=1, keepdim=True))
        at = row.clamp(0, logits.shape[1] - 1)[..., None].expand(-1, -1, logits.shape[2])
        read = torch.log_softmax(m.adapter.logits(logits.gather(1, at), m.mask_id).double(), dim=-1)
    found = read.gather(2, batch.targets[:, :1, None].expand(-1, len(STEPS), 1))[..., 0]
    return found.masked_fill(~inside, torch.nan).cpu()


def _mask(m: LoadedModel) -> Check:
    mask = m.mask_id
    if mask is None:
        return Check("mask", None, "a causal model has none")
    if not 0 <= mask < m.vocabulary:
        return Check(
            "mask",
            False,
            f"the mask id {mask} is outside the embedding, which holds ids 0–{m.vocabulary - 1}",
        )
    if mask == getattr(m.tokenizer, "pad_token_id", None):
        return Check("mask", False, f"the mask id {mask} is also the padding id: padding would be read as masks")
    return Check("mask", True, f"id {mask} of {m.vocabulary}")


def _attention(m: LoadedModel) -> Check:
    prompts = _prompts(m, 2)
    plain = _hidden(m, prompts)
    if not plain.isfinite().all():
        return Check("finite", False, "the model's output holds NaN or infinite values on random tokens")
    last, first = prompts.clone(), prompts.clone()
    last[:, -1], first[:, 0] = _another(m, prompts[:, -1]), _another(m, prompts[:, 0])
    moved = (_hidden(m, last) - plain)[:, 0].abs().max()
    scale = (_hidden(m, first) - plain)[:, 0].abs().max()
    sees = bool(moved > 1e-6 * scale)
    seen = f"changing the last token {'moves' if sees else 'leaves'} the first position's output"
    if m.adapter.attention == "hybrid":
        return Check("attention", None, f"{seen}; a hybrid declares neither")
    if sees == (m.adapter.attention == "full"):
        return Check("attention", True, seen)
    seen = f"it declares {m.adapter.attention} attention, but {seen}"
    if sees and getattr(m.model, "hf_quantizer", None) is not None:
        seen += "; a quantiser that looks at all positions at once does so (bitsandbytes: llm_int8_threshold=0.0)"
    return Check("attention", False, seen)


def _padding(m: LoadedModel) -> Check:
    padded = _prompts(m, 1)
    cut = min(3, padded.shape[1] - 1)
    padded[:, -cut:] = m.pad_id
    prompts = padded[:, :-cut]
    real = torch.ones_like(padded)
    real[:, prompts.shape[1] :] = 0
    plain = _hidden(m, prompts)
    moved = (_hidden(m, padded, real)[:, : prompts.shape[1]] - plain).abs().max() / plain.abs().max()
    tolerance = 1e-2 if m.dtype.itemsize < 4 else 1e-4
    return Check("padding", bool(moved < tolerance), f"right padding moves the output by {moved:.1e} of its size")


def _weights(m: LoadedModel) -> Check:
    name = "scores"
    queries = _score_queries(m)
    if not queries:
        return Check(name, None, "the model holds too few positions to compare")
    batch = collate(m, queries)
    captured = capture(m, batch)
    if not captured.scores.shape[1]:
        return Check(name, None, "no softmax attention call found: scores are unsupported")
    shown = attention_weights(m.model, batch)
    layers = captured.log_weights.shape[1]
    if shown and len(shown) != layers:
        return Check(name, False, f"{layers} layers were captured, the model shows {len(shown)}")
    depth = getattr(m.config, "num_hidden_layers", layers)
    if m.adapter.attention != "hybrid" and layers < depth:
        seen = (
            f"it declares {m.adapter.attention} attention, but {layers} of {depth} layers attend by softmax: a hybrid"
        )
        return Check("attention", False, seen)
    if not shown:
        return Check(name, None, "the model doesn't show its attention weights")
    row, evidence = batch.score_rows[:, 0], batch.evidence[:, 0]
    prompts = torch.arange(len(row), device=row.device)
    cells = torch.stack([layer[prompts, :, row, evidence] for layer in shown], dim=1)
    off = (captured.log_weights[..., 0, 0].exp() - cells).abs().max()
    half = m.dtype.itemsize < 4
    seen = f"the softmax over captured scores is {off:.1e} away from the model's own attention weights"
    # in bfloat16 the model's own weights are rounded, and so are the scores they are made of: 2.3e-2 was seen
    return Check(name, bool(off < (5e-2 if half else 1e-4)), seen + ("; in float32 this is sharper" if half else ""))


def _encodings(m: LoadedModel) -> list[Encoding]:
    return [module for module in m.model.modules() if isinstance(module, Encoding)]


def _encoding(m: LoadedModel) -> Check:
    """What a tiny model's encoding declares decides how its numbers are read, so it is tried."""
    sizes = m.config.hidden_size, m.config.num_attention_heads, m.max_length or LENGTH
    tried = {type(encoding).__name__: misdeclared(encoding, *sizes) for encoding in _encodings(m)}
    wrong = "; ".join(f"{name}: {reason}" for name, reason in tried.items() if reason)
    return Check("encoding", not wrong, wrong or f"{', '.join(tried)} does what it declares")


def attention_weights(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The weights [B, H, L, L] of each layer as the model shows them when it computes eagerly; none if it doesn't."""
    with _eager(model), evaluating(model), torch.no_grad():
        if model.config._attn_implementation != "eager":  # type: ignore[union-attr]
            return []  # it can't be switched, and what it then shows need not be what it does (Falcon)
        attentions = getattr(model(**model_inputs(model, batch), output_attentions=True), "attentions", None)
    return [layer for layer in attentions or () if layer is not None]


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    config = model.config
    before = config._attn_implementation  # type: ignore[union-attr]
    if before == "eager":
        yield
        return
    model.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]


def _score_queries(m: LoadedModel) -> list[Query]:
    """Random prompts of unlike length, with cells left of their row, and right of it where it may look."""
    queries: list[Query] = []
    for prompt in _prompts(m, 2).tolist():
        last = len(prompt) - 2
        for row, evidence in ((last, 0), (0, last)):
            if m.adapter.attention == "full" or evidence < row:
                ids = tuple(prompt[: len(prompt) - len(queries) % 2])
                queries.append(Query("forward", "", "", "", ids, (ids[0],), (row,), (evidence,)))
    return queries


def _prompts(m: LoadedModel, count: int) -> Tensor:
    avoid = {m.mask_id, m.pad_id}
    tokens = torch.tensor([i for i in range(min(m.vocabulary, 1000)) if i not in avoid])
    length = min(LENGTH, m.max_length or LENGTH)
    drawn = torch.randint(len(tokens), (count, length), generator=torch.Generator().manual_seed(0))
    return tokens[drawn].to(m.device)


def _another(m: LoadedModel, ids: Tensor) -> Tensor:
    """Other tokens than the given ones, neither mask nor padding."""
    avoid = {m.mask_id, m.pad_id}
    return torch.tensor(
        [next(i for i in range(m.vocabulary) if i not in avoid and i != token) for token in ids.tolist()],
        device=ids.device,
    )


def _hidden(m: LoadedModel, ids: Tensor, real: Tensor | None = None) -> Tensor:
    """What enters the output head [B, L, W]: a zero head would hide every change behind it."""
    head = m.model.get_output_embeddings()  # type: ignore[operator]
    kept: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    rows = torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
    batch = Batch(ids, torch.ones_like(ids) if real is None else real, rows, rows, rows > 0, rows, rows)
    try:
        with evaluating(m.model), torch.no_grad():
            m.model(**model_inputs(m.model, batch))
    finally:
        hook.remove()
    return kept[0].double()

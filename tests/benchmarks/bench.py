"""What probing costs beside what can't be avoided: ``python tests/benchmarks/bench.py --out ratios.json``.

Every figure is a ratio of CPU times, the median over runs of both taken in turn in this process, on one thread.
They depend on the machine, so no test asserts them. ``--quick`` runs each a few times only.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rcprobe.controls import assign
from rcprobe.facts import Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import Batch, collate
from rcprobe.probing.capture import capture
from rcprobe.probing.captured import target_rows
from rcprobe.probing.gradients import gradient_products
from rcprobe.probing.hooks import capture_with_hooks
from rcprobe_plugins.models.llama import Llama
from rcprobe_plugins.models.radd import Radd

Row = tuple[str, float, str]  # what, ratio, goal


# --- models and queries ---


def llama(layers: int = 6, width: int = 384, vocabulary: int = 32_000) -> LoadedModel:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return LoadedModel(LlamaForCausalLM(config).eval(), Llama(), SimpleNamespace(pad_token_id=0), "bench")


def radd() -> LoadedModel:
    torch.manual_seed(0)
    options = {"width": 128, "depth": 1}
    m = LoadedModel(Radd.build(options).eval(), Radd(), Radd.default_tokenizer(options), "bench")
    with torch.no_grad():
        m.model.lm_head.weight.normal_(std=0.02)  # a head of zeros would spare the work under it
    return m


def query(m: LoadedModel, ids: Sequence[int], i: int, direction: str) -> Query:
    """One target token, asked for from the middle of the prompt or, by a causal model, from its end."""
    row = len(ids) // 2 if m.mask_id is not None else len(ids) - 1
    shown = [m.mask_id if n == row and m.mask_id is not None else token for n, token in enumerate(ids)]
    return Query(direction, "", f"t{i}", f"e{i}", tuple(shown), (ids[0],), (row,), (2,))  # type: ignore[arg-type]


def pairs_of(m: LoadedModel, count: int, length: int) -> list[QueryPair]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, m.vocabulary - 1, (count, 2, length), generator=generator).tolist()
    return [
        QueryPair(i, 0, "swapped", query(m, f, i, "forward"), query(m, r, i, "reverse"), i, True)
        for i, (f, r) in enumerate(ids)
    ]


def queries_of(m: LoadedModel, count: int, length: int) -> list[Query]:
    return [q for pair in pairs_of(m, count // 2, length) for q in (pair.forward, pair.reverse)]


# --- what ours is set against ---


def target_logits(m: LoadedModel, batch: Batch) -> Tensor:
    """Logits at the target rows alone: the head runs on no other."""
    head = m.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: (target_rows(args[0], batch),))
    try:
        return m.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    finally:
        handle.remove()


def loss(m: LoadedModel, batch: Batch) -> Tensor:
    rows = target_logits(m, batch).log_softmax(-1)
    return -rows.gather(-1, batch.targets[..., None]).sum()


def forward_and_backward(m: LoadedModel, queries: Sequence[Query]) -> None:
    """One training step's passes over all prompts, gradients of all parameters."""
    m.model.zero_grad(set_to_none=True)
    loss(m, collate(m, queries)).backward()
    m.model.zero_grad(set_to_none=True)


def two_backwards_a_pair(m: LoadedModel, pairs: Sequence[QueryPair]) -> list[Tensor]:
    """The usual way: each query's gradient formed by itself, then products by parameter."""
    parameters = list(m.model.parameters())
    products = []
    for pair in pairs:
        f, r = (torch.autograd.grad(loss(m, collate(m, [q])), parameters) for q in (pair.forward, pair.reverse))
        products += [torch.stack([(a * b).sum() for a, b in zip(f, r, strict=True)])]
        products += [torch.stack([(a * a).sum() for a in g]) for g in (f, r)]
    return products


# --- measuring ---


def ratio(one: Callable[[], object], other: Callable[[], object], repeats: int) -> float:
    """The median of one's CPU time over the other's, of runs taken in turn."""
    one(), other()
    found = []
    for k in range(repeats):
        times = {}
        for name, run in ((0, one), (1, other)) if k % 2 else ((1, other), (0, one)):
            start = time.process_time()
            run()
            times[name] = time.process_time() - start
        found.append(times[0] / times[1])
    return statistics.median(found)


def products(m: LoadedModel, pairs: Sequence[QueryPair], controls: int) -> Callable[[], object]:
    assignment = assign(pairs, controls)
    return lambda: gradient_products(m, pairs, assignment)


def gradient_rows(repeats: int) -> Iterator[Row]:
    for name, m, count, length, most, times in (
        ("6-layer llama", llama(), 32, 32, 0.85, 4),
        ("one layer", radd(), 234, 10, 1.1, 6),
    ):
        pairs = pairs_of(m, count, length)
        ours = products(m, pairs, 0)
        plain = lambda m=m, pairs=pairs: forward_and_backward(m, [q for p in pairs for q in (p.forward, p.reverse)])  # noqa: E731
        slow = lambda m=m, pairs=pairs: two_backwards_a_pair(m, pairs)  # noqa: E731
        yield f"{name}: gradient products ÷ forward and backward", ratio(ours, plain, repeats), f"<= {most}"
        yield (
            f"{name}: two backwards a pair ÷ gradient products",
            ratio(slow, ours, max(1, repeats // 3)),
            f">= {times}",
        )
        if name == "6-layer llama":
            controlled = ratio(products(m, pairs, 8), plain, repeats)
            yield f"{name}: the same with 8 controls a pair ÷ forward and backward", controlled, "<= 0.98"


def score_rows(repeats: int) -> Iterator[Row]:
    # a small vocabulary: the twin runs the head on every row
    m = llama(vocabulary=64)
    batch = collate(m, queries_of(m, 16, 64))
    twin = ratio(lambda: capture(m, batch), lambda: capture_with_hooks(m, batch), repeats)
    yield "nnsight ÷ plain hooks, scores on", twin, "<= 1.05"
    m = llama()
    for prompts, length, most in ((16, 64, 1.05), (2, 1024, 1.15)):
        batch = collate(m, queries_of(m, prompts, length))

        @torch.no_grad()
        def plain(batch: Batch = batch) -> Tensor:
            return target_logits(m, batch)

        scores = ratio(lambda batch=batch: capture(m, batch), plain, repeats)
        yield f"scores, {prompts} prompts of {length} tokens ÷ forward", scores, f"<= {most}"


def memory_row() -> Row:
    """Peak memory above what the loaded model takes, 512 pairs against 32 in batches of 32."""
    peaks = []
    for count in (32, 512):
        command = [sys.executable, __file__, "--memory", str(count)]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()[-1]))
    return "peak memory, 512 pairs ÷ 32 pairs, batches of 32", peaks[1] / peaks[0], "<= 1.1"


def peak(count: int) -> int:
    m = llama(layers=2, vocabulary=2000)
    pairs = pairs_of(m, count, 64)
    assignment = assign(pairs, 4)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    gradient_products(m, pairs, assignment, batch_size=32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the ratios as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(peak(options.memory))
        return
    repeats = 3 if options.quick else 11
    kept = []
    for rows in (gradient_rows(repeats), score_rows(5 * repeats), iter([memory_row()])):
        for name, value, goal in rows:
            met = value <= float(goal[3:]) if goal.startswith("<=") else value >= float(goal[3:])
            kept.append({"name": name, "ratio": round(value, 3), "goal": goal, "ok": met})
            print(f"{name:<70} {value:6.2f}   {goal:<8} {'' if met else 'missed'}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""What probing costs beside what can't be avoided: ``make bench OUT=ratios.json``.

Every figure is a ratio of CPU times, the median over runs of both taken in turn in this process, on one thread (on
an accelerator, of elapsed times). They depend on the machine, so no test asserts them. ``--quick`` runs each a few
times only. The neighbours' rows need the extra ``bench``.
"""

import argparse
import copy
import importlib.util
import json
import logging
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rcprobe import TrainConfig, load, observe
from rcprobe.controls import Assignment, assign
from rcprobe.facts import Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import Batch, collate
from rcprobe.probing.capture import capture
from rcprobe.probing.captured import target_rows
from rcprobe.probing.gradients import gradient_products
from rcprobe.probing.hooks import capture_with_hooks
from rcprobe.runner import load_dataset
from rcprobe.training import train
from rcprobe_plugins.models.llama import Llama
from rcprobe_plugins.models.radd import Radd
from rcprobe_plugins.studies.fast_trainer import record

Row = tuple[str, float, str]  # what, ratio, goal


# --- models and queries ---


def llama(layers: int = 6, width: int = 384, vocabulary: int = 32_000) -> LoadedModel:
    """Six heads, two of them for keys and values."""
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
    torch.autograd.backward(loss(m, collate(m, queries)))  # nnsight slows Tensor.backward down
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


def products(m: LoadedModel, pairs: Sequence[QueryPair], controls: Assignment) -> Callable[[], object]:
    return lambda: gradient_products(m, pairs, controls, batch_size=256)


def plainly(m: LoadedModel, pairs: Sequence[QueryPair]) -> Callable[[], object]:
    queries = [query for pair in pairs for query in (pair.forward, pair.reverse)]
    return lambda: forward_and_backward(m, queries)


def of_other_facts(pairs: Sequence[QueryPair], count: int) -> Assignment:
    """Controls that ask no new question: other pairs' own reverse queries."""
    found = assign(pairs, count + 2)
    return Assignment(("other_fact",) * count, found.partner[:, 2:], 0, found.blocks)


# --- rows ---


def gradient_rows(repeats: int) -> Iterator[Row]:
    m = llama()
    pairs = pairs_of(m, 32, 32)
    plain, ours = plainly(m, pairs), products(m, pairs, assign(pairs, 0))
    name = "6-layer llama"
    yield f"{name}: gradient products ÷ forward and backward", ratio(ours, plain, repeats), "<= 0.85"
    slow = ratio(lambda: two_backwards_a_pair(m, pairs), ours, max(1, repeats // 3))
    yield f"{name}: two backwards a pair ÷ gradient products", slow, ">= 4"
    others = ratio(products(m, pairs, of_other_facts(pairs, 8)), plain, repeats)
    yield f"{name}: with 8 controls, all of other facts ÷ forward and backward", others, "<= 0.98"
    controls = assign(pairs, 8)
    yield (
        f"{name}: with the 8 default controls ÷ forward and backward",
        ratio(products(m, pairs, controls), plain, repeats),
        "<= 0.98",
    )
    read = {"gradients", "scores", "log_probs"}
    whole = ratio(lambda: observe(m, pairs, read=read, controls=0, batch_size=256), plain, repeats)
    yield f"{name}: products, scores, weights, probabilities ÷ forward and backward", whole, "<= 1.0"


def lora_rows(repeats: int) -> Iterator[Row]:
    from peft import LoraConfig, get_peft_model

    m = llama()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    m.model = get_peft_model(m.model, LoraConfig(r=8, target_modules=targets)).eval()
    with torch.no_grad():
        for name, parameter in m.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)  # at zero, the backward pass would spare the work under it
    pairs = pairs_of(m, 32, 32)
    plain, controls = plainly(m, pairs), assign(pairs, 0)
    both = ratio(products(m, pairs, controls), plain, repeats)
    yield "LoRA, rank 8: products of adapters and of the weights under them ÷ forward and backward", both, "reported"
    alone = ratio(lambda: gradient_products(m, pairs, controls, batch_size=256, dense=False), plain, repeats)
    yield "LoRA, rank 8: products of adapters alone ÷ forward and backward", alone, "<= 1.1"


def one_layer_rows(repeats: int) -> Iterator[Row]:
    m = radd()
    pairs = pairs_of(m, 234, 10)
    ours = products(m, pairs, assign(pairs, 0))
    yield "one layer: gradient products ÷ forward and backward", ratio(ours, plainly(m, pairs), repeats), "<= 1.1"
    slow = ratio(lambda: two_backwards_a_pair(m, pairs), ours, max(1, repeats // 3))
    yield "one layer: two backwards a pair ÷ gradient products", slow, ">= 6"
    for name, neighbour in (("opacus", with_opacus), ("dattri", with_dattri)):
        if importlib.util.find_spec(name) is None:
            print(f"one layer: {name} isn't installed (the extra bench)", flush=True)
            continue
        theirs = neighbour(m, pairs)
        yield f"one layer: {name} ÷ gradient products", ratio(theirs, ours, max(1, repeats // 3)), ">= 1"


def training_rows(repeats: int) -> Iterator[Row]:
    """Training: the plain loop beside eight seeds side by side, by step and seed."""
    facts, seeds = load_dataset("letters", {"length": 10}).facts, range(8)
    for encoding in ("rope", "absolute"):
        models = [load("radd", options={"encoding": encoding}, seed=seed) for seed in seeds]

        def plain(m: LoadedModel = models[0]) -> None:
            list(train(m, facts, TrainConfig(steps=320), 0))

        def together(models: list[LoadedModel] = models) -> None:
            record(models, facts, TrainConfig(steps=40), seeds)

        yield (
            f"one layer, {encoding}: plain training ÷ eight seeds side by side",
            ratio(plain, together, repeats),
            ">= 3",
        )


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


def memory_rows(repeats: int) -> Iterator[Row]:
    small, large = peak_of("pairs", 32), peak_of("pairs", 512)
    yield "peak memory, 512 pairs ÷ 32 pairs, batches of 32", large / small, "<= 1.1"
    ours, theirs = peak_of("scores", 1024), peak_of("attentions", 1024)
    yield "peak memory, scores ÷ output_attentions, 1024 tokens", ours / theirs, "<= 0.25"


def growth_rows(repeats: int) -> Iterator[Row]:
    """Exponents of CPU time, fitted on logarithms."""
    m = llama(layers=2, width=192, vocabulary=2000)
    lengths, counts = (32, 64, 128, 256, 512, 1024), (8, 16, 32, 64, 128)

    def seconds(count: int, length: int) -> float:
        pairs = pairs_of(m, count, length)
        run = products(m, pairs, assign(pairs, 0))
        run()
        return min(cpu_time(run) for _ in range(max(1, repeats // 4)))

    yield "growth of gradient products with length, exponent", slope(lengths, [seconds(4, n) for n in lengths]), ""
    yield "growth of gradient products with pairs, exponent", slope(counts, [seconds(n, 32) for n in counts]), ""


def real_rows(repeats: int) -> Iterator[Row]:
    """SmolLM2-135M, where `make weights` has put it: 64 pairs of 12 tokens, all that the signatures read."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import weights

    if not weights.there():
        print(f"SmolLM2: {weights.MISSING}", flush=True)
        return
    m = load(weights.SMOLLM2)
    pairs = pairs_of(m, 64, 12)
    read = {"scores", "log_probs", "gradients", "storage"}
    few = max(3, repeats // 3)
    alone = ratio(lambda: observe(m, pairs, read=read - {"storage"}, controls=0), plainly(m, pairs), few)
    yield "SmolLM2-135M: scores, probabilities, products ÷ forward and backward", alone, "<= 1.1"
    whole = ratio(lambda: observe(m, pairs, read=read), plainly(m, pairs), few)
    yield "the same with the 8 default controls, and storage ÷ forward and backward", whole, "<= 1.1"


def tuning_rows(repeats: int) -> Iterator[Row]:
    from fine_tuning import fine_tuning_rows

    yield from fine_tuning_rows(ratio, repeats)


def accelerator_rows(repeats: int) -> Iterator[Row]:
    """LLaDA-8B's shape with random bf16 weights, full attention, 256 pairs of 64 tokens."""
    if not torch.cuda.is_available():
        return
    name = torch.cuda.get_device_name()
    shape = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = LlamaConfig(vocab_size=126464, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False, **shape)
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    m = LoadedModel(model, Llama(), SimpleNamespace(pad_token_id=0), "bench")
    pairs = pairs_of(m, 256, 64)
    queries = [query for pair in pairs for query in (pair.forward, pair.reverse)]
    controls = assign(pairs, 0)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    works = {
        "ours": lambda: gradient_products(m, pairs, controls),
        "plain": lambda: [forward_and_backward(m, queries[i : i + 64]) for i in range(0, len(queries), 64)],
    }
    torch.cuda.reset_peak_memory_stats()
    works["ours"]()
    peak = torch.cuda.max_memory_allocated() / 2**30
    for _ in range(max(2, repeats // 4)):
        for which, work in works.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            times[which].append(time.perf_counter() - start)
    ours = statistics.median(times["ours"])
    yield f"{name}: 8B shape, products ÷ forward and backward", ours / statistics.median(times["plain"]), "<= 1.3"
    yield f"{name}: 8B shape, peak memory in GiB", peak, "<= 80"
    yield f"{name}: 8B shape, seconds for 256 pairs (floor of 918 TFLOP: {918 / ours:.0f} TFLOP/s)", ours, ""


# --- neighbours, on what they can do: the one-layer model ---


class Answerer(nn.Module):
    """The one-layer model as a function from ids to the logits at each prompt's row, without masks or wrappers."""

    def __init__(self, model: Any, row: int) -> None:
        super().__init__()
        self.model, self.row = model, row

    def forward(self, ids: Tensor) -> Tensor:
        x = self.model.encoding.embed(self.model.embed_tokens(ids))
        return self.model.decode(x, None, False)[0][:, self.row]


def both_ways(m: LoadedModel, pairs: Sequence[QueryPair]) -> tuple[Answerer, list[tuple[Tensor, Tensor]]]:
    batches = [collate(m, [getattr(pair, way) for pair in pairs]) for way in ("forward", "reverse")]
    row = int(batches[0].rows[0, 0])
    return Answerer(copy.deepcopy(m.model), row), [(batch.input_ids, batch.targets[:, 0]) for batch in batches]


def with_opacus(m: LoadedModel, pairs: Sequence[QueryPair]) -> Callable[[], object]:
    from opacus import GradSampleModule

    answerer, batches = both_ways(m, pairs)
    module = GradSampleModule(
        answerer.train(), loss_reduction="sum"
    )  # in eval mode it records nothing; no dropout here

    def run() -> list[Tensor]:
        grads = []
        for ids, targets in batches:
            module.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(module(ids), targets, reduction="sum"))
            grads.append([p.grad_sample.flatten(1) for p in module.parameters()])
        f, r = grads
        return [(a * b).sum(1) for x, y in ((f, r), (f, f), (r, r)) for a, b in zip(x, y, strict=True)]

    return run


def with_dattri(m: LoadedModel, pairs: Sequence[QueryPair]) -> Callable[[], object]:
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    answerer, batches = both_ways(m, pairs)

    def loss_of(parameters: Any, data: Any) -> Tensor:
        ids, target = data
        logits = torch.func.functional_call(answerer, parameters, (ids[None],))
        return nn.functional.cross_entropy(logits, target[None])

    task = AttributionTask(loss_func=loss_of, model=answerer, checkpoints=answerer.state_dict())
    attributor = TracInAttributor(task, torch.ones(1), normalized_grad=True)
    attributor.projector_kwargs = None  # no random projection: exact products
    loaders = [DataLoader(TensorDataset(*batch), batch_size=len(pairs)) for batch in batches]
    return lambda: attributor.attribute(*loaders)


# --- memory, in processes of their own ---


def peak_of(what: str, count: int) -> int:
    """Peak memory above what the loaded model takes."""
    command = [sys.executable, __file__, "--memory", what, str(count)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()[-1])


def peak(what: str, count: int) -> int:
    m = llama(layers=2 if what == "pairs" else 6, vocabulary=2000)
    if what == "pairs":
        pairs = pairs_of(m, count, 64)
        assignment = assign(pairs, 4)
        work: Callable[[], object] = lambda: gradient_products(m, pairs, assignment, batch_size=32)  # noqa: E731
    else:
        batch = collate(m, queries_of(m, 8, count))
        if what == "attentions":
            m.model.set_attn_implementation("eager")
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            work = torch.no_grad()(lambda: m.model(**inputs, output_attentions=True, use_cache=False).attentions)
        else:
            work = lambda: capture(m, batch)  # noqa: E731
    capture(m, collate(m, queries_of(m, 2, 8)))  # what is loaded on first use isn't the work's
    before, seen, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = work()
    done.set()
    watcher.join()
    del kept
    return max(seen) - before


def resident() -> int:
    """Bytes of memory in use; the system's own record of the peak also remembers what loading took."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- measuring ---


def cpu_time(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def ratio(one: Callable[[], object], other: Callable[[], object], repeats: int) -> float:
    """The median of one's CPU time over the other's, of runs taken in turn."""
    one(), other()
    found = []
    for k in range(repeats):
        first, second = (one, other) if k % 2 else (other, one)
        times = {run: cpu_time(run) for run in (first, second)}
        found.append(times[one] / times[other])
    return statistics.median(found)


def slope(x: Sequence[int], y: Sequence[float]) -> float:
    """The exponent k of y ∝ xᵏ, by least squares on logarithms."""
    xs, ys = [math.log(v) for v in x], [math.log(v) for v in y]
    return statistics.linear_regression(xs, ys).slope


def met(value: float, goal: str) -> bool | None:
    """Whether a goal like "<= 1.1" is met; None where none was set."""
    sign, _, bound = goal.partition(" ")
    if not bound:
        return None
    return value <= float(bound) if sign == "<=" else value >= float(bound)


def machine() -> str:
    """The processor, as the system names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor()}, one thread, torch {torch.__version__}, Python {platform.python_version()}"


ROWS = (
    gradient_rows,
    lora_rows,
    one_layer_rows,
    training_rows,
    score_rows,
    memory_rows,
    growth_rows,
    real_rows,
    tuning_rows,
    accelerator_rows,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the ratios as JSON")
    parser.add_argument("--only", help="rows of this name alone: gradient, lora, real, tuning, …")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    os.environ["TQDM_DISABLE"] = "1"
    if options.memory:
        print(peak(options.memory[0], int(options.memory[1])))
        return
    repeats = 3 if options.quick else 11
    kept = []
    print(machine())
    for rows in (r for r in ROWS if options.only in (None, r.__name__.removesuffix("_rows"))):
        for name, value, goal in rows(repeats if rows is not score_rows else 3 * repeats):
            ok = met(value, goal)
            kept.append({"name": name, "ratio": round(value, 3), "goal": goal, "ok": ok})
            print(f"{name:<88} {value:7.2f}   {goal:<9} {'missed' if ok is False else ''}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

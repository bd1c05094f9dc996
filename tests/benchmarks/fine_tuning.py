"""Fine-tuning beside the plain transformers loop, and what a probe costs in steps of it."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from rcprobe import Probe, TrainConfig, load, load_dataset
from rcprobe.loaded import LoadedModel
from rcprobe.training import train
from rcprobe.training.method import adapted

Row = tuple[str, float, str]
Ratio = Callable[[Callable[[], object], Callable[[], object], int], float]
FACTS = 24
STEPS = 4
CONFIG = TrainConfig(steps=STEPS, lr=1e-5, betas=(0.9, 0.99), batch_size=16, warmup=1, ema=0.0, rank=16, alpha=32)


def fine_tuning_rows(ratio: Ratio, repeats: int) -> Iterator[Row]:
    """SmolLM2-135M, where `make weights` has put it, on statements of 24 capitals, sixteen a batch."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import weights

    if not weights.there():
        print(f"SmolLM2: {weights.MISSING}", flush=True)
        return
    m = load(weights.SMOLLM2)
    facts = load_dataset("capitals", {"shuffled": True}).limited(FACTS)
    few = max(3, repeats // 3)
    for method in ("full", "lora"):
        config = replace(CONFIG, method=method)
        with adapted(m, config, 0, keep=False):
            value = ratio(lambda c=config: ours(m, facts, c), lambda c=config: plainly(m, facts, c), few)
            yield f"fine-tuning SmolLM2-135M, {method} ÷ the plain transformers loop", value, "<= 1.1"
    probe = Probe(m, facts)
    value = ratio(lambda: probe.measure(0), lambda: ours(m, facts, CONFIG), few)
    yield f"a probe of {FACTS} facts, all signatures, in steps of full fine-tuning", value * STEPS, ""


def ours(m: LoadedModel, facts, config: TrainConfig) -> None:
    for _ in train(m, facts.facts, config, 0):
        pass


def plainly(m: LoadedModel, facts, config: TrainConfig) -> None:
    """What transformers' documentation has one write: tokenise, pad, the model's own loss, clip, AdamW."""
    texts = [text for fact in facts.facts for text, _ in fact.lessons()]
    parameters = [p for p in m.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, config.lr, config.betas, weight_decay=0.0, fused=True)
    drawn = torch.Generator().manual_seed(0)
    m.tokenizer.pad_token = m.tokenizer.pad_token or m.tokenizer.eos_token
    m.model.train()
    for _ in range(config.steps):
        chosen = [texts[i] for i in torch.randint(len(texts), (config.batch_size,), generator=drawn)]
        batch = m.tokenizer(chosen, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        optimiser.zero_grad()
        m.model(**batch, labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.clip)
        optimiser.step()
    m.model.eval()

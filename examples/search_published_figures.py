"""Which way of training gives the figures that the paper prints for length 10?

$ .venv/bin/python examples/search_published_figures.py search.csv --encoding rope
$ .venv/bin/python examples/search_published_figures.py fresh.csv --recipe light-0.1 --seeds 200-207 --encoding alibi

trains a one-layer model in each of the ways below, and appends to a CSV how it answers along the way: one row for each
recipe, seed, step and direction. What the file holds already isn't run again. What came of it stands in
docs/one-layer-study.md.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import rcprobe
from rcprobe.training import objectives
from rcprobe_plugins.studies.fast_trainer import record

STEPS, EVERY = 3000, 250
LIGHT = (0.5, 0.3, 0.2, 0.1)  # how much a placeholder counts, where a letter counts 1

# options of the model, and what differs from the study's own recipe for length 10
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    **{f"light-{weight}": ({}, {"objective": f"light-{weight}"}) for weight in LIGHT},
    **{name: ({}, {"objective": name}) for name in ("lambda-dce", "k-dce", "uniform-mlm", "bert-mlm", "single-mask")},
    "completion": ({}, {"maskable": "completion"}),
    "letters alone": ({}, {"maskable": "entities"}),
    "lr 3e-3": ({}, {"lr": 3e-3}),
    "lr 3e-4": ({}, {"lr": 3e-4, "steps": 5000}),
    "batch 16": ({}, {"batch_size": 16}),
    "beta2 .999": ({}, {"betas": (0.9, 0.999)}),
    "decay .1": ({}, {"weight_decay": 0.1}),
    "no clipping": ({}, {"clip": 1e9}),
    "raw weights": ({}, {"ema": 0.0}),
    "width 32": ({"width": 32}, {}),
    "width 128": ({"width": 128}, {"steps": 5000}),
    "4 heads": ({"heads": 4}, {}),
}


def light(weight: float) -> objectives.Objective:
    """t-DCE in which a placeholder counts less than a letter."""

    def draw(m: rcprobe.LoadedModel, s: objectives.Statements, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shown, weights = objectives.t_dce(m, s, generator)
        zero = m.tokenizer.convert_tokens_to_ids("0")
        return shown, weights.where(s.ids != zero, weights * weight)

    return objectives.Objective(f"light-{weight}", "masked", draw, "this search")


def trained(
    recipe: str, encoding: str, length: int, seeds: Sequence[int], steps: int | None
) -> Iterator[dict[str, Any]]:
    """Train the seeds side by side; a row for each of them, each stop and direction."""
    options, changes = RECIPES[recipe]
    config = rcprobe.TrainConfig(
        **{"steps": STEPS, "probe_every": EVERY, **changes, **({"steps": steps} if steps else {})}
    )
    letters = rcprobe.load_dataset("letters", {"length": length})
    models = [rcprobe.load("radd", options={"encoding": encoding, **options}, seed=seed) for seed in seeds]
    recordings = record(models, letters.facts, config, seeds)
    m = models[0]
    pairs = rcprobe.encode(m, letters.facts)
    for seed, recording in zip(seeds, recordings, strict=True):
        for stop, weights in recording.stops[1:]:
            stop.check(seed)
            nn.utils.vector_to_parameters(torch.from_numpy(weights), m.model.parameters())
            for direction in ("forward", "reverse"):
                queries = [getattr(pair, direction) for pair in pairs]
                row = {"recipe": recipe, "encoding": encoding, "length": length, "seed": seed, "step": stop.step}
                yield {**row, "direction": direction, **answered(m, queries)}


def answered(m: rcprobe.LoadedModel, queries: Sequence[rcprobe.Query]) -> dict[str, float]:
    """The share of right answers over the full vocabulary and among letters, and P(right letter | a letter), in %."""
    rows, found = torch.tensor([query.rows[0] for query in queries]), []
    with torch.no_grad():
        for part, at in zip(torch.tensor([q.input_ids for q in queries]).split(1024), rows.split(1024), strict=True):
            logits = m.adapter.logits(m.model(input_ids=part).logits, m.mask_id)
            found.append(logits[torch.arange(len(part)), at].double())
    logits = torch.cat(found)
    target = torch.tensor([query.target_ids[0] for query in queries])
    zero = m.tokenizer.convert_tokens_to_ids("0")
    letters = torch.tensor([token.isalpha() for token in m.tokenizer.convert_ids_to_tokens(range(m.vocabulary))])
    p = logits.softmax(dim=-1)
    right = p.gather(1, target[:, None])[:, 0] / (1 - p[:, zero])
    among = logits.masked_fill(~letters, -torch.inf).argmax(dim=-1) == target
    shares = {"full": logits.argmax(dim=-1) == target, "letters": among, "p": right}
    return {name: 100 * float(values.double().mean()) for name, values in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoding", default="rope")
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="this alone; repeatable")
    parser.add_argument("--seeds", default="900-902", help="one, or first-last")
    parser.add_argument("--steps", type=int, help="instead of the recipe's own")
    asked = parser.parse_args()
    first, _, last = asked.seeds.partition("-")
    torch.set_num_threads(1)
    for weight in LIGHT:
        objectives.OBJECTIVES[f"light-{weight}"] = light(weight)  # type: ignore[index]
    keys = ["recipe", "encoding", "length", "seed", "step", "direction"]
    for recipe in asked.recipe or RECIPES:
        there = pd.read_csv(asked.out) if asked.out.exists() else pd.DataFrame(columns=keys)
        steps = asked.steps or RECIPES[recipe][1].get("steps", STEPS)
        same = (there.recipe == recipe) & (there.encoding == asked.encoding) & (there.length == asked.length)
        held = set(there.seed[same & (there.step >= steps)])
        seeds = [seed for seed in range(int(first), int(last or first) + 1) if seed not in held]
        if seeds:
            rows = pd.DataFrame(trained(recipe, asked.encoding, asked.length, seeds, asked.steps)).round(3)
            new = ~pd.MultiIndex.from_frame(rows[keys]).isin(pd.MultiIndex.from_frame(there[keys]))
            rows[new].to_csv(asked.out, mode="a", header=not asked.out.exists(), index=False)


if __name__ == "__main__":
    main()

"""Probe LLaDA-8B on one card: which facts it knows both ways, and what weights, attention and gradients say.

    python examples/llada_8b_one_card.py GSAI-ML/LLaDA-8B-Base --out runs/llada
    python examples/llada_8b_one_card.py --tiny

Its bf16 weights take 15 GiB of a card; what else fits decides how many prompts go through at once. ``--tiny`` writes
a random checkpoint of the same layout and reads that, on any machine: it shows the way, and knows nothing.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import rcprobe

CAPITALS = {
    "Paris": "France",
    "Rome": "Italy",
    "Tokyo": "Japan",
    "Madrid": "Spain",
    "Cairo": "Egypt",
    "Lima": "Peru",
    "Oslo": "Norway",
    "Vienna": "Austria",
    "Athens": "Greece",
    "Berlin": "Germany",
}
FACTS = [
    rcprobe.Fact(city, land, "The city of {a} is the capital of {b} .", "The land of {b} has the capital {a} .")
    for city, land in CAPITALS.items()
]
SIZES = {"d_model": 32, "mlp_hidden_size": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4}


def tiny_checkpoint(folder: Path) -> Path:
    """Random weights as LLaDA names them, in one shard, with a tokenizer of whole words."""
    words = {word for fact in FACTS for way in ("forward", "reverse") for word in fact.statement(way)[0].split()}
    tokens = {token: i for i, token in enumerate(["[PAD]", *sorted(words), "[MASK]"])}
    words_alone = Tokenizer(models.WordLevel(tokens))
    words_alone.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=words_alone, pad_token="[PAD]", mask_token="[MASK]", model_input_names=inputs
    ).save_pretrained(folder)
    width, inner, at = SIZES["d_model"], SIZES["mlp_hidden_size"], "model.transformer."
    shapes = {f"{at}{name}.weight": (len(tokens), width) for name in ("wte", "ff_out")} | {f"{at}ln_f.weight": (width,)}
    for n in range(SIZES["n_layers"]):
        block = f"{at}blocks.{n}."
        shapes |= {f"{block}{name}.weight": (width,) for name in ("attn_norm", "ff_norm")}
        shapes |= {f"{block}{name}.weight": (width, width) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        shapes |= {f"{block}{name}.weight": (inner, width) for name in ("ff_proj", "up_proj")}
        shapes |= {f"{block}ff_out.weight": (width, inner)}
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) * (0.3 if len(shape) > 1 else 1.0) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "embedding_size": len(tokens),
        "mask_token_id": tokens["[MASK]"],
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_sequence_length": 64,
        **SIZES,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", nargs="?", default="GSAI-ML/LLaDA-8B-Base", help="a folder or a hub id")
    parser.add_argument("--facts", help="a CSV file with the columns a, b, forward, reverse; else ten capitals")
    parser.add_argument("--out", help="the folder to keep the run in, or to go on in")
    parser.add_argument("--tiny", action="store_true", help="a random checkpoint of the same layout, on the CPU")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.tiny:
            m = rcprobe.load(tiny_checkpoint(Path(folder)))
        else:
            # the weights go straight to the card, and never stand in the machine's memory whole
            m = rcprobe.load(asked.model, dtype="bfloat16", device_map="cuda")
    data = rcprobe.load_dataset(asked.facts) if asked.facts else FACTS
    report = rcprobe.run(m, data, out=asked.out)
    if m.device.type == "cuda":
        print(f"{torch.cuda.max_memory_allocated() / 2**30:.0f} GiB at the peak")
    for pairing, read in report.accuracy.items():
        for name, ((forward, reverse),) in read.items():
            print(f"{pairing}, {name}: right forward {forward:.0%}, reverse {reverse:.0%}")
    for name, signature in report.signatures.items():
        print(f"{name}: {signature.verdict}. {signature.why}")


if __name__ == "__main__":
    main()

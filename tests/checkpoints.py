"""Small checkpoints in the layouts that the released ones have: sharded safetensors, config.json and tokenizer."""

import json
import re

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = (
    "Mary Lee Pfeiffer is the mother of Tom Cruise.",
    "Tom Cruise is the son of Mary Lee Pfeiffer.",
    "Uriah Hawthorne composed Abyssal Melodies, and Abyssal Melodies was composed by Uriah Hawthorne.",
)
SIZES = {"width": 16, "inner": 32, "layers": 2, "heads": 4, "key_heads": 2}
END, BOS, MASK = "<|endoftext|>", "<|beginoftext|>", "<|mask|>"


def byte_level(special=(END,)):
    """A byte-level BPE, as GPT-2's, Llama 3's, Qwen's and LLaDA's are."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=list(special))
    made.train_from_iterator(WORDS, trainer)
    return made


def word_piece():
    """BERT's kind: lower-cased word pieces between [CLS] and [SEP]."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(WORDS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    ends = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[MASK]", **names)


def fast(made, **special):
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **{"pad_token": END, **special}
    )


def random_weights(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.3 + (1.0 if len(shape) == 1 and "bias" not in name else 0.0)
        for name, shape in shapes.items()
    }


def write(folder, config, weights, tokenizer=None, shards=2):
    """A folder as the hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names, index = sorted(weights), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        save_file({name: weights[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


# --- LLaDA, in its own names ---


def llada_config(**changes):
    return {
        "activation_type": "silu",
        "alibi": False,
        "architectures": ["LLaDAModelLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"},
        "block_type": "llama",
        "d_model": SIZES["width"],
        "embedding_size": 336,
        "eos_token_id": 0,
        "include_bias": False,
        "include_qkv_bias": False,
        "layer_norm_type": "rms",
        "mask_token_id": 335,
        "max_sequence_length": 64,
        "mlp_hidden_size": SIZES["inner"],
        "model_type": "llada",
        "n_heads": SIZES["heads"],
        "n_kv_heads": SIZES["key_heads"],
        "n_layers": SIZES["layers"],
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_theta": 500000.0,
        "vocab_size": 336,
        "weight_tying": False,
        **changes,
    }


def llada_weights():
    width, inner, narrow = SIZES["width"], SIZES["inner"], SIZES["width"] * SIZES["key_heads"] // SIZES["heads"]
    at = "model.transformer."
    shapes = {at + "wte.weight": (336, width), at + "ln_f.weight": (width,), at + "ff_out.weight": (336, width)}
    for n in range(SIZES["layers"]):
        block = {
            "attn_norm": (width,),
            "ff_norm": (width,),
            "q_proj": (width, width),
            "k_proj": (narrow, width),
            "v_proj": (narrow, width),
            "attn_out": (width, width),
            "ff_proj": (inner, width),
            "up_proj": (inner, width),
            "ff_out": (width, inner),
        }
        shapes |= {f"{at}blocks.{n}.{name}.weight": shape for name, shape in block.items()}
    return random_weights(shapes)


def llada(folder, weights=None, shards=2, **changes):
    return write(folder, llada_config(**changes), weights or llada_weights(), fast(byte_level(), eos_token=END), shards)


# --- Dream ---


def dream_config(**changes):
    return {
        "architectures": ["DreamModel"],
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "mask_token_id": 332,
        "hidden_act": "silu",
        "hidden_size": SIZES["width"],
        "intermediate_size": SIZES["inner"],
        "max_position_embeddings": 64,
        "max_window_layers": 2,
        "model_type": "Dream",
        "num_attention_heads": SIZES["heads"],
        "num_hidden_layers": SIZES["layers"],
        "num_key_value_heads": SIZES["key_heads"],
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.46.2",
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 336,
        **changes,
    }


def decoder_shapes(vocabulary=336, bias=True):
    width, inner, narrow = SIZES["width"], SIZES["inner"], SIZES["width"] * SIZES["key_heads"] // SIZES["heads"]
    shapes = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocabulary, width),
    }
    for n in range(SIZES["layers"]):
        at = f"model.layers.{n}."
        for name, out in (("q", width), ("k", narrow), ("v", narrow)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (out, width)
            if bias:
                shapes[f"{at}self_attn.{name}_proj.bias"] = (out,)
        shapes[at + "self_attn.o_proj.weight"] = (width, width)
        shapes |= {f"{at}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[at + "mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{at}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return shapes


def dream_tokenizer(folder):
    """Dream's files: vocabulary and merges, tokens beside them, and a class that isn't in transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    made = byte_level(())
    made.model.save(str(folder))
    base = made.get_vocab_size()
    special = {base + i: name for i, name in enumerate((END, BOS, MASK))}
    added = {str(i): {"content": name, "special": True} for i, name in special.items()}
    added = {i: {**token, "lstrip": False, "rstrip": False, "normalized": False} for i, token in added.items()}
    config = {
        "added_tokens_decoder": added,
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": BOS,
        "eos_token": END,
        "mask_token": MASK,
        "pad_token": END,
        "tokenizer_class": "DreamTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def dream(folder, **changes):
    write(folder, dream_config(**changes), random_weights(decoder_shapes()))
    dream_tokenizer(folder)
    return folder


# --- the same models once more, without transformers ---


def reference_logits(weights, ids, *, theta, eps):
    """Logits of a decoder with full attention, position by position in float64, from weights in stock names."""
    s = {name: weight.double() for name, weight in weights.items()}
    width = SIZES["width"] // SIZES["heads"]
    half = width // 2
    angle = theta ** (-2 * torch.arange(half, dtype=torch.float64) / width)
    turns = torch.arange(len(ids), dtype=torch.float64)[:, None] * angle
    cos, sin = turns.cos(), turns.sin()

    def rms(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * s[name]

    def linear(x, name):
        return x @ s[name + ".weight"].T + s.get(name + ".bias", 0.0)

    def turned(x):
        a, b = x[:, :half], x[:, half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    x = s["model.embed_tokens.weight"][list(ids)]
    for n in range(SIZES["layers"]):
        at = f"model.layers.{n}."
        h = rms(x, at + "input_layernorm.weight")
        q, k, v = (linear(h, f"{at}self_attn.{name}_proj") for name in "qkv")
        heads = []
        for head in range(SIZES["heads"]):
            shared = head // (SIZES["heads"] // SIZES["key_heads"])
            mine, theirs = (slice(i * width, (i + 1) * width) for i in (head, shared))
            scores = turned(q[:, mine]) @ turned(k[:, theirs]).T / width**0.5
            heads.append(scores.softmax(-1) @ v[:, theirs])
        x = x + linear(torch.cat(heads, -1), at + "self_attn.o_proj")
        h = rms(x, at + "post_attention_layernorm.weight")
        gate = linear(h, at + "mlp.gate_proj")
        x = x + linear(gate * gate.sigmoid() * linear(h, at + "mlp.up_proj"), at + "mlp.down_proj")
    return linear(rms(x, "model.norm.weight"), "lm_head")


LLADA_NAMES = (
    (r"^model\.transformer\.wte", "model.embed_tokens"),
    (r"^model\.transformer\.ln_f", "model.norm"),
    (r"^model\.transformer\.ff_out", "lm_head"),
    (r"^model\.transformer\.blocks", "model.layers"),
    (r"attn_norm", "input_layernorm"),
    (r"ff_norm", "post_attention_layernorm"),
    (r"([qkv]_proj)", r"self_attn.\1"),
    (r"attn_out", "self_attn.o_proj"),
    (r"ff_proj", "mlp.gate_proj"),
    (r"up_proj", "mlp.up_proj"),
    (r"(\d)\.ff_out", r"\1.mlp.down_proj"),
)


def stock_names(weights):
    """LLaDA's weights under a Llama's names."""
    out = {}
    for name, weight in weights.items():
        new = name
        for old, replacement in LLADA_NAMES:
            new = re.sub(old, replacement, new)
        out[new] = weight
    return out

"""Tiny random models of many families, each with weights in which a mistake would show."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rcprobe.adapter import Adapter
from rcprobe.facts import Fact
from rcprobe.loaded import LoadedModel
from rcprobe_plugins.models.radd import RaddConfig, RaddForMaskedLM

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,"
TOKENS = ("[PAD]", *LETTERS, "[MASK]")
PAD, MASK = 0, len(TOKENS) - 1
WIDTH, HEADS, KEY_HEADS, DEPTH, INNER, VOCABULARY = 32, 4, 2, 2, 48, len(TOKENS)

LONG = ("{a} begat {b}.", "{b} is of {a}.")
# three facts of one stratum, so that controls find partners, and one of other lengths, so that batches are padded
FACTS = (
    Fact("ab", "CDE", *LONG),
    Fact("fg", "HIJ", *LONG),
    Fact("p", "QR", "{a}, {b}", "of {b} {a}, it is"),
    Fact("kl", "MNO", *LONG),
)

# why a parameter has no rule
DIRECT = "its module's code uses the tensor itself, by no module's call"
CONVOLUTION = "a convolution has no rule"
ELSEWHERE = "the ids that are looked up aren't the module's first argument"
SHARED = "computed once for all prompts: a prompt's share of the gradient can't be told at the module"
UNUSED = "the model holds it and never uses it: its gradient is zero"


@dataclass(frozen=True)
class Family:
    """How to build a family.

    ``interface`` is false where attention isn't called through transformers' interface. ``per_query`` maps patterns of
    the parameters that take a backward pass a query to the reason, ``untied_per_query`` those that do so only where
    the embeddings are untied: a parameter that stops being covered, or starts to be, fails the test.
    """

    model: Any
    config: Any
    options: Mapping[str, Any]
    objective: str = "causal"
    attention: str = ""
    ties: tuple[bool, ...] = (False, True)
    interface: bool = True
    implementation: str = "sdpa"
    per_query: Mapping[str, str] = field(default_factory=dict)
    untied_per_query: Mapping[str, str] = field(default_factory=dict)
    mask_in_softmax: bool = True

    @property
    def adapter(self) -> type[Adapter]:
        """An adapter that declares this family's behaviour, all parameters in one group."""
        causal = self.objective == "causal"
        return type(
            "Generic",
            (Adapter,),
            {
                "name": self.model.__name__,
                "objective": self.objective,
                "attention": self.attention or ("causal" if causal else "full"),
                "shift": int(causal),
                "architecture": self.model.__name__,
                "groups": {r".": "all"},
                "mask_in_softmax": self.mask_in_softmax,
            },
        )


LLAMA_LIKE = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "max_position_embeddings": 64,
}
BERT_LIKE = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
}
GEMMA_LIKE = {**LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
LAYERS = ["sliding_attention", "full_attention"]

FAMILIES: dict[str, Family] = {
    "llama": Family(transformers.LlamaForCausalLM, transformers.LlamaConfig, LLAMA_LIKE),
    "qwen2": Family(transformers.Qwen2ForCausalLM, transformers.Qwen2Config, LLAMA_LIKE),
    "qwen3": Family(transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {**LLAMA_LIKE, "head_dim": 8}),
    "qwen3.5": Family(
        transformers.Qwen3_5ForCausalLM,
        transformers.Qwen3_5TextConfig,
        {
            **LLAMA_LIKE,
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        attention="hybrid",
        per_query={
            r"linear_attn\.(dt_bias|A_log)$": DIRECT,
            r"linear_attn\.conv1d\.weight$": CONVOLUTION,
            r"linear_attn\.norm\.weight$": "its rows are positions and heads together",
        },
    ),
    "gemma2": Family(
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config,
        {**GEMMA_LIKE, "layer_types": LAYERS, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        implementation="eager",  # transformers: sdpa can't soft-cap
    ),
    "gemma3": Family(
        transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig, {**GEMMA_LIKE, "layer_types": LAYERS}
    ),
    "gpt2": Family(
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config,
        {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 64},
    ),
    "gpt-neox": Family(transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig, BERT_LIKE),
    "opt": Family(
        transformers.OPTForCausalLM,
        transformers.OPTConfig,
        {
            "hidden_size": WIDTH,
            "ffn_dim": INNER,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": WIDTH,
        },
        per_query={r"embed_positions\.weight$": ELSEWHERE},
    ),
    "bloom": Family(
        transformers.BloomForCausalLM,
        transformers.BloomConfig,
        {"hidden_size": WIDTH, "n_layer": DEPTH, "n_head": HEADS},
        interface=False,
    ),
    "falcon": Family(
        transformers.FalconForCausalLM,
        transformers.FalconConfig,
        {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "ffn_hidden_size": INNER},
        interface=False,
    ),
    "falcon alibi": Family(
        transformers.FalconForCausalLM,
        transformers.FalconConfig,
        {
            "hidden_size": WIDTH,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": HEADS,
            "ffn_hidden_size": INNER,
            "alibi": True,
            "new_decoder_architecture": True,
            "num_kv_heads": KEY_HEADS,
        },
        interface=False,
        ties=(True,),
    ),
    "mpt": Family(
        transformers.MptForCausalLM,
        transformers.MptConfig,
        {"d_model": WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "max_seq_len": 64},
        interface=False,
    ),
    "bert": Family(
        transformers.BertForMaskedLM,
        transformers.BertConfig,
        BERT_LIKE,
        objective="masked",
        untied_per_query={r"^cls\.predictions\.bias$": UNUSED},
    ),
    "distilbert": Family(
        transformers.DistilBertForMaskedLM,
        transformers.DistilBertConfig,
        {"dim": WIDTH, "hidden_dim": INNER, "n_layers": DEPTH, "n_heads": HEADS, "max_position_embeddings": 64},
        objective="masked",
    ),
    "modernbert": Family(
        transformers.ModernBertForMaskedLM,
        transformers.ModernBertConfig,
        {**BERT_LIKE, "layer_types": LAYERS, "local_attention": 8},
        objective="masked",
    ),
    "deberta-v2": Family(
        transformers.DebertaV2ForMaskedLM,
        transformers.DebertaV2Config,
        {**BERT_LIKE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
        objective="masked",
        interface=False,
        per_query={r"pos_(key|query)_proj\.(weight|bias)$|rel_embeddings\.weight$": SHARED},
        untied_per_query={r"^cls\.predictions\.bias$": UNUSED},
    ),
    "deberta-v2 new head": Family(
        transformers.DebertaV2ForMaskedLM,
        transformers.DebertaV2Config,
        {**BERT_LIKE, "legacy": False, "type_vocab_size": 2},
        objective="masked",
        interface=False,
        ties=(True,),
        per_query={r"word_embeddings\.weight$|lm_head\.bias$": DIRECT},
    ),
    "mixtral": Family(
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig,
        {**LLAMA_LIKE, "num_local_experts": 3, "num_experts_per_tok": 2},
        per_query={r"mlp\.experts\.(gate_up|down)_proj$|mlp\.gate\.weight$": DIRECT},
    ),
    "radd": Family(
        RaddForMaskedLM,
        RaddConfig,
        {"width": WIDTH, "heads": HEADS, "depth": DEPTH},
        objective="masked",
        ties=(False,),
        mask_in_softmax=False,
    ),
}

CASES = [(name, tied) for name, family in FAMILIES.items() for tied in family.ties]
IDS = [f"{name}-{'tied' if tied else 'untied'}" for name, tied in CASES]


@contextmanager
def in_double() -> Iterator[None]:
    """Inside, a float64 model computes in float64 throughout: norms, softmax and angles that ask for float32 too."""
    single = torch.float32
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double  # type: ignore[misc]
    try:
        yield
    finally:
        torch.float32 = single  # type: ignore[misc]
        del torch.Tensor.float  # the base class's shows again


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; padding and mask have ids of their own."""
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def build(name: str, tied: bool, dtype: torch.dtype = torch.float64) -> LoadedModel:
    """The family's tiny model, nothing in it zero or one."""
    family = FAMILIES[name]
    special = {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None}
    config = family.config(vocab_size=VOCABULARY, tie_word_embeddings=tied, **special, **family.options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        implementation = family.implementation if family.interface else "eager"  # those can't change it later
        model = family.model._from_config(config, attn_implementation=implementation).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.15 * torch.randn_like(parameter)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    return LoadedModel(model.to(dtype).eval(), family.adapter(), tokenizer(), name)

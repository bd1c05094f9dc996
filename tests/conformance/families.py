"""Tiny random models of many families, each with weights in which a mistake would show.

``PER_QUERY_PARAMETERS`` of a family names, by regular expression, the parameters that no rule factors and why:
a parameter that stops being covered, or starts to be, fails the test.
"""

from collections.abc import Mapping
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
# three facts of one stratum, so that controls find partners, and others of unlike length
FACTS = (
    Fact("ab", "CDE", *LONG),
    Fact("fg", "HIJ", *LONG),
    Fact("kl", "MNO", *LONG),
    Fact("p", "QR", "{a}, {b}", "of {b} {a}, it is"),
    Fact("stu", "V", *LONG),
)

PARAMETER = "a parameter used without a call of its module's own rule: "
EXPERTS = PARAMETER + "experts and router are tensors, not modules"
RECURRENCE = PARAMETER + "decay and time step of the recurrence"
CONVOLUTION = "a convolution: no rule"


@dataclass(frozen=True)
class Family:
    """How to build a family.

    ``scores`` is false where attention isn't called through transformers' interface; ``softmax`` is the dtype that
    eager attention takes its softmax in whatever the model's is. ``per_query`` maps patterns of parameters that
    fall back to a backward pass a query to the reason.
    """

    model: Any
    config: Any
    options: Mapping[str, Any]
    objective: str = "causal"
    attention: str = ""
    ties: tuple[bool, ...] = (False, True)
    scores: bool = True
    softmax: torch.dtype | None = torch.float32
    implementation: str = "sdpa"
    per_query: Mapping[str, str] = field(default_factory=dict)
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
        per_query={r"linear_attn\.(dt_bias|A_log)$": RECURRENCE, r"linear_attn\.conv1d\.weight$": CONVOLUTION},
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
        softmax=None,
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
    ),
    "bloom": Family(
        transformers.BloomForCausalLM,
        transformers.BloomConfig,
        {"hidden_size": WIDTH, "n_layer": DEPTH, "n_head": HEADS},
        scores=False,
    ),
    "mpt": Family(
        transformers.MptForCausalLM,
        transformers.MptConfig,
        {"d_model": WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "max_seq_len": 64},
        scores=False,
    ),
    "bert": Family(transformers.BertForMaskedLM, transformers.BertConfig, BERT_LIKE, objective="masked", softmax=None),
    "distilbert": Family(
        transformers.DistilBertForMaskedLM,
        transformers.DistilBertConfig,
        {"dim": WIDTH, "hidden_dim": INNER, "n_layers": DEPTH, "n_heads": HEADS, "max_position_embeddings": 64},
        objective="masked",
        softmax=None,
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
        scores=False,
    ),
    "deberta-v2 new head": Family(
        transformers.DebertaV2ForMaskedLM,
        transformers.DebertaV2Config,
        {**BERT_LIKE, "legacy": False, "type_vocab_size": 2},
        objective="masked",
        scores=False,
        ties=(True,),
    ),
    "mixtral": Family(
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig,
        {**LLAMA_LIKE, "num_local_experts": 3, "num_experts_per_tok": 2},
        per_query={r"mlp\.experts\.(gate_up|down)_proj$|mlp\.gate\.weight$": EXPERTS},
    ),
    "radd": Family(
        RaddForMaskedLM,
        RaddConfig,
        {"width": WIDTH, "heads": HEADS, "depth": DEPTH},
        objective="masked",
        ties=(False,),
        softmax=None,
        mask_in_softmax=False,
    ),
}

CASES = [(name, tied) for name, family in FAMILIES.items() for tied in family.ties]
IDS = [f"{name}-{'tied' if tied else 'untied'}" for name, tied in CASES]


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
        model = family.model(config).double()
        model.set_attn_implementation(family.implementation if family.scores else "eager")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.15 * torch.randn_like(parameter)
    return LoadedModel(model.to(dtype).eval(), family.adapter(), tokenizer(), name)

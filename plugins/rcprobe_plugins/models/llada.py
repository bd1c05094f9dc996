"""LLaDA (8B Base and Instruct, 1.5): a Llama with full attention, under other names."""

from collections.abc import Mapping
from typing import Any, ClassVar

from rcprobe.adapter import Adapter
from rcprobe.errors import AdapterError
from rcprobe_plugins.models.stock import DECODER_CIRCUIT, DECODER_GROUPS, DECODER_TARGETS

MASK = 126336
# what the original code can do and a Llama can't: option → the value at which both are the same
PLAIN = {
    "activation_type": ("silu", "swiglu"),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "block_type": ("llama",),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "scale_logits": (False,),
}


class Llada(Adapter):
    """LLaDA: masked, full attention, unshifted; reads the released layout and what was saved after loading it."""

    name = "llada"
    objective, attention, shift = "masked", "full", 0
    architecture = "LlamaForCausalLM"
    mask_token = MASK  # its tokenizer declares none
    keys: ClassVar[Mapping[str, str]] = {
        r"^model\.transformer\.wte\.": "model.embed_tokens.",
        r"^model\.transformer\.ln_f\.": "model.norm.",
        r"^model\.transformer\.ff_out\.": "lm_head.",
        r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
        r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
        r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
        r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
        r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
        r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
        r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
        r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
        r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
    }
    groups = DECODER_GROUPS
    ov_circuit = DECODER_CIRCUIT
    lora_targets = DECODER_TARGETS
    tiny_config: ClassVar[Mapping[str, Any]] = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "embedding_size": 48,
        "d_model": 16,
        "mlp_hidden_size": 24,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_sequence_length": 64,
        "rope_theta": 5e5,
        "mask_token_id": 47,
        "pad_token_id": 0,
    }

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """The released layout (LLaDA's own code, dense), or a bidirectional Llama with LLaDA's mask."""
        released = "LLaDAModelLM" in (config.get("architectures") or ()) and "d_model" in config
        return released or (
            super().matches(config) and config.get("is_causal") is False and config.get("mask_token_id") == MASK
        )

    @classmethod
    def resolve(cls, raw: Mapping[str, Any]) -> type["Llada"]:
        """This family, with the mask that the configuration names. Raises ``AdapterError`` for what no Llama does."""
        for option, plain in PLAIN.items():
            if "d_model" in raw and raw.get(option, plain[0]) not in plain:
                raise AdapterError(
                    f"{cls.name}: {option} is {raw[option]!r}, which a Llama can't do; it does {plain[0]!r}"
                )
        mask = raw.get("mask_token_id")
        return cls if mask is None else cls.variant({"mask_token": mask})

    @classmethod
    def config(cls, raw: Mapping[str, Any]) -> Any:
        """A Llama's configuration from either layout."""
        if "d_model" not in raw:
            return super().config(raw)
        from transformers import LlamaConfig

        heads = raw["n_heads"]
        return LlamaConfig(
            vocab_size=raw.get("embedding_size") or raw["vocab_size"],
            hidden_size=raw["d_model"],
            intermediate_size=raw["mlp_hidden_size"],
            num_hidden_layers=raw["n_layers"],
            num_attention_heads=heads,
            num_key_value_heads=raw.get("n_kv_heads") or heads,
            rms_norm_eps=raw["rms_norm_eps"],
            max_position_embeddings=raw["max_sequence_length"],
            rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]},
            tie_word_embeddings=raw.get("weight_tying", False),
            bos_token_id=None,
            eos_token_id=raw.get("eos_token_id"),
            pad_token_id=raw.get("pad_token_id"),
            mask_token_id=raw.get("mask_token_id", MASK),
            is_causal=False,
        )

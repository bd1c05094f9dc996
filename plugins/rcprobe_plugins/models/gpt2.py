"""GPT-2 of any size."""

from collections.abc import Mapping
from typing import Any, ClassVar

from rcprobe.adapter import Adapter, OvCircuit
from rcprobe_plugins.models.stock import Groups, stock_causal


class Gpt2(Adapter):
    """GPT-2: causal, token i predicted at position i − 1."""

    name = "gpt2"
    objective, attention, shift = "causal", "causal", 1
    architecture = "GPT2LMHeadModel"
    groups: ClassVar[Groups] = {
        r"\.wte\.weight$": "embedding",
        r"\.wpe\.weight$": "position",
        r"\.attn\.c_attn\.(weight|bias)$": ("query", "key", "value"),
        r"\.attn\.c_proj\.(weight|bias)$": "output",
        r"\.mlp\.c_(fc|proj)\.(weight|bias)$": "mlp",
        r"\.ln_(1|2|f)\.(weight|bias)$": "norm",
        r"^lm_head\.weight$": "head",
    }
    ov_circuit = OvCircuit(
        embedding="transformer.wte",
        layers="transformer.h",
        norm="ln_1",
        value="attn.c_attn",
        value_part=(2, 3),
        output="attn.c_proj",
        final_norm="transformer.ln_f",
        head="lm_head",
    )
    unused = (r"\.attn\.(masked_)?bias$",)  # the causal mask, as older versions saved it
    tiny_config: ClassVar[Mapping[str, Any]] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 48,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    lora_targets = (r"\.attn\.c_(attn|proj)$", r"\.mlp\.c_(fc|proj)$")

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """A stock causal GPT-2."""
        return super().matches(config) and stock_causal(config)

"""Llama of any size, as transformers runs it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rcprobe.adapter import Adapter, Options, OvCircuit
from rcprobe.errors import OptionError
from rcprobe_plugins.datasets.characters import character_tokenizer, vocabulary
from rcprobe_plugins.datasets.letters import ALPHABET
from rcprobe_plugins.models.blocks import fill


class Llama(Adapter):
    """Llama: causal, token i predicted at position i − 1."""

    name = "llama"
    objective, attention, shift = "causal", "causal", 1
    architecture = "LlamaForCausalLM"
    groups: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        r"^model\.embed_tokens\.weight$": "embedding",
        r"^model\.layers\.\d+\.self_attn\.q_proj\.(weight|bias)$": "query",
        r"^model\.layers\.\d+\.self_attn\.k_proj\.(weight|bias)$": "key",
        r"^model\.layers\.\d+\.self_attn\.v_proj\.(weight|bias)$": "value",
        r"^model\.layers\.\d+\.self_attn\.o_proj\.(weight|bias)$": "output",
        r"^model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.(weight|bias)$": "mlp",
        r"^model\.(layers\.\d+\.(input|post_attention)_layernorm|norm)\.weight$": "norm",
        r"^lm_head\.weight$": "head",
    }
    ov_circuit = OvCircuit(
        embedding="model.embed_tokens",
        layers="model.layers",
        norm="input_layernorm",
        value="self_attn.v_proj",
        output="self_attn.o_proj",
        final_norm="model.norm",
        head="lm_head",
    )
    defaults: ClassVar[Options] = {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "alphabet": ALPHABET,
    }
    tiny: ClassVar[Options] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """A stock causal Llama: LLaDA as Llama says ``is_causal: false``, and others bring their own code."""
        return (
            config.get("model_type") == "llama"
            and super().matches(config)
            and config.get("is_causal") is not False
            and not config.get("auto_map")
        )

    @classmethod
    def build(cls, options: Options) -> nn.Module:
        """A Llama with random weights; heads that the options leave out follow ``num_attention_heads``."""
        sizes = cls._filled(options)
        heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
        if width % (2 * heads) or heads % sizes["num_key_value_heads"]:
            raise OptionError(
                f"llama: {heads} heads and {sizes['num_key_value_heads']} key/value heads don't fit "
                f"hidden_size {width}: the head width must be even, and key/value heads must divide the heads"
            )
        tokens = len(vocabulary(sizes.pop("alphabet"), mask=False))
        # a configuration of its own: two models on one object would share their attention implementation
        config = LlamaConfig(vocab_size=tokens, bos_token_id=None, eos_token_id=None, **sizes)
        model: nn.Module = LlamaForCausalLM(config)
        return model

    @classmethod
    def default_tokenizer(cls, options: Options) -> Any:
        """One token a character of the option ``alphabet``."""
        return character_tokenizer(cls._filled(options)["alphabet"], mask=False)

    @classmethod
    def _filled(cls, options: Options) -> dict[str, Any]:
        heads = options.get("num_attention_heads", cls.defaults["num_attention_heads"])
        return fill(cls.name, options, {**cls.defaults, "num_key_value_heads": heads})

"""Llama of any size, as transformers runs it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rcprobe.adapter import Adapter, Options
from rcprobe.errors import OptionError
from rcprobe_plugins.datasets.characters import character_tokenizer, vocabulary
from rcprobe_plugins.datasets.letters import ALPHABET
from rcprobe_plugins.models.blocks import fill
from rcprobe_plugins.models.stock import DECODER_CIRCUIT, DECODER_GROUPS, DECODER_TARGETS, stock_causal


class Llama(Adapter):
    """Llama: causal, token i predicted at position i − 1."""

    name = "llama"
    objective, attention, shift = "causal", "causal", 1
    architecture = "LlamaForCausalLM"
    groups = DECODER_GROUPS
    ov_circuit = DECODER_CIRCUIT
    lora_targets = DECODER_TARGETS
    unused = (r"\.rotary_emb\.inv_freq$",)  # as older versions saved it
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
        """A stock causal Llama: bidirectional ones are marked so, and others bring their own code."""
        return super().matches(config) and stock_causal(config)

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

"""A causal model in GPT-2's style: the one-layer ARM beside the one-layer MDM."""

from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutput

from rcprobe_plugins.models.blocks import TinyAdapter, TinyConfig, TinyModel, refuse


class Gpt2MiniConfig(TinyConfig):
    """The sizes of a small GPT-2-style model."""

    model_type = "gpt2-mini"
    encoding: str = "absolute"
    tie_word_embeddings: bool = True


class Gpt2MiniForCausalLM(TinyModel):
    """Causal attention, biases everywhere but in the head, which is the embedding's transpose."""

    config: Gpt2MiniConfig
    causal, attention_bias, attention_dropout = True, True, True
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "embed_tokens.weight"}

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        **others: Any,
    ) -> CausalLMOutput:
        """Logits [B, L, V]: those at position i predict token i + 1."""
        refuse(others)
        x = self.encoding.embed(self.embed_tokens(input_ids))
        mask = create_causal_mask(self.config, x, attention_mask, past_key_values=None)
        x = F.dropout(x, self.config.dropout, self.training)
        logits, attentions = self.decode(x, mask, output_attentions)
        return CausalLMOutput(logits=logits, attentions=attentions)

    def start(self, module: nn.Module) -> None:
        """GPT-2's start: N(0, 0.02²) for weights, zero for biases, and torch's own for norms."""
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        else:
            super().start(module)


AutoConfig.register(Gpt2MiniConfig.model_type, Gpt2MiniConfig, exist_ok=True)
AutoModelForCausalLM.register(Gpt2MiniConfig, Gpt2MiniForCausalLM, exist_ok=True)


class Gpt2Mini(TinyAdapter):
    """A GPT-2-style model: causal, token i predicted at position i − 1."""

    name = "gpt2-mini"
    objective, attention, shift = "causal", "causal", 1
    architecture = "rcprobe_plugins.models.gpt2_mini:Gpt2MiniForCausalLM"
    configuration, model = Gpt2MiniConfig, Gpt2MiniForCausalLM

"""RADD (Ou et al.), the masked diffusion model without time conditioning: at depth 1, the paper's MDM."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import MaskedLMOutput

from rcprobe.encoding import TRIED, Encoding
from rcprobe_plugins.datasets.letters import ALPHABET
from rcprobe_plugins.models.blocks import TinyAdapter, TinyConfig, TinyModel, refuse


class RaddConfig(TinyConfig):
    """The sizes of a RADD; ``vocab_size`` counts the mask, which is the last id."""

    model_type = "radd"
    vocab_size: int = len(ALPHABET) + 1


class RaddForMaskedLM(TinyModel):
    """RADD: full attention without biases, an untied head with one; logits as the head gives them."""

    config: RaddConfig
    head_bias = True
    # the released checkpoints keep their table of frequencies
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^rotary_emb\."]

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        **others: Any,
    ) -> MaskedLMOutput:
        """Logits of every token, the mask's among them, from the whole sequence."""
        refuse(others)
        x = self.encoding.embed(self.embed_tokens(input_ids))
        mask = create_bidirectional_mask(self.config, x, attention_mask)
        logits, attentions = self.decode(x, mask, output_attentions)
        return MaskedLMOutput(logits=logits, attentions=attentions)

    def start(self, module: nn.Module) -> None:
        """RADD's start: norms at weight 1 and bias 1, a head of zeros, and torch's own for the rest."""
        if module is self.embed_tokens:
            init.kaiming_uniform_(self.embed_tokens.weight, a=math.sqrt(5))
        elif module is self.lm_head:
            init.zeros_(self.lm_head.weight)
            init.zeros_(self.lm_head.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.ones_(module.bias)
        else:
            super().start(module)


AutoConfig.register(RaddConfig.model_type, RaddConfig, exist_ok=True)
AutoModelForMaskedLM.register(RaddConfig, RaddForMaskedLM, exist_ok=True)


class Radd(TinyAdapter):
    """RADD: masked, full attention, unshifted; reads our checkpoints and the released ones."""

    name = "radd"
    objective, attention, shift = "masked", "full", 0
    architecture = "rcprobe_plugins.models.radd:RaddForMaskedLM"
    configuration, model = RaddConfig, RaddForMaskedLM
    mask_in_softmax = False
    keys: ClassVar[Mapping[str, str]] = {
        r"^vocab_embed\.embedding": "embed_tokens.weight",
        r"^blocks\.(\d+)\.attn_qkv\.": r"blocks.\1.attention.qkv.",  # transformers knows one group a rule
        r"^blocks\.(\d+)\.attn_out\.": r"blocks.\1.attention.out.",
        r"^output_layer\.norm_final\.": "norm.",
        r"^output_layer\.linear\.": "lm_head.",
    }

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Ours, or the released ``{"tokens": …, "model": {"type": "ddit_wot", …}}`` (SEDD says "ddit")."""
        released = config.get("model")
        return super().matches(config) or (
            "tokens" in config and isinstance(released, Mapping) and released.get("type") == "ddit_wot"
        )

    @classmethod
    def config(cls, raw: Mapping[str, Any]) -> Any:
        """The configuration from either layout; the released one counts its tokens without the mask."""
        if "tokens" not in raw:
            return super().config(raw)
        sizes = raw["model"]
        return RaddConfig(
            vocab_size=raw["tokens"] + 1,
            width=sizes["hidden_size"],
            heads=sizes["n_heads"],
            depth=sizes["n_blocks"],
            max_length=sizes.get("length", 1024),
            dropout=sizes.get("dropout", 0.0),
        )

    def mask_id(self, model: Any, tokenizer: Any) -> int | None:
        """The last id of the vocabulary, whatever the tokenizer knows."""
        return int(model.config.vocab_size) - 1

    def identities(self, model: Any) -> Mapping[str, str]:
        """A model that reads the distance alone can't tell a query from its mirror image, at any depth (Prop. 4.5)."""
        if not model.encoding.reads_distance_only:
            said = (
                "mirrored queries have equal scores in one layer, for nothing but their distance tells them of places"
            )
            return {"attention_correlation": said} if _scores_mirror(model) else {}
        alike = "a model that reads the distance alone answers a mirrored query alike (Prop. 4.5)"
        outcome = f"{alike}: a reverse query as the forward one for the same target"
        return {
            "attention_correlation": "mirrored queries have equal scores, at any depth (Prop. 4.5)",
            "gradient_alignment": f"{alike}, so both gradients are one",
            "reverse_probability": f"{outcome}, trained or not",
            "accuracy": f"{outcome} over all placements, trained or not",
        }


def _scores_mirror(model: Any) -> bool:
    """Whether a model of one layer scores a mirrored query alike, though its values may tell the two apart."""
    encoding = model.encoding
    if len(model.blocks) > 1 or next(encoding.parameters(), None) is not None:
        return False
    if any(getattr(type(encoding), name) is not getattr(Encoding, name) for name in ("embed", "rotate")):
        return False
    bias = encoding.bias(min(TRIED, model.config.max_length))
    return bias is None or (torch.equal(bias, bias.mT) and torch.equal(bias, bias.flip(-1, -2)))

"""Dream, Dream-Coder and DiffuCoder: a Qwen2 with full attention that predicts one position ahead."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from rcprobe.adapter import Adapter
from rcprobe.errors import AdapterError
from rcprobe_plugins.models.stock import DECODER_CIRCUIT, DECODER_GROUPS, DECODER_TARGETS, TINY_DECODER, with_bos

MASK = 151666
# of their own code, or of the release's bookkeeping
DROPPED = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",  # the tokenizer's is another, and right
    "model_type",
    "transformers_version",
    "use_mrope",
)


class Dream(Adapter):
    """Dream: masked, full attention; token i is read from position i − 1, so a bos goes before everything."""

    name = "dream"
    objective, attention, shift, loss = "masked", "full", 1, "cart"
    architecture = "Qwen2ForCausalLM"
    mask_token = MASK
    groups = DECODER_GROUPS
    ov_circuit = DECODER_CIRCUIT
    lora_targets = DECODER_TARGETS
    tiny_config: ClassVar[Mapping[str, Any]] = {
        **TINY_DECODER,
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        "mask_token_id": 47,
    }

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """The released layout (Dream's own code), or a bidirectional Qwen2 with Dream's mask."""
        return "DreamModel" in (config.get("architectures") or ()) or (
            super().matches(config) and config.get("is_causal") is False and config.get("mask_token_id") == MASK
        )

    @classmethod
    def resolve(cls, raw: Mapping[str, Any]) -> type["Dream"]:
        """This family, with the mask that the configuration names. Raises ``AdapterError`` for 3-D positions."""
        if raw.get("use_mrope"):
            raise AdapterError(f"{cls.name}: use_mrope is true, which a Qwen2 can't do")
        mask = raw.get("mask_token_id")
        return cls if mask is None else cls.variant({"mask_token": mask})

    @classmethod
    def config(cls, raw: Mapping[str, Any]) -> Any:
        """A Qwen2's configuration from either layout."""
        from transformers import Qwen2Config

        kept = {name: value for name, value in raw.items() if name not in DROPPED}
        kept["dtype"] = kept.pop("torch_dtype", None) or kept.get("dtype")
        return Qwen2Config(
            **{**kept, "mask_token_id": raw.get("mask_token_id", MASK), "is_causal": False, "logits_shift": cls.shift}
        )

    @classmethod
    def tokenizer(cls, folder: Path) -> Any:
        """Qwen2's tokenizer with Dream's tokens, and its bos before every text."""
        from transformers import Qwen2Tokenizer

        return with_bos(Qwen2Tokenizer.from_pretrained(folder, trust_remote_code=False))

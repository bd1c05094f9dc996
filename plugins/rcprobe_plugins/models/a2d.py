"""Bidirectional conversions of causal models: released ones, and those made here by adding a mask token."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rcprobe.adapter import Adapter
from rcprobe.errors import AdapterError
from rcprobe.loaded import LoadedModel
from rcprobe.probing.verify import verify
from rcprobe_plugins.models.stock import (
    ANY_GROUPS,
    ANY_TARGETS,
    DECODER_CIRCUIT,
    DECODER_GROUPS,
    TINY_DECODER,
    architecture_of,
    causal_name,
    masked_name,
    with_bos,
)

PREFIX = "a2d-"  # Tiny-A2D's model types: a2d-qwen3, a2d-qwen2, a2d-llama
LLAMA_SHAPED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
DROPPED = ("_name_or_path", "architectures", "auto_map", "model_type", "transformers_version")


class A2d(Adapter):
    """A causal architecture run with full attention, trained with masks; unshifted unless its configuration says so."""

    name = "a2d"
    objective, attention, shift = "masked", "full", 0
    architecture = "Qwen3ForCausalLM"
    groups = ANY_GROUPS
    lora_targets = ANY_TARGETS
    generality = 1
    tiny_config: ClassVar[Mapping[str, Any]] = {
        **TINY_DECODER,
        "architectures": ["A2DQwen3LMHeadModel"],
        "model_type": "a2d-qwen3",
        "head_dim": 4,
        "mask_token_id": 47,
    }

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Tiny-A2D's types, or a stock causal one marked by ``is_causal: false`` or a mask token."""
        marked = config.get("is_causal") is False or config.get("mask_token_id") is not None
        causal = causal_name(config) and not masked_name(config)  # one architecture may be for either (XLM)
        return _converted(config) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (marked and causal)

    @classmethod
    def resolve(cls, raw: Mapping[str, Any]) -> type["A2d"]:
        """The causal architecture under it, and the mask and shift that the configuration names."""
        stock = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(_converted(raw)) or architecture_of(raw)
        found: dict[str, Any] = {"architecture": stock}
        if raw.get("mask_token_id") is not None:
            found["mask_token"] = raw["mask_token_id"]
        if raw.get("logits_shift") is not None:
            found["shift"] = raw["logits_shift"]
        if stock in LLAMA_SHAPED:
            found |= {"groups": DECODER_GROUPS, "ov_circuit": DECODER_CIRCUIT}
        return cls.variant(found)

    @classmethod
    def config(cls, raw: Mapping[str, Any]) -> Any:
        """The causal architecture's configuration, with full attention."""
        kept = {name: value for name, value in raw.items() if name not in DROPPED}
        kind = _converted(raw) or raw["model_type"]
        return super().config({**kept, "model_type": kind, "is_causal": False, "use_cache": False})


class ShiftedA2d(A2d):
    """A conversion that kept the causal model's shift (Open-dCoder); nothing in its files says so: name it."""

    shift = 1

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Never by itself."""
        return False


def convert(m: LoadedModel, shift: int = 0, mask: str = "<|mask|>") -> LoadedModel:
    """A causal model as a masked one: a copy with full attention and a mask token, to be trained with masks.

    A tokenizer without a mask gets ``mask``; where the embedding has no row for it, one is added, the mean of the
    others. ``shift`` 0 predicts a token at its own position, 1 one position before, as the causal model did: then the
    tokenizer's bos goes before every text, so that a first token can be asked for, where it has one and puts no special
    tokens of its own there. What
    ``save_pretrained`` writes is read back as the same conversion. Raises ``AdapterError`` for a model that isn't
    causal throughout, ``VerificationError`` for one that stays causal.
    """
    if m.adapter.objective != "causal" or m.adapter.attention != "causal":
        raise AdapterError(
            f"{m.source}: {m.adapter.name} has {m.adapter.attention} attention; only a causal model whose layers all "
            "attend by softmax becomes bidirectional"
        )
    model: Any = copy.deepcopy(m.model)
    tokenizer = copy.deepcopy(m.tokenizer)
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": mask})
    if shift and tokenizer.bos_token_id is not None and _adds_nothing(tokenizer):
        with_bos(tokenizer)
    if tokenizer.mask_token_id >= m.vocabulary:
        _grow(model, m.vocabulary, tokenizer.mask_token_id + 1)
    config = model.config
    config.is_causal, config.mask_token_id, config.logits_shift = False, int(tokenizer.mask_token_id), shift
    family = A2d.resolve({**config.to_dict(), "architectures": [type(model).__name__]})
    converted = LoadedModel(model.eval(), family(), tokenizer, f"{m.source}, converted")
    verify(converted)
    return converted


def _adds_nothing(tokenizer: Any) -> bool:
    return bool(tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"])


@torch.no_grad()
def _grow(model: Any, before: int, size: int) -> None:
    model.resize_token_embeddings(size, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight[before:] = module.weight[:before].mean(dim=0)


def _converted(raw: Mapping[str, Any]) -> str:
    """The causal model type that a Tiny-A2D type stands for, or an empty name."""
    kind = str(raw.get("model_type"))
    return kind.removeprefix(PREFIX) if kind.startswith(PREFIX) else ""

"""What stock transformers models share: names of the Llama shape, and how a causal checkpoint is told from others."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rcprobe.adapter import OvCircuit
from rcprobe.errors import AdapterError

Groups = Mapping[str, str | tuple[str, ...]]

# Llama, Qwen2, Qwen3 and those that copy their names
DECODER_GROUPS: Groups = {
    r"^model\.embed_tokens\.weight$": "embedding",
    r"^model\.layers\.\d+\.self_attn\.q_proj\.(weight|bias)$": "query",
    r"^model\.layers\.\d+\.self_attn\.k_proj\.(weight|bias)$": "key",
    r"^model\.layers\.\d+\.self_attn\.v_proj\.(weight|bias)$": "value",
    r"^model\.layers\.\d+\.self_attn\.o_proj\.(weight|bias)$": "output",
    r"^model\.layers\.\d+\.self_attn\.[qk]_norm\.weight$": "norm",
    r"^model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.(weight|bias)$": "mlp",
    r"^model\.(layers\.\d+\.(input|post_attention)_layernorm|norm)\.weight$": "norm",
    r"^lm_head\.weight$": "head",
}
DECODER_CIRCUIT = OvCircuit(
    embedding="model.embed_tokens",
    layers="model.layers",
    norm="input_layernorm",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    final_norm="model.norm",
    head="lm_head",
)
DECODER_TARGETS = (r"\.self_attn\.[qkvo]_proj$", r"\.mlp\.(gate|up|down)_proj$")

# sizes of a tiny model, in the words of these families
TINY_DECODER: Mapping[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}

# by the words that most architectures use; a name that fits none is in "other"
ANY_GROUPS: Groups = {
    r"(^|\.)(wpe|embed_positions|\w*position\w*embeddings?|token_type_embeddings)\.": "position",
    r"(?i)norm|(^|\.)ln_?(\d|f)\.": "norm",
    r"(^|\.)(wte|embed_tokens|embed_in|word_embeddings|tok_embeddings)\.|embeddings\.weight$": "embedding",
    r"^(lm_head|embed_out|cls|head|decoder|vocab_\w+|generator_\w+)\.": "head",
    r"(^|\.)(Wqkv|qkv_proj|query_key_value|c_attn)\.": "query, key, value",
    r"(^|\.)(q_proj|q_lin|query|query_proj)\.": "query",
    r"(^|\.)(k_proj|k_lin|key|key_proj)\.": "key",
    r"(^|\.)(v_proj|v_lin|value|value_proj)\.": "value",
    r"(^|\.)(o_proj|out_proj|out_lin|Wo)\.": "output",
    r"attention\.output\.dense\.|attention\.dense\.|attn\.(c_proj|dense)\.": "output",
    r"(^|\.)(mlp|ffn|feed_forward|intermediate|fc\d|lin\d)\.|output\.dense\.": "mlp",
    r".": "other",
}
ANY_TARGETS = (r"\.\d+\.",)  # every linear module of a layer, and nothing of the head


def architecture_of(raw: Mapping[str, Any]) -> str:
    """The one architecture that a raw configuration declares, or an empty name."""
    declared: Sequence[str] = raw.get("architectures") or ()
    return str(next(iter(declared))) if len(declared) == 1 else ""


def stock_causal(raw: Mapping[str, Any]) -> bool:
    """Whether a raw configuration is a causal model of transformers' own, with no mark that it became another thing.

    Bidirectional conversions keep the causal type; ``is_causal: false`` or a mask token gives them away. Code of a
    checkpoint's own (``auto_map``) may do anything under a stock name.
    """
    return causal_name(raw) and raw.get("is_causal") is not False and raw.get("mask_token_id") is None


def causal_name(raw: Mapping[str, Any]) -> bool:
    """Whether type and architecture are transformers' own for a causal language model, and bring no code."""
    return _stock(raw, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def masked_name(raw: Mapping[str, Any]) -> bool:
    """Whether type and architecture are transformers' own for a masked language model, and bring no code."""
    return _stock(raw, MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def _stock(raw: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    return (
        names.get(str(raw.get("model_type"))) == architecture_of(raw)
        and not raw.get("auto_map")
        and not raw.get("is_encoder_decoder")
    )


def with_bos(tokenizer: Any) -> Any:
    """The tokenizer, putting its bos before every text. Raises ``AdapterError`` if it has none."""
    if tokenizer.bos_token_id is None:
        raise AdapterError("the tokenizer declares no bos_token, and a shifted model can't predict the first position")
    if tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        tokenizer.add_bos_token = True
    return tokenizer

"""GGUF files of causal language models, as far as transformers reads them: weights become plain numbers again."""

from pathlib import Path
from typing import Any

from rcprobe.errors import AdapterError, MissingExtraError, UsageError

SUFFIX = ".gguf"


def gguf_file(source: str | Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder without ``config.json``; None if neither.

    Raises ``UsageError`` for a folder with several.
    """
    path = Path(source)
    if path.suffix == SUFFIX and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise UsageError(f"{path}: it holds several models ({', '.join(file.name for file in found)}); name one file")
    return found[0] if found else None


def gguf_config(path: Path) -> dict[str, Any]:
    """What ``config.json`` would say. Raises ``AdapterError`` for a file that transformers can't read."""
    try:
        import gguf  # noqa: F401 - without it, transformers tells of other ways to install it
    except ImportError as error:
        raise MissingExtraError(f"{path}: reading GGUF", "gguf", "gguf") from error
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, AttributeError) as error:
        raise AdapterError(
            f"{path}: transformers can't read this GGUF file ({type(error).__name__}: {error}). Is it whole? Else use "
            "the original weights, in safetensors"
        ) from error
    raw: dict[str, Any] = config.to_dict()
    stock = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(raw.get("model_type")))
    return {**raw, "architectures": [stock] if stock else []}


def gguf_tokenizer(path: Path) -> Any:
    """The fast tokenizer inside a GGUF file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)


def forget_gguf(model: Any) -> None:
    """Let a model whose weights are plain numbers again be saved, moved and cast like any other."""
    model.hf_quantizer = None
    for name in ("quantization_method", "quantization_config"):
        for holder in (model, model.config):
            if hasattr(holder, name):
                delattr(holder, name)

"""A model ready to be probed."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rcprobe.adapter import Adapter


@dataclass
class LoadedModel:
    """A model, the adapter that describes it, and its tokenizer.

    ``source`` says where it came from (a plugin's name, a path, a hub id, or a class of the caller's).
    ``factory`` builds the same model anew from a seed; it is None for a model that came with weights. ``told`` is
    what ``load`` was told of a checkpoint beside its place, under the names that it takes.
    """

    model: nn.Module
    adapter: Adapter
    tokenizer: Any
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    factory: Callable[[int], nn.Module] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    _wrapped: tuple[list[nn.Module], Any] | None = field(default=None, init=False, repr=False, compare=False)

    @cached_property
    def mask_id(self) -> int | None:
        """The id of the mask token; None for a causal model."""
        return self.adapter.mask_id(self.model, self.tokenizer)

    @property
    def pad_id(self) -> int:
        """The id that fills the right of shorter prompts; the attention mask hides it."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return 0 if pad is None else int(pad)

    @property
    def device(self) -> torch.device:
        """The device of the first parameter, where prompts are sent."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first parameter."""
        return next(self.model.parameters()).dtype

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config

    @property
    def max_length(self) -> int | None:
        """The longest prompt the model takes, in tokens; None where it declares no limit."""
        for name in ("max_position_embeddings", "max_length", "max_sequence_length", "n_positions"):
            limit = getattr(self.config, name, None)
            if limit:
                return int(limit)
        return None

    @property
    def vocabulary(self) -> int:
        """How many token ids the embedding holds."""
        embedding: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        return int(embedding.weight.shape[0])

    @property
    def wrapped(self) -> Any:
        """The model in nnsight's wrapper, which is made anew once modules were added, exchanged or taken out."""
        from nnsight import NNsight

        modules = list(self.model.modules())
        if self._wrapped is None or self._wrapped[0] != modules:
            with warnings.catch_warnings():
                # submodules called output or input; they are found by path here, never by attribute
                warnings.filterwarnings("ignore", message=".*which nnsight already serves.*")
                self._wrapped = (modules, NNsight(self.model))
        return self._wrapped[1]

    def encoding(self, text: str) -> Any:
        """A whole text's tokens and their character offsets, whatever the tokenizer's files say of cutting and padding.

        The tokenizers library raises a bare ``Exception`` for a token that it doesn't know.
        """
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return backend.encode(text)

    def replace_model(self, model: nn.Module) -> None:
        """Put another module in the model's place: itself under adapters, or without them."""
        self.model = model
        self._wrapped = None  # it would keep the model that was replaced

    def fingerprint(self) -> str:
        """SHA-256 over every parameter's name, shape, dtype and bytes."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            for tensor in _plain(parameter.detach()):
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def replica(self, seed: int) -> "LoadedModel":
        """The same model built anew from a seed; only for models with a factory."""
        assert self.factory is not None
        model = cast(self.factory(seed), self.device, self.dtype).eval()
        return replace(self, model=model)


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor, or those that a quantised one (torchao's) is made of."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))


def cast(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """Move a model to a device and, of a dtype other than None, its weights.

    Buffers that aren't saved keep their precision: rotary frequencies in half precision turn by other angles.
    """
    model.to(device=device)
    exact = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if name in module._non_persistent_buffers_set
    ]
    model.to(dtype=dtype)
    for module, name, buffer in exact:
        module._buffers[name] = buffer
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside (no dropout), each module's own mode restored after."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True

"""A model that can be opened, whatever project it is from: its shape, its tokenizer and its stored weights.

Opening reads the shape. The weights are read later, one tensor at a time straight into a model whose memory is not
initialized: no random numbers are drawn and no tensor is held twice.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError
from quillgpt.model.gpt import GPT
from quillgpt.model.initialization import PADDED
from quillgpt.model.positions import POSITIONS
from quillgpt.pretrained.tensor_files import StoredTensors
from quillgpt.tokenizer import Tokenizer
from quillgpt.tokenizer.base import LazyTokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT

FREE_SETTINGS = {"dropout", "attention", "context_length"}
"""settings that may differ from the source's; only a longer context of learned positions is refused"""

TABLES = (*PADDED, "position_embedding.weight")
"""weights of which a model takes the first rows: a file may have padding or more positions"""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Stored tensors; `locate` gives the stored name of one of our weights, and whether it is stored transposed."""

    stored: StoredTensors
    locate: Callable[[str], tuple[str, bool]]
    is_ignored: Callable[[str], bool] = lambda name: False


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that can be opened.

    name: for messages. tokenizer_name: the setting `tokenizer` that means the same one, or "". finish: called with the
    model after its weights are loaded. known_fingerprint: SHA-256 of the weights, if known without reading them.
    """

    name: str
    config: ModelConfig
    tokenizer_name: str
    open_weights: Callable[[], Weights]
    open_tokenizer: Callable[[], Tokenizer]
    known_fingerprint: str = ""
    known_tokenizer_fingerprint: str = ""
    finish: Callable[[GPT], None] = lambda model: None

    def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer; it is read, and its errors are raised, when it is first used."""
        return cast(Tokenizer, LazyTokenizer(self.open_tokenizer))

    @cached_property
    def tokenizer_fingerprint(self) -> str | None:
        """The fingerprint of the tokenizer; None if there is none. That of GPT-2 is known without its vocabulary."""
        if self.tokenizer_name == "gpt2":
            return GPT2_FINGERPRINT
        if self.known_tokenizer_fingerprint:
            return self.known_tokenizer_fingerprint
        return self.open_tokenizer().fingerprint if self.tokenizer_name else None

    @cached_property
    def weights(self) -> Weights:
        """The stored weights; a published model is fetched here."""
        return self.open_weights()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the file of the weights, or a hash over those of several files."""
        return self.known_fingerprint or self.weights.stored.sha256()

    def check(self, shape: ModelConfig) -> None:
        """Refuse a model of another shape than the source's, and files that lack a tensor, before one is read.

        The model may differ in dropout and attention, and see fewer positions; of learned ones it gets the first.
        """
        self._check_settings(shape)
        with torch.device("meta"):
            self._places(GPT(shape))

    def load(self, shape: ModelConfig, device: str | torch.device) -> GPT:
        """Return a model of the shape with the source's weights; `check` says what is refused."""
        model = empty_model(shape, device)
        self.load_into(model)
        return model

    def load_into(self, model: GPT) -> None:
        """Fill a model of the source's shape, on any device and in any dtype; `check` says what is refused."""
        self._check_settings(model.config)
        places = self._places(model)
        with torch.no_grad():
            for name, parameter in model.state_dict().items():
                stored_name, is_transposed = places[name]
                rows = _stored_rows(name, parameter, model.config)
                parameter[len(rows) :].zero_()
                self.weights.stored.copy(stored_name, rows.T if is_transposed else rows)
        self.finish(model)

    def _check_settings(self, shape: ModelConfig) -> None:
        """Refuse another shape than the source's; the error names every setting that differs."""
        theirs, ours = dataclasses.asdict(self.config), dataclasses.asdict(shape)
        differing = [name for name in ours if name not in FREE_SETTINGS and ours[name] != theirs[name]]
        if POSITIONS[shape.position].has_table and shape.context_length > self.config.context_length:
            differing.append("context_length")
        if differing:
            settings = ", ".join(f"{name} = {theirs[name]} (here {ours[name]})" for name in differing)
            raise CheckpointError(f"{self.name} has {settings}; give the same settings to start from it")

    def _places(self, model: GPT) -> dict[str, tuple[str, bool]]:
        """Where each weight is stored; refuse missing, surplus and mis-shaped tensors."""
        shapes, ignored = self.weights.stored.shapes, self.weights.is_ignored
        places = {name: self.weights.locate(name) for name in model.state_dict()}
        surplus = sorted(name for name in shapes.keys() - {name for name, _ in places.values()} if not ignored(name))
        if surplus:
            raise CheckpointError(
                f"{self.name}: it has a tensor {surplus[0]}, which a model of this shape does not have"
            )
        for name, parameter in model.state_dict().items():
            stored_name, is_transposed = places[name]
            if stored_name not in shapes:
                raise CheckpointError(f"{self.name}: it has no tensor {stored_name}; is it complete?")
            rows = _stored_rows(name, parameter, model.config)
            got, expected = shapes[stored_name], tuple((rows.T if is_transposed else rows).shape)
            is_longer_table = name.startswith(TABLES) and got[:1] > expected[:1] and got[1:] == expected[1:]
            if got != expected and not is_longer_table:
                raise CheckpointError(f"{self.name}: {stored_name} has the shape {got}; expected {expected}")
        return places


def _stored_rows(name: str, parameter: Tensor, config: ModelConfig) -> Tensor:
    """The rows of a weight that come from the file; the rows of padding after the vocabulary are zeros."""
    return parameter[: config.vocab_size] if name.startswith(PADDED) else parameter


def empty_model(config: ModelConfig, device: str | torch.device) -> GPT:
    """Return a model with uninitialized weights, for `Source.load_into` to fill."""
    with torch.device("meta"):  # shapes only, so that no random weights are drawn
        model = GPT(config)
    model.to_empty(device=device)
    return model


def load_model_from(source: Source, device: str | torch.device = "cpu") -> tuple[GPT, Tokenizer]:
    """Load the source's model, in evaluation mode, and its tokenizer."""
    return source.load(source.config, device).eval(), source.tokenizer()

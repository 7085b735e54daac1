"""Where a model's weights come from: a run, a published model, another project's file, all behind one class.

Opening a source is cheap and tells its shape. The weights are read when they are wanted, one tensor at a time straight
into a model that has memory but no values yet: nothing is drawn, copied or kept twice.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError
from quillgpt.model.gpt import GPT
from quillgpt.model.initialization import PADDED
from quillgpt.pretrained.tensor_files import StoredTensors
from quillgpt.tokenizer import Tokenizer
from quillgpt.tokenizer.later import LaterTokenizer

NOT_OF_THE_WEIGHTS = {"dropout", "attention", "context_length"}
"""settings in which a model may differ from its source; only a longer context of learned positions is refused"""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Stored tensors, and under which name each of our weights is found in them, transposed or not."""

    stored: StoredTensors
    place: Callable[[str], tuple[str, bool]]
    ignored: Callable[[str], bool] = lambda name: False


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that can be opened: its shape, its tokenizer, and weights to fill a model of that shape with.

    `name` is for messages. `tokenizer_name` is what the setting `tokenizer` takes to mean the same one, or "". `finish`
    is done to a model that has the stored weights.
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
        """The tokenizer the model was trained with, read when it is first used; what is wrong with it is told then."""
        return LaterTokenizer(self.open_tokenizer)

    @cached_property
    def tokenizer_fingerprint(self) -> str | None:
        """The fingerprint of the tokenizer, None where there is none."""
        if self.known_tokenizer_fingerprint:
            return self.known_tokenizer_fingerprint
        return self.open_tokenizer().fingerprint if self.tokenizer_name else None

    @cached_property
    def weights(self) -> Weights:
        """The stored weights; a published model is fetched here."""
        return self.open_weights()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the file of the weights, or what stands for it where they are made of several."""
        return self.known_fingerprint or self.weights.stored.sha256()

    def check(self, shape: ModelConfig) -> None:
        """Refuse, before any tensor is read, a model of another shape than the source's, and files that lack something.

        The model may have another dropout or attention, and see fewer positions: of learned ones it gets the first.
        """
        check_shape(shape, self)
        with torch.device("meta"):
            self._places(GPT(shape))

    def load_into(self, model: GPT) -> None:
        """Fill a model of the source's shape, on any device and of any dtype; see `check` for what is refused."""
        check_shape(model.config, self)
        places = self._places(model)
        with torch.no_grad():
            for name, parameter in model.state_dict().items():
                stored_name, is_transposed = places[name]
                rows = _filled_rows(name, parameter, model.config)
                parameter[len(rows) :].zero_()
                self.weights.stored.copy(stored_name, rows.T if is_transposed else rows)
        self.finish(model)

    def _places(self, model: GPT) -> dict[str, tuple[str, bool]]:
        """Where each weight is stored; a missing, surplus or mis-shaped tensor is told before anything is read."""
        shapes = self.weights.stored.shapes
        places = {name: self.weights.place(name) for name in model.state_dict()}
        surplus = sorted(
            name for name in shapes.keys() - {name for name, _ in places.values()} if not self.weights.ignored(name)
        )
        if surplus:
            raise CheckpointError(
                f"{self.name}: it has a tensor {surplus[0]}, which a model of this shape does not have"
            )
        for name, parameter in model.state_dict().items():
            stored_name, is_transposed = places[name]
            if stored_name not in shapes:
                raise CheckpointError(f"{self.name}: it has no tensor {stored_name}; is it complete?")
            rows = _filled_rows(name, parameter, model.config)
            expected = tuple((rows.T if is_transposed else rows).shape)
            got = shapes[stored_name]
            may_be_longer = name.startswith(_TABLES) and got[:1] > expected[:1]
            if got != expected and not (may_be_longer and got[1:] == expected[1:]):
                raise CheckpointError(f"{self.name}: {stored_name} has the shape {got}; expected {expected}")
        return places


_TABLES = (*PADDED, "position_embedding.weight")
"""weights of which the model takes the first rows: a file may have padding, or more positions"""


def _filled_rows(name: str, parameter: Tensor, config: ModelConfig) -> Tensor:
    """The rows of a weight that come from the file; those beyond the vocabulary are zeros."""
    return parameter[: config.vocab_size] if name.startswith(PADDED) else parameter


def check_shape(shape: ModelConfig, source: Source) -> None:
    """Refuse to put weights into a model of another shape, naming every setting that differs."""
    theirs, ours = dataclasses.asdict(source.config), dataclasses.asdict(shape)
    differing = [name for name in ours if name not in NOT_OF_THE_WEIGHTS and ours[name] != theirs[name]]
    if shape.position == "learned" and shape.context_length > source.config.context_length:
        differing.append("context_length")
    if differing:
        settings = ", ".join(f"{name} = {theirs[name]} (here {ours[name]})" for name in differing)
        raise CheckpointError(f"{source.name} has {settings}; give the same settings to start from it")


def empty_model(config: ModelConfig, device: str | torch.device) -> GPT:
    """A model with memory for its weights but no values: to be filled by `Source.load_into`."""
    with torch.device("meta"):  # shapes only, so that no random weights are drawn
        model = GPT(config)
    model.take_memory(device)
    return model


def load_model_from(source: Source, device: str | torch.device = "cpu") -> tuple[GPT, Tokenizer]:
    """The source's model, in evaluation mode, and its tokenizer."""
    model = empty_model(source.config, device)
    source.load_into(model)
    return model.eval(), source.tokenizer()

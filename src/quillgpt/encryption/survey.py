"""Which parts of a whole model are no polynomials, what replaces each, and how deep all of it is.

A replacement errs by less than `verdicts.ACCURACY` on the interval that its argument has on one text. A service needs
intervals that hold for every text, and a model can be trained to keep them small [Zimerman 2023]; so the depths found
here are the least to expect of these weights.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.encryption.ckks import levels_without_bootstrapping
from quillgpt.encryption.measure import Activations, measured
from quillgpt.encryption.verdicts import (
    NORM_SQUARES,
    ROTATES,
    Approximation,
    Verdict,
    activated,
    attended,
    gated,
    mean_square,
    normalised,
)
from quillgpt.errors import pick
from quillgpt.model.gpt import GPT


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the model on the way from the embedded tokens to the logits."""

    name: str
    depth: int
    """levels"""
    approximations: tuple[Approximation, ...] = ()
    """what is no polynomial in it"""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A model's parts in the order of computation: those of each layer, then those behind the last."""

    layers: tuple[tuple[Part, ...], ...]
    end: tuple[Part, ...]
    client: tuple[str, ...]
    """what the client does in the clear, before it encrypts and after it decrypts"""
    levels: int
    """what CKKS has without bootstrapping"""

    @property
    def parts(self) -> list[Part]:
        """All of them."""
        return [*[part for layer in self.layers for part in layer], *self.end]

    @property
    def not_polynomial(self) -> list[str]:
        """The names of the parts that need a replacement, each once."""
        return list(dict.fromkeys(part.name for part in self.parts if part.approximations))

    @property
    def layer_depths(self) -> list[int]:
        """Levels of each layer."""
        return [sum(part.depth for part in layer) for layer in self.layers]

    @property
    def depth(self) -> int:
        """Levels from the embedded tokens to the logits."""
        return sum(part.depth for part in self.parts)

    @property
    def within_levels(self) -> list[Part]:
        """The first parts, as far as the levels last without bootstrapping."""
        depths = itertools.accumulate(part.depth for part in self.parts)
        return [part for part, depth in zip(self.parts, depths, strict=True) if depth <= self.levels]


def survey(model: GPT, tokens: Tensor) -> Survey:
    """Look through a model with the activations of tokens (T,)."""
    config = model.config
    layers, last = measured(model, tokens)
    is_rotated = pick(ROTATES, config.position, "position")
    return Survey(
        layers=tuple(_layer(config, activations) for activations in layers),
        end=(_norm(config, last), _linear("output head")),
        client=(
            "the table of token embeddings",
            *([] if is_rotated else ["positions"]),
            *(["the norm of the embedded tokens"] if config.embedding_norm else []),
            *(["the tables of value embeddings"] if config.value_embeddings else []),
            *(["bending the logits"] if config.logit_softcap else []),
            "choosing the next token",
        ),
        levels=levels_without_bootstrapping(),
    )


def _layer(config: ModelConfig, activations: Activations) -> tuple[Part, ...]:
    return (
        _norm(config, activations.norm_1),
        _linear("queries, keys, values"),
        *_before_pairs(config, activations),
        *_before_values(config, activations),
        _part(f"attention: {config.attention}", attended(config, activations.pair)),
        _linear("attention's projection"),
        _norm(config, activations.norm_2),
        _linear("feed-forward, first matrix"),
        _part(f"activation: {config.mlp}", activated(config.mlp, activations.mlp)),
        _linear("feed-forward, second matrix"),
    )


def _before_values(config: ModelConfig, activations: Activations) -> list[Part]:
    """The gate of a value embedding; it costs only the levels that queries and keys do not take meanwhile."""
    if activations.value_gate is None:
        return []
    verdict = gated(activations.value_gate)
    meanwhile = 1 + sum(part.depth for part in _before_pairs(config, activations))
    deeper = max(0, verdict.depth - meanwhile)
    return [Part(name="value embedding's gate", depth=deeper, approximations=verdict.approximations)]


def _norm(config: ModelConfig, stream: Tensor) -> Part:
    return _part(f"norm: {config.norm}", normalised(pick(NORM_SQUARES, config.norm, "norm")(stream)))


def _linear(name: str) -> Part:
    return Part(name=name, depth=1)


def _part(name: str, verdict: Verdict) -> Part:
    return Part(name=name, depth=verdict.depth, approximations=verdict.approximations)


def _before_pairs(config: ModelConfig, activations: Activations) -> list[Part]:
    """What is done to queries and keys: normalised, and turned, which folds into their matrix if it is next to it."""
    is_rotated = pick(ROTATES, config.position, "position")
    turned = [Part(name=f"position: {config.position}", depth=1 if config.qk_norm else 0)] if is_rotated else []
    if not config.qk_norm:
        return turned
    squares = torch.cat([mean_square(x).flatten() for x in activations.raw_pair])
    return [_part("qk_norm", normalised(squares)), *turned]

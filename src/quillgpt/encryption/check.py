"""The check: one head of a trained model on encrypted activations, against the same head in the clear."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from quillgpt.config import ModelConfig
from quillgpt.encryption import ckks
from quillgpt.encryption.circuit import Inputs, attend, attend_depth, project
from quillgpt.encryption.head import Head, Kernel, polynomial_kernel, read_head
from quillgpt.encryption.layout import Layout, Numbers
from quillgpt.errors import CheckError, ConfigError, NonFiniteError
from quillgpt.model.gpt import GPT

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one encrypted head took, and how far it is from the clear one."""

    attention: str
    starts_after: str
    """the last thing that the client computes in the clear: norm, or qk_norm"""
    width: int
    """channels of what it encrypts for each position"""
    layout: Layout
    parameters: ckks.Parameters
    depth: int
    """levels between the client's ciphertexts and the result, read from SEAL's chain of moduli"""
    counts: ckks.Counts
    keys_seconds: float
    encryption_seconds: float
    evaluation_seconds: float
    decryption_seconds: float
    inputs: int
    """ciphertexts that the client sends"""
    input_bytes: int
    output_bytes: int
    key_bytes: int
    largest_output: float
    difference: float
    """largest absolute difference from the clear result"""

    @property
    def relative_difference(self) -> float:
        """As a part of the largest output."""
        return self.difference / self.largest_output


def check_head(model: GPT, tokens: Tensor, *, layer: int, head: int) -> Outcome:
    """Run a head on encrypted activations of tokens (T,); layer and head count from 0.

    What cannot be encrypted is a `ConfigError` before anything slow; an output that the parameters cannot hold is a
    `CheckError`.
    """
    config = model.config
    kernel = polynomial_kernel(config, len(tokens))
    parameters = fitting_parameters(config, kernel, len(tokens))
    layout = Layout(positions=len(tokens), head_size=config.n_embd // config.n_head, slots=parameters.slots)
    clear = read_head(model, tokens, layer, head)
    _check_range(clear.output, parameters, config)
    return encrypted_head(clear, parameters, layout, config.attention)


def needed_depth(config: ModelConfig, kernel: Kernel) -> int:
    """Levels of the whole circuit; with qk_norm it begins after the projection."""
    return attend_depth(kernel) + (0 if config.qk_norm else 1)


def fitting_parameters(config: ModelConfig, kernel: Kernel, positions: int) -> ckks.Parameters:
    """The smallest secure parameters for a head and so many positions; a `ConfigError` says what does not fit."""
    head_size, depth = config.n_embd // config.n_head, needed_depth(config, kernel)
    most = ckks.levels_without_bootstrapping()
    if depth > most:
        raise ConfigError(
            f"attention = {config.attention} takes {depth} levels; CKKS has {most} without bootstrapping "
            f"(ring {ckks.LARGEST_RING:,}, {ckks.SECURITY_BITS}-bit); choose a smaller N"
        )
    layout = Layout(positions=positions, head_size=head_size, slots=ckks.LARGEST_RING // 2)
    if layout.rows < layout.period:
        raise ConfigError(
            f"length = {positions} is too long: a ciphertext has {layout.slots:,} slots, enough for "
            f"{layout.slots // layout.period} positions of a head of {head_size} channels"
        )
    return ckks.choose_parameters(depth, layout.period * layout.lanes)


def _check_range(output: Numbers, parameters: ckks.Parameters, config: ModelConfig) -> None:
    largest, limit = float(np.abs(output).max()), parameters.largest_number
    if not math.isfinite(largest):
        raise NonFiniteError("the head's output is not a finite number; the model's weights may be damaged")
    if not 0 < largest < limit:
        raise CheckError(
            f"attention = {config.attention}: the head's output reaches {largest:.3g} in the clear; "
            f"encrypted it has to be above 0 and below {limit:,.0f}, so there is nothing to compare with"
        )


def encrypted_head(clear: Head, parameters: ckks.Parameters, layout: Layout, attention: str) -> Outcome:
    """Client and server in one process: make keys, encrypt, compute, decrypt, compare."""
    (client, server), keys_seconds = _timed(lambda: _client_and_server(parameters, layout))
    encrypted, encryption_seconds = _timed(lambda: [client.encrypt(slots) for slots in _sent(clear, layout)])

    def evaluate() -> ckks.Encrypted:
        query, key, value = project(server, layout, encrypted, clear.maps) if clear.maps else encrypted
        return attend(server, layout, Inputs(query=query, key=key, value=value), clear.kernel)

    result, evaluation_seconds = _timed(evaluate)
    output, decryption_seconds = _timed(lambda: layout.unpacked(client.decrypt(result)))
    return Outcome(
        attention=attention,
        width=clear.stream.shape[1] if clear.maps else layout.head_size,
        starts_after="norm" if clear.maps else "qk_norm",
        layout=layout,
        parameters=parameters,
        depth=server.level(encrypted[0]) - server.level(result),
        counts=server.counts,
        keys_seconds=keys_seconds,
        encryption_seconds=encryption_seconds,
        evaluation_seconds=evaluation_seconds,
        decryption_seconds=decryption_seconds,
        inputs=len(encrypted),
        input_bytes=sum(ciphertext.bytes for ciphertext in encrypted),
        output_bytes=result.bytes,
        key_bytes=server.key_bytes,
        largest_output=float(np.abs(clear.output).max()),
        difference=float(np.abs(output - clear.output).max()),
    )


def _client_and_server(parameters: ckks.Parameters, layout: Layout) -> tuple[ckks.Client, ckks.Server]:
    client = ckks.Client(parameters)
    return client, client.server(layout.rotations)


def _sent(clear: Head, layout: Layout) -> list[Numbers]:
    """What the client encrypts: the stream, or queries, keys and values where qk_norm stands between."""
    if clear.maps:
        return layout.packed(clear.stream)
    return [layout.repeated(part) for part in (clear.query, clear.key, clear.value)]


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started

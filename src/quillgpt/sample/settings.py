"""What can be asked of sampling, and its limits: every violation is one line, before a model is loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quillgpt.errors import ConfigError

MAX_TEMPERATURE = 2.0
MAX_NEW_TOKENS = 100_000
MAX_SAMPLES = 1_000
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1_000
MAX_PROMPT_BYTES = 1_000_000

LIMITS = {
    "temperature": f"0 (always the likeliest token), or above 0 and at most {MAX_TEMPERATURE:g}",
    "top_k": "0 (off) or more; above the vocabulary is the vocabulary",
    "top_p": "above 0 and at most 1 (off)",
    "max_new_tokens": f"1 to {MAX_NEW_TOKENS:,}",
    "num_samples": f"1 to {MAX_SAMPLES:,}",
    "seed": "0 to 2^63 - 1",
    "stop": f"at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS:,} characters",
    "prompt": f"at most {MAX_PROMPT_BYTES:,} bytes of UTF-8",
}
"""What is possible for each setting, in the words of its error message and of docs/sampling.md."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How text is sampled; a value outside of `LIMITS` is a `ConfigError`."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    max_new_tokens: int = 200
    num_samples: int = 1
    seed: int = 1337
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            self._require(name, _is_number(getattr(self, name)))
        for name in ("top_k", "max_new_tokens", "num_samples", "seed"):
            self._require(name, type(getattr(self, name)) is int)
        self._require("temperature", 0.0 <= self.temperature <= MAX_TEMPERATURE)
        self._require("top_k", self.top_k >= 0)
        self._require("top_p", 0.0 < self.top_p <= 1.0)
        self._require("max_new_tokens", 1 <= self.max_new_tokens <= MAX_NEW_TOKENS)
        self._require("num_samples", 1 <= self.num_samples <= MAX_SAMPLES)
        self._require("seed", 0 <= self.seed < 2**63)
        self._require("stop", type(self.stop) is tuple and len(self.stop) <= MAX_STOPS)
        self._require("stop", all(_is_stop(string) for string in self.stop))

    def _require(self, name: str, holds: bool) -> None:
        if not holds:
            value = _shortened(repr(getattr(self, name)))
            raise ConfigError(f"{name} = {value} is not possible: expected {LIMITS[name]}")


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that is too long or holds lone surrogates, before it is cut into tokens."""
    size = len(prompt)  # at least so many bytes; encoding gigabytes only to refuse them would be slow
    if size <= MAX_PROMPT_BYTES:
        try:
            size = len(prompt.encode())
        except UnicodeEncodeError as error:
            what = f"{prompt[error.start]!r} at character {error.start}"
            raise ConfigError(f"the prompt is not valid UTF-8: {what}") from None
    if size > MAX_PROMPT_BYTES:
        raise ConfigError(f"the prompt of {size:,} bytes is too long: expected {LIMITS['prompt']}")


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """The stop strings of one string or a sequence of them."""
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _is_number(value: object) -> bool:
    # True is an int and `NaN <= 0` is False, so that a range check alone would let both pass
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _is_stop(string: object) -> bool:
    if not isinstance(string, str) or not 1 <= len(string) <= MAX_STOP_CHARACTERS:
        return False
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in string)


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

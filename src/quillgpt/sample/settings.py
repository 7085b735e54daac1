"""The settings of sampling and their limits, checked before a model is loaded; without torch."""

import re
from dataclasses import dataclass

from quillgpt.errors import ConfigError, require

MAX_TEMPERATURE = 2.0
MAX_NEW_TOKENS = 100_000
MAX_SAMPLES = 1_000
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1_000
MAX_PROMPT_BYTES = 1_000_000
LIMITS = {
    "temperature": f"0 (always the most likely token), or > 0 and <= {MAX_TEMPERATURE:g}",
    "top_k": ">= 0; 0 is off",
    "top_p": "> 0 and <= 1; 1 is off",
    "max_new_tokens": f"1 to {MAX_NEW_TOKENS:,}",
    "num_samples": f"1 to {MAX_SAMPLES:,}",
    "seed": "0 to 2^63 - 1",
    "stop": f"at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS:,} characters",
    "prompt": f"at most {MAX_PROMPT_BYTES:,} bytes of UTF-8",
}
"""The valid values of each setting, as its error message and docs/sampling.md state them."""


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
        valid = {
            "temperature": _is_number(self.temperature) and 0.0 <= self.temperature <= MAX_TEMPERATURE,
            "top_k": type(self.top_k) is int and self.top_k >= 0,
            "top_p": _is_number(self.top_p) and 0.0 < self.top_p <= 1.0,
            "max_new_tokens": type(self.max_new_tokens) is int and 1 <= self.max_new_tokens <= MAX_NEW_TOKENS,
            "num_samples": type(self.num_samples) is int and 1 <= self.num_samples <= MAX_SAMPLES,
            "seed": type(self.seed) is int and 0 <= self.seed < 2**63,
            "stop": type(self.stop) is tuple and len(self.stop) <= MAX_STOPS and all(map(_is_stop, self.stop)),
        }
        for name, holds in valid.items():
            require(name, getattr(self, name), holds, LIMITS[name])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)  # a comparison with NaN is False


def _is_stop(string: object) -> bool:
    if not isinstance(string, str) or not 1 <= len(string) <= MAX_STOP_CHARACTERS:
        return False
    return not re.search(r"[\ud800-\udfff]", string)


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that is too long or holds lone surrogates, before it is encoded."""
    size = len(prompt)  # a lower bound; encoding gigabytes only to refuse them would be slow
    if size <= MAX_PROMPT_BYTES:
        try:
            size = len(prompt.encode())
        except UnicodeEncodeError as error:
            what = f"{prompt[error.start]!r} at character {error.start}"
            raise ConfigError(f"the prompt is not valid UTF-8: {what}") from None
    if size > MAX_PROMPT_BYTES:
        raise ConfigError(f"the prompt of {size:,} bytes is too long (must be {LIMITS['prompt']})")

"""LoRA adapters and their base model, which a checkpoint names but does not copy.

The base is opened where it is found and compared by the SHA-256 of its weights; with others the adapters are noise.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from quillgpt.config import LoraConfig
from quillgpt.errors import CheckpointError, QuillError
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import merge_adapters
from quillgpt.pretrained.source import Source


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base model of adapters, as a checkpoint's manifest names it.

    init: the setting. found: the path or name it stood for. relative_path: that path as seen from the checkpoint, so
    that a folder of runs can be moved. weights: SHA-256. model: its settings.
    """

    init: str
    found: str
    relative_path: str
    weights: str
    model: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The entry `adapter` of a manifest: the settings of a run's adapters, and their base."""

    settings: LoraConfig
    base: Base

    def for_checkpoint(self, path: Path) -> "Adapter":
        """Return the entry for the manifest of a checkpoint at this path, with the base's path relative to it."""
        relative_path = self.base.relative_path
        if Path(self.base.found).exists():
            with contextlib.suppress(ValueError):  # on another drive of Windows
                relative_path = os.path.relpath(self.base.found, path)
        return dataclasses.replace(self, base=dataclasses.replace(self.base, relative_path=relative_path))


def adapter_of(settings: LoraConfig, source: Source, *, init: str) -> Adapter:
    """Return the manifest entry of adapters that are trained on the source's weights."""
    model = dataclasses.asdict(source.config)
    base = Base(init=init, found=source.name, relative_path="", weights=source.fingerprint, model=model)
    return Adapter(settings=settings, base=base)


def find_base(base: Base, checkpoint: Path, open_model: Callable[[str], Source]) -> Source:
    """Open the base of a checkpoint's adapters; a missing one, or one with other weights, is a `CheckpointError`.

    Tried in this order: its path relative to the checkpoint, its path, and the setting `init`.
    """
    relative = [os.path.normpath(checkpoint / base.relative_path)] if base.relative_path else []
    reasons = []
    for place in dict.fromkeys([*relative, base.found, base.init]):
        try:
            source = open_model(place)
            found = source.fingerprint
        except QuillError as error:
            reasons.append(str(error).partition(";")[0])
            continue
        if found == base.weights:
            return source
        reasons.append(f"{source.name} has other weights (SHA-256 {found[:12]})")
    expected = f"its adapters belong to the weights {base.weights[:12]} of {base.found}"
    raise CheckpointError(f"{checkpoint}: {expected}, but {reasons[0]}; restore those, or train the adapters again")


def adapted(
    source: Source, adapter: Adapter, open_base: Callable[[], Source], read_tensors: Callable[[], Mapping[str, Tensor]]
) -> Source:
    """Return the source of a checkpoint of adapters: the base's weights with the adapters merged into them.

    Its fingerprint is `merged_fingerprint`.
    """
    base = functools.cache(open_base)

    def finish(model: GPT) -> None:
        base().finish(model)  # merges the base's own adapters
        try:
            merge_adapters(model, read_tensors(), adapter.settings)
        except ValueError as error:
            raise CheckpointError(f"{source.name}: its adapters do not fit the model: {error}") from None

    merged = merged_fingerprint(adapter, source.known_fingerprint)
    return dataclasses.replace(source, open_weights=lambda: base().weights, finish=finish, known_fingerprint=merged)


def merged_fingerprint(adapter: Adapter, file_sha256: str) -> str:
    """SHA-256 (hex) that identifies merged weights, of the base's weights, the adapters' file and their settings."""
    settings = adapter.settings
    parts = (adapter.base.weights, file_sha256, settings.lora_rank, settings.lora_alpha)
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

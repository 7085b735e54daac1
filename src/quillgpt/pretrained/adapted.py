"""LoRA's adapters and the base they belong to: a base is named, not copied, and opened where it lies.

Whatever lies there is compared by the SHA-256 of its weights; adapters beside other weights would be noise.
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
    """The model that adapters were trained beside, as a checkpoint's manifest names it.

    init: what was asked for. found: what that was at the time, and `beside` the way to it from the checkpoint's
    directory, so that a folder of runs may be moved as a whole. weights: SHA-256. model: its settings.
    """

    init: str
    found: str
    beside: str
    weights: str
    model: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A manifest's entry `adapter`: the settings of a run's adapters and the base they belong to."""

    settings: LoraConfig
    base: Base

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> "Adapter":
        """The entry as it stands in the manifest; another content is a `TypeError`, `KeyError` or `ConfigError`."""
        return cls(settings=LoraConfig(**entry["settings"]), base=Base(**entry["base"]))

    def entry(self, checkpoint: Path) -> dict[str, Any]:
        """What `read` reads, for a checkpoint that will have this path."""
        entry = dataclasses.asdict(self)
        if Path(self.base.found).exists():
            with contextlib.suppress(ValueError):  # on another drive of Windows
                entry["base"]["beside"] = os.path.relpath(self.base.found, checkpoint)
        return entry


def adapter_of(settings: LoraConfig, source: Source, *, init: str) -> Adapter:
    """What is to be known of adapters that are trained beside the source's weights."""
    model = dataclasses.asdict(source.config)
    base = Base(init=init, found=source.name, beside="", weights=source.fingerprint, model=model)
    return Adapter(settings=settings, base=base)


def find_base(base: Base, checkpoint: Path, open_model: Callable[[str], Source]) -> Source:
    """Open the base of a checkpoint's adapters; one that is gone or has other weights is a `CheckpointError`.

    It is looked for where it was, as seen from the checkpoint and from here, and then by what was asked for.
    """
    beside = [os.path.normpath(checkpoint / base.beside)] if base.beside else []
    reasons = []
    for place in dict.fromkeys([*beside, base.found, base.init]):
        try:
            source = open_model(place)
            found = source.fingerprint
        except QuillError as error:
            reasons.append(str(error).partition(";")[0])
            continue
        if found == base.weights:
            return source
        reasons.append(f"{source.name} has other weights (SHA-256 {found[:12]})")
    wanted = f"its adapters belong to the weights {base.weights[:12]} of {base.found}"
    raise CheckpointError(f"{checkpoint}: {wanted}, but {reasons[0]}; bring those back, or train the adapters anew")


def adapted(
    source: Source, adapter: Adapter, open_base: Callable[[], Source], read_tensors: Callable[[], Mapping[str, Tensor]]
) -> Source:
    """A checkpoint of adapters as what a model is loaded from: the base's weights, and the adapters merged into them.

    Its fingerprint stands for the merged weights: made from the base's, the adapters' file's, and the settings.
    """
    base = functools.cache(open_base)

    def finish(model: GPT) -> None:
        base().finish(model)  # where the base has adapters itself
        try:
            merge_adapters(model, read_tensors(), adapter.settings)
        except ValueError as error:
            raise CheckpointError(f"{source.name}: its adapters do not fit the model: {error}") from None

    merged = merged_fingerprint(adapter, source.known_fingerprint)
    return dataclasses.replace(source, open_weights=lambda: base().weights, finish=finish, known_fingerprint=merged)


def merged_fingerprint(adapter: Adapter, file_sha256: str) -> str:
    """What stands for the weights that a file of adapters makes of its base."""
    settings = adapter.settings
    parts = (adapter.base.weights, file_sha256, settings.lora_rank, settings.lora_alpha)
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

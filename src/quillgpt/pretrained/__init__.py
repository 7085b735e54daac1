"""Weights made elsewhere: OpenAI's from the hub, Hugging Face directories, nanoGPT's ckpt.pt.

`open_foreign` says what a name or a path means. To add a published model: a line in `PUBLISHED` (hub.py) and its shape
in `SIZES`; it must be a GPT-2 in Hugging Face's format.
"""

from pathlib import Path

from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.pretrained.hub import PUBLISHED, open_published
from quillgpt.pretrained.hugging_face import CONFIG, open_hugging_face
from quillgpt.pretrained.nanogpt import CKPT, open_nanogpt
from quillgpt.pretrained.source import Source

OURS = ("manifest.json", "checkpoints")
"""what a checkpoint and a run have inside"""


def open_foreign(where: str | Path) -> Source | None:
    """The source of a published name or of another project's path; None for what may be a run or a checkpoint of ours.

    A `Path` and a string with a slash are never names, but for openai-community/NAME. A plain name that is also a model
    in this directory is refused: both are natural, and neither may be taken in silence.
    """
    path = Path(where)
    name = where if isinstance(where, str) else ""
    by_repository = {published.repository: name for name, published in PUBLISHED.items()}
    if name in by_repository:
        return open_published(by_repository[name])
    if name in PUBLISHED:
        if path.is_file() or any((path / inside).exists() for inside in (*OURS, CONFIG, CKPT)):
            remedy = f"write ./{name} for it, or {PUBLISHED[name].repository} for OpenAI's weights"
            raise ConfigError(f"{name} is a published model and also something in this directory; {remedy}")
        return open_published(name)
    if (path / "manifest.json").is_file():
        return None
    if (path / CONFIG).is_file():
        return open_hugging_face(path)
    if path.is_file() and path.suffix in (".safetensors", ".json", ".toml"):
        raise CheckpointError(f"{path}: a part of a model; name the directory that holds it")
    return open_nanogpt(path) if path.is_file() or (path / CKPT).is_file() else None


__all__ = ["PUBLISHED", "Source", "open_foreign"]

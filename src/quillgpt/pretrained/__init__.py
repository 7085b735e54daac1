"""Models of other projects: OpenAI's weights from the hub, Hugging Face directories, nanoGPT's ckpt.pt.

To add a published model: a line in `PUBLISHED` (published.py) and its shape in `SIZES`; it must be a GPT-2 in Hugging
Face's format.
"""

from pathlib import Path

from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.pretrained.hugging_face import CONFIG, open_hugging_face
from quillgpt.pretrained.nanogpt import CKPT, open_nanogpt
from quillgpt.pretrained.published import PUBLISHED, open_published
from quillgpt.pretrained.source import Source

OUR_FILES = ("manifest.json", "checkpoints")
"""what a checkpoint or a run contains"""


def open_foreign(where: str | Path) -> Source | None:
    """Open a published model or a path with another project's model; None for what may be a run or checkpoint of ours.

    A `Path` and a string with a slash are never names, except openai-community/NAME. A plain name that is also a model
    in this directory is a `ConfigError`, because it could mean either.
    """
    path = Path(where)
    name = where if isinstance(where, str) else ""
    by_repository = {published.repository: name for name, published in PUBLISHED.items()}
    if name in by_repository:
        return open_published(by_repository[name])
    if name in PUBLISHED:
        if path.is_file() or any((path / inside).exists() for inside in (*OUR_FILES, CONFIG, CKPT)):
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


__all__ = ["PUBLISHED", "open_foreign"]

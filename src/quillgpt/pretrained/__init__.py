"""Weights made elsewhere: OpenAI's from the hub, Hugging Face directories, nanoGPT's ckpt.pt.

`open_foreign` says what a name or path means. To add a published model: a line in `PUBLISHED`; it must be a GPT-2 in
Hugging Face's format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quillgpt.pretrained.hugging_face import CONFIG, open_hugging_face
from quillgpt.pretrained.source import Source


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model on the hub: its repository, the full hash of one commit, and the SHA-256 of its model.safetensors."""

    repository: str
    revision: str
    sha256: str


PUBLISHED: Mapping[str, Published] = {
    "gpt2": Published(
        repository="openai-community/gpt2",
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        sha256="248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "gpt2-medium": Published(
        repository="openai-community/gpt2-medium",
        revision="6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
        sha256="",
    ),
    "gpt2-large": Published(
        repository="openai-community/gpt2-large",
        revision="32b71b12589c2f8d625668d2335a01cac3249519",
        sha256="",
    ),
    "gpt2-xl": Published(
        repository="openai-community/gpt2-xl",
        revision="15ea56dee5df4983c59b2538573817e1667135e2",
        sha256="",
    ),
}
"""OpenAI's four, at the newest commits when this was written.

The hashes are those under which the hub's own client keeps them on other people's machines: many public repositories
name them, `huggingface_hub`'s documentation the first. A SHA-256 is given where it could be found in several.
"""


def open_foreign(where: str | Path) -> Source | None:
    """The source of a path that is another project's; None for what may be a run or a checkpoint of ours."""
    path = Path(where)
    if (path / CONFIG).is_file():
        return open_hugging_face(path)
    return None

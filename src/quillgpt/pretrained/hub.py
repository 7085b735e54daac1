"""OpenAI's weights from the Hugging Face hub: one commit, few files, kept in the hub's own cache.

`huggingface_hub` keeps the files where HF_HOME says and stays off the network where HF_HUB_OFFLINE is set. A file that
is in the cache is used without asking anybody.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quillgpt import files
from quillgpt.errors import CheckpointError
from quillgpt.model.sizes import SIZES
from quillgpt.pretrained.hugging_face import CONFIG, SAFETENSORS, hugging_face_weights, read_config
from quillgpt.pretrained.source import Source, Weights
from quillgpt.tokenizer import Tokenizer, load_tokenizer
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT
from quillgpt.tokenizer.vocabulary_files import MERGES, VOCABULARY

FILES = (CONFIG, VOCABULARY, MERGES, SAFETENSORS)
TIMEOUT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model on the hub."""

    repository: str
    revision: str
    """the full hash of one commit"""
    sha256: str = ""
    """that of its model.safetensors, where known"""


PUBLISHED: Mapping[str, Published] = {
    "gpt2": Published(
        repository="openai-community/gpt2",
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        sha256="248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "gpt2-medium": Published(
        repository="openai-community/gpt2-medium", revision="6dcaa7a952f72f9298047fd5137cd6e4f05f41da"
    ),
    "gpt2-large": Published(
        repository="openai-community/gpt2-large", revision="32b71b12589c2f8d625668d2335a01cac3249519"
    ),
    "gpt2-xl": Published(
        repository="openai-community/gpt2-xl",
        revision="15ea56dee5df4983c59b2538573817e1667135e2",
        sha256="0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
    ),
}
"""OpenAI's four, each at one commit; its shape is that of the same name in `SIZES`.

The hashes were not taken from the hub itself but from public repositories that name them as what the hub gave them:
nine and more for each commit, with no other candidate (that of gpt2 also stands in huggingface_hub's documentation),
and several for each SHA-256. For the other two files none was found.
"""


def open_published(name: str) -> Source:
    """A model of the menu; nothing is fetched before its weights or its tokenizer are wanted."""
    published = PUBLISHED[name]
    return Source(
        name=name,
        config=SIZES[name],
        tokenizer_name="gpt2",
        known_fingerprint=published.sha256,
        known_tokenizer_fingerprint=GPT2_FINGERPRINT,
        open_weights=lambda: _weights(name, published),
        open_tokenizer=lambda: _tokenizer(published),
    )


def fetched(name: str, published: Published) -> Path:
    """The directory in the hub's cache that holds the model's files; those that are missing are fetched."""
    paths = [_fetched_file(name, published, file) for file in FILES]
    return paths[0].parent


def cached(published: Published, file: str) -> Path | None:
    """A file of the model that is in the hub's cache already."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(published.repository, file, revision=published.revision)
    return Path(found) if isinstance(found, str) else None


def _fetched_file(name: str, published: Published, file: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    found = cached(published, file)
    if found is not None:
        return found
    where = {"repo_id": published.repository, "filename": file, "revision": published.revision}
    # OSError: no network, no space, a refusal; ValueError: a wrong HF_ENDPOINT; RuntimeError: the hub's fast transfer
    try:
        # asked once: the download by itself would try five times, for 24 seconds, where there is no network
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(**where), timeout=TIMEOUT_SECONDS)
        return Path(huggingface_hub.hf_hub_download(**where, etag_timeout=TIMEOUT_SECONDS))
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    cache = huggingface_hub.constants.HF_HUB_CACHE
    tried = f"{name}: {file} is not in {cache} and cannot be fetched from {published.repository} ({reason})"
    command = (
        f"hf download {published.repository} {' '.join(FILES)} --revision {published.revision} --local-dir DIRECTORY"
    )
    raise CheckpointError(f"{tried}; where there is a network run `{command}`, and give DIRECTORY instead of the name")


def _weights(name: str, published: Published) -> Weights:
    directory = fetched(name, published)
    path = directory / SAFETENSORS
    config = read_config(directory / CONFIG)
    if config != SIZES[name]:
        raise CheckpointError(f"{directory / CONFIG}: not the shape of {name}; delete the file, it is fetched again")
    expected = published.sha256 or _hash_in_name(path)
    if expected and files.file_sha256(path) != expected:
        raise CheckpointError(f"{path}: damaged: not the content that was published; delete it, it is fetched again")
    return hugging_face_weights(directory)


def _hash_in_name(path: Path) -> str:
    """The SHA-256 that the hub's cache names a large file by, where the link to it says so."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""


def _tokenizer(published: Published) -> Tokenizer:
    """GPT-2's tokenizer from the hub's cache, or as `load_tokenizer` finds it."""
    vocabulary, merges = cached(published, VOCABULARY), cached(published, MERGES)
    return load_tokenizer(vocabulary.parent if vocabulary and merges else "gpt2")

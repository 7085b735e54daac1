"""OpenAI's weights from the Hugging Face hub: four files of one commit, kept in the hub's own cache.

`huggingface_hub` keeps the files in HF_HOME, and makes no request if HF_HUB_OFFLINE is set. A file in the cache is used
without a request.
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
from quillgpt.tokenizer.load import MERGES, VOCABULARY

FILES = (CONFIG, VOCABULARY, MERGES, SAFETENSORS)
TIMEOUT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model on the hub, at one commit."""

    repository: str
    revision: str
    """the full hash of the commit"""
    sha256: str = ""
    """SHA-256 (hex) of its model.safetensors, if known"""


PUBLISHED: Mapping[str, HubModel] = {
    "gpt2": HubModel(
        repository="openai-community/gpt2",
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        sha256="248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "gpt2-medium": HubModel(
        repository="openai-community/gpt2-medium", revision="6dcaa7a952f72f9298047fd5137cd6e4f05f41da"
    ),
    "gpt2-large": HubModel(
        repository="openai-community/gpt2-large", revision="32b71b12589c2f8d625668d2335a01cac3249519"
    ),
    "gpt2-xl": HubModel(
        repository="openai-community/gpt2-xl",
        revision="15ea56dee5df4983c59b2538573817e1667135e2",
        sha256="0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
    ),
}
"""OpenAI's four models; the shape of each is that of the same name in `SIZES`.

The hashes are from public repositories that quote what the hub gave them, not from the hub itself: at least nine for
each commit, without contradiction (that of gpt2 is also in huggingface_hub's documentation), and several for each
SHA-256. For the other two files none was found.
"""


def open_published(name: str) -> Source:
    """Open a model of the menu; nothing is fetched before its weights or its tokenizer are needed."""
    published = PUBLISHED[name]
    return Source(
        name=name,
        config=SIZES[name],
        tokenizer_name="gpt2",
        known_fingerprint=published.sha256,
        open_weights=lambda: _weights(name, published),
        open_tokenizer=lambda: _tokenizer(published),
    )


def _cached(published: HubModel, file: str) -> Path | None:
    """A file of the model in the hub's cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(published.repository, file, revision=published.revision)
    return Path(found) if isinstance(found, str) else None


def _fetch(name: str, published: HubModel, file: str) -> Path:
    """A file of the model in the hub's cache; it is downloaded if it is missing."""
    import huggingface_hub
    from huggingface_hub import errors

    found = _cached(published, file)
    if found is not None:
        return found
    where = {"repo_id": published.repository, "filename": file, "revision": published.revision}
    # OSError: no network, no space, a refusal; ValueError: a wrong HF_ENDPOINT; RuntimeError: the hub's fast transfer
    try:
        # One request first: without a network, the download alone would try five times, for 24 seconds.
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(**where), timeout=TIMEOUT_SECONDS)
        return Path(huggingface_hub.hf_hub_download(**where, etag_timeout=TIMEOUT_SECONDS))
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    cache = huggingface_hub.constants.HF_HUB_CACHE
    failed = f"{name}: {file} is not in {cache} and cannot be fetched from {published.repository} ({reason})"
    arguments = f"{published.repository} {' '.join(FILES)} --revision {published.revision} --local-dir DIRECTORY"
    remedy = f"with a network, run `hf download {arguments}`, and give DIRECTORY instead of the name"
    raise CheckpointError(f"{failed}; {remedy}")


def _weights(name: str, published: HubModel) -> Weights:
    paths = [_fetch(name, published, file) for file in FILES]
    directory, path = paths[0].parent, paths[-1]
    config = read_config(directory / CONFIG)
    if config != SIZES[name]:
        raise CheckpointError(f"{directory / CONFIG}: not the shape of {name}; delete the file, it is fetched again")
    hash_in_name = re.fullmatch(r"[0-9a-f]{64}", path.resolve().name)  # the hub's cache links to a file of that name
    expected = published.sha256 or (hash_in_name[0] if hash_in_name else "")
    if expected and files.file_sha256(path) != expected:
        raise CheckpointError(f"{path}: damaged: not the published content; delete it, it is fetched again")
    return hugging_face_weights(directory)


def _tokenizer(published: HubModel) -> Tokenizer:
    """GPT-2's tokenizer from the hub's cache, or as `load_tokenizer` finds it."""
    vocabulary, merges = _cached(published, VOCABULARY), _cached(published, MERGES)
    return load_tokenizer(vocabulary.parent if vocabulary and merges else "gpt2")

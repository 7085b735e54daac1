"""OpenAI's four models by name: their sizes, the hub's cache, no network, and names that could mean two things."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from saved_models import SMALL, difference, random_model, tokens
from transformers import GPT2Config, GPT2LMHeadModel

from quillgpt.checkpoint import load_model, open_model
from quillgpt.config import ModelConfig
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.model.sizes import PUBLISHED_PARAMETERS, SIZES, parameter_count
from quillgpt.pretrained import published as hub
from quillgpt.pretrained.published import PUBLISHED, HubModel
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT


def test_each_model_has_the_published_number_of_parameters_here_and_in_transformers() -> None:
    for name in PUBLISHED:
        config = open_model(name).config
        with torch.device("meta"):
            theirs = GPT2LMHeadModel(GPT2Config(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd))
        assert parameter_count(config) == PUBLISHED_PARAMETERS[name]
        assert sum(parameter.numel() for parameter in theirs.parameters()) == PUBLISHED_PARAMETERS[name]


def test_each_model_is_pinned_and_opens_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_fetch", None)
    assert PUBLISHED.keys() == SIZES.keys()
    for name, published in PUBLISHED.items():
        assert len(bytes.fromhex(published.revision)) == 20
        assert len(bytes.fromhex(published.sha256)) in (0, 32)
        assert published.repository == f"openai-community/{name}"
        for where in (name, published.repository):
            source = open_model(where)
            assert (source.name, source.config) == (name, SIZES[name])
            assert source.tokenizer_fingerprint == GPT2_FINGERPRINT


Cache = Callable[[str], tuple[GPT2LMHeadModel, Path]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Put a small model into the hub's cache in the place of a published one; nothing can be fetched."""

    def no_network(*arguments: object, **named: object) -> None:
        raise ConnectionError("no route to host\nand a second line")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_network)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)

    def put(name: str) -> tuple[GPT2LMHeadModel, Path]:
        theirs, published = random_model(**SMALL), PUBLISHED[name]
        snapshot = tmp_path / f"models--openai-community--{name}" / "snapshots" / published.revision
        snapshot.mkdir(parents=True)
        theirs.save_pretrained(snapshot)
        (snapshot / "vocab.json").write_text("{}")
        (snapshot / "merges.txt").write_text("")
        config = ModelConfig(n_layer=2, n_head=4, n_embd=64, context_length=32, vocab_size=301)
        monkeypatch.setattr(hub, "SIZES", {**SIZES, name: config})
        digest = hashlib.sha256((snapshot / "model.safetensors").read_bytes()).hexdigest()
        pinned = HubModel(repository=published.repository, revision=published.revision, sha256=digest)
        monkeypatch.setitem(PUBLISHED, name, pinned)
        return theirs, snapshot

    return put


def test_a_cached_model_loads_without_a_network(cache: Cache) -> None:
    theirs, _ = cache("gpt2-medium")
    assert difference(load_model("gpt2-medium")[0], theirs, tokens(32)) < 1e-5


def test_without_a_network_the_error_says_how_to_place_the_files(cache: Cache) -> None:
    _, snapshot = cache("gpt2")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as raised:
        load_model("gpt2")
    message = str(raised.value)
    for words in (
        "gpt2: model.safetensors",
        huggingface_hub.constants.HF_HUB_CACHE,
        "openai-community/gpt2",
        PUBLISHED["gpt2"].revision,
        "no route to host",
        "--local-dir DIRECTORY",
        "give DIRECTORY instead of the name",
    ):
        assert words in message
    assert "\n" not in message


def test_hf_hub_offline_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read from the environment at import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"^gpt2-xl: config\.json is not in .*offline mode is enabled.*$"):
        load_model("gpt2-xl")


def test_a_file_with_another_sha256_or_shape_is_refused(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, snapshot = cache("gpt2")
    path = snapshot / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["transformer.ln_f.bias"] += 1e-3
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"damaged: not the published content"):
        load_model("gpt2")
    config = snapshot / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_head": 2}))
    with pytest.raises(CheckpointError, match="not the shape of gpt2"):
        load_model("gpt2")
    # Without a pinned SHA-256, it is the name of the file in the cache, to which the snapshot links.
    _, snapshot = cache("gpt2-xl")
    published = PUBLISHED["gpt2-xl"]
    monkeypatch.setitem(PUBLISHED, "gpt2-xl", HubModel(repository=published.repository, revision=published.revision))
    path, blob = snapshot / "model.safetensors", tmp_path / published.sha256
    path.rename(blob)
    path.symlink_to(blob)
    load_model("gpt2-xl")
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model("gpt2-xl")


def test_a_name_that_is_also_a_model_here_is_refused_but_both_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, inside in enumerate(("config.json", "manifest.json", "checkpoints/x", "ckpt.pt", "")):
        here = tmp_path / str(number)
        path = here / "gpt2" / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        monkeypatch.chdir(here)
        with pytest.raises(ConfigError, match=r"write \./gpt2 for it, or openai-community/gpt2 for OpenAI's"):
            open_model("gpt2")
        assert open_model("openai-community/gpt2").config == SIZES["gpt2"]
        for where in ("./gpt2", Path("gpt2"), str(here / "gpt2")):
            with pytest.raises(CheckpointError, match="gpt2"):  # what is here is not a model
                open_model(where)
    other = tmp_path / "other"
    (other / "gpt2" / "notes").mkdir(parents=True)  # nothing of a model
    monkeypatch.chdir(other)
    assert open_model("gpt2").config == SIZES["gpt2"]


def test_a_part_of_a_model_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "config.toml"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(CheckpointError, match=f"{name}: a part of a model; name the directory that holds it"):
            open_model(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"nothing: no such run.*gpt2, gpt2-medium, gpt2-large, gpt2-xl"):
        open_model("nothing")


def test_only_the_needed_files_are_fetched_at_the_pinned_commit(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs, snapshot = cache("gpt2")
    (snapshot / "flax_model.msgpack").touch()
    on_the_hub = tmp_path / "hub"
    snapshot.rename(on_the_hub)
    snapshot.mkdir()
    requests = []

    def download(repo_id: str, filename: str, revision: str, etag_timeout: float) -> str:
        requests.append((repo_id, filename, revision))
        assert 1 <= etag_timeout <= 60
        (on_the_hub / filename).rename(snapshot / filename)
        return str(snapshot / filename)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert difference(load_model("gpt2")[0], theirs, tokens(32)) < 1e-5
    needed = ("config.json", "model.safetensors", "vocab.json", "merges.txt")
    revision = PUBLISHED["gpt2"].revision
    assert sorted(requests) == sorted(("openai-community/gpt2", name, revision) for name in needed)

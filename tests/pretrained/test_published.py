"""OpenAI's four by name: their numbers of parameters, the hub's cache, no network, and names that mean two things."""

import hashlib
import json
import os
import subprocess
import sys
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
from quillgpt.pretrained import hub
from quillgpt.pretrained.hub import PUBLISHED, Published
from quillgpt.tokenizer.byte_level import GPT2_FINGERPRINT

every_name = pytest.mark.parametrize("name", PUBLISHED)


@every_name
def test_a_published_model_has_the_published_number_of_parameters_in_both_projects(name: str) -> None:
    config = open_model(name).config
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(GPT2Config(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd))
    assert parameter_count(config) == PUBLISHED_PARAMETERS[name]
    assert sum(parameter.numel() for parameter in theirs.parameters()) == PUBLISHED_PARAMETERS[name]


@every_name
def test_a_published_model_is_pinned_to_one_commit(name: str) -> None:
    published = PUBLISHED[name]
    assert len(bytes.fromhex(published.revision)) == 20
    assert len(bytes.fromhex(published.sha256)) in (0, 32)
    assert published.repository == f"openai-community/{name}"
    assert PUBLISHED.keys() == SIZES.keys()


@every_name
def test_opening_a_name_or_its_repository_needs_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_fetched_file", None)
    for where in (name, f"openai-community/{name}"):
        source = open_model(where)
        assert source.name == name
        assert source.config == SIZES[name]
        assert source.tokenizer_fingerprint == GPT2_FINGERPRINT


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[GPT2LMHeadModel, Path]]:
    """Puts a small model into the hub's cache in the place of a published one; nothing can be fetched."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", _no_network)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", _no_network)

    def put(name: str, **changes: object) -> tuple[GPT2LMHeadModel, Path]:
        theirs = random_model(**SMALL)
        published = PUBLISHED[name]
        snapshot = tmp_path / f"models--openai-community--{name}" / "snapshots" / published.revision
        snapshot.mkdir(parents=True)
        theirs.save_pretrained(snapshot)
        (snapshot / "vocab.json").write_text("{}")
        (snapshot / "merges.txt").write_text("")
        config = ModelConfig(n_layer=2, n_head=4, n_embd=64, context_length=32, vocab_size=301)
        monkeypatch.setattr(hub, "SIZES", {**SIZES, name: config})
        digest = hashlib.sha256((snapshot / "model.safetensors").read_bytes()).hexdigest()
        pinned = Published(repository=published.repository, revision=published.revision, sha256=digest)
        monkeypatch.setitem(PUBLISHED, name, pinned)
        return theirs, snapshot

    return put


def _no_network(*arguments: object, **named: object) -> None:
    raise ConnectionError("no route to host\nand a second line")


def test_what_the_hub_has_cached_loads_without_a_network(cache: Callable) -> None:
    theirs, _ = cache("gpt2-medium")
    ours, _ = load_model("gpt2-medium")
    assert difference(ours, theirs, tokens(32)) < 1e-5


def test_without_a_network_one_line_says_where_it_looked_and_how_to_place_the_files(cache: Callable) -> None:
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


def test_the_offline_switch_of_the_hub_is_heeded_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "quillgpt", "sample", "gpt2-xl", "-p", "Hello"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path)
    assert result.returncode == 65
    assert result.stderr.count("\n") == 1
    assert "offline" in result.stderr.lower()


def test_a_file_that_is_not_the_published_one_is_refused(cache: Callable) -> None:
    _, snapshot = cache("gpt2")
    path = snapshot / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["transformer.ln_f.bias"] += 1e-3
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"damaged: not the content that was published"):
        load_model("gpt2")


def test_a_damaged_file_is_told_by_the_name_the_cache_gives_it(
    cache: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where no SHA-256 is pinned: the cache names a large file by it and links to that."""
    _, snapshot = cache("gpt2-xl")
    published = PUBLISHED["gpt2-xl"]
    monkeypatch.setitem(PUBLISHED, "gpt2-xl", Published(repository=published.repository, revision=published.revision))
    path, blob = snapshot / "model.safetensors", tmp_path / published.sha256
    path.rename(blob)
    path.symlink_to(blob)
    load_model("gpt2-xl")
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model("gpt2-xl")


def test_another_shape_under_a_published_name_is_refused(cache: Callable) -> None:
    _, snapshot = cache("gpt2")
    path = snapshot / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_head": 2}))
    with pytest.raises(CheckpointError, match="not the shape of gpt2"):
        load_model("gpt2")


@pytest.mark.parametrize("inside", ["config.json", "manifest.json", "checkpoints/x", "ckpt.pt", ""])
def test_a_name_that_is_also_a_model_here_is_refused_and_both_are_within_reach(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "gpt2" / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"write \./gpt2 for it, or openai-community/gpt2 for OpenAI's"):
        open_model("gpt2")
    assert open_model("openai-community/gpt2").config == SIZES["gpt2"]
    for where in ("./gpt2", Path("gpt2"), str(tmp_path / "gpt2")):
        with pytest.raises(CheckpointError, match="gpt2"):  # the empty thing here, which is no model
            open_model(where)


def test_another_folder_of_that_name_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2" / "notes").mkdir(parents=True)
    assert open_model("gpt2").config == SIZES["gpt2"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "config.toml"])
def test_a_part_of_a_model_is_told_that_the_directory_is_wanted(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"{name}: a part of a model; name the directory that holds it"):
        open_model(tmp_path / name)


def test_a_name_that_is_nothing_is_told_the_published_names_and_the_runs(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing: no such run.*gpt2, gpt2-medium, gpt2-large, gpt2-xl"):
        open_model("nothing")


def test_only_the_files_that_are_needed_are_fetched_and_at_the_pinned_commit(
    cache: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs, snapshot = cache("gpt2")
    (snapshot / "flax_model.msgpack").touch()
    on_the_hub = tmp_path / "hub"
    snapshot.rename(on_the_hub)
    snapshot.mkdir()
    asked = []

    def download(repo_id: str, filename: str, revision: str, etag_timeout: float) -> str:
        asked.append((repo_id, filename, revision))
        assert 1 <= etag_timeout <= 60
        (on_the_hub / filename).rename(snapshot / filename)
        return str(snapshot / filename)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    ours, _ = load_model("gpt2")
    assert difference(ours, theirs, tokens(32)) < 1e-5
    needed = {"config.json", "model.safetensors", "vocab.json", "merges.txt"}
    assert {name for _, name, _ in asked} == needed
    assert {(repository, revision) for repository, _, revision in asked} == {
        ("openai-community/gpt2", PUBLISHED["gpt2"].revision)
    }

"""Checkpoints of a LoRA run: adapters whose base is only named, and that base gone, moved or by now another one."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from safetensors.numpy import load_file

from quillgpt import checkpoint
from quillgpt.config import LoraConfig, RunConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import CheckpointError
from quillgpt.evaluate.loss import evaluate_loss
from quillgpt.training.loop import train
from quillgpt.training.screen import Screen
from quillgpt.training.setup import open_data
from small_runs import changed, differing, newest, reseal, run_of, weights_of

RANK, ALPHA = 4, 8.0  # of the fixture lora_tuning


def base_weights() -> dict[str, np.ndarray]:
    return load_file(checkpoint.find("runs/base").path / checkpoint.MODEL)


def merged(weight: np.ndarray, adapters: dict[str, np.ndarray], layer: str, scale: float) -> np.ndarray:
    """W + scale * B A in float64."""
    a, b = (adapters[f"{layer}.lora_{part}"].astype(np.float64) for part in "ab")
    return weight.astype(np.float64) + scale * b @ a


def test_a_lora_run_saves_its_adapters_and_names_its_base(lora_tuning: RunConfig) -> None:
    train(lora_tuning)
    found, base = newest(lora_tuning), checkpoint.find("runs/base")
    assert not (found.path / checkpoint.MODEL).exists()
    assert checkpoint.MODEL not in found.manifest.files
    tensors = found.tensors(checkpoint.ADAPTER)
    assert {name.rpartition(".")[2] for name in tensors} == {"lora_a", "lora_b"}
    assert len(tensors) == 2 * 4 * lora_tuning.model.n_layer
    size = (found.path / checkpoint.ADAPTER).stat().st_size
    assert size < 1.3 * sum(4 * tensor.numel() for tensor in tensors.values()) + 2000
    assert {name.rpartition(".")[0] for name in found.tensors(checkpoint.OPTIMIZER)} == set(tensors)
    entry = found.manifest.adapter
    assert entry is not None
    assert entry.settings == LoraConfig(lora_rank=RANK, lora_alpha=ALPHA)
    assert entry.base.init == "runs/base"
    assert entry.base.weights == base.manifest.files[checkpoint.MODEL].sha256
    assert entry.base.model == dataclasses.asdict(base.manifest.model)


def test_a_loaded_lora_run_is_a_plain_model_with_w_plus_s_b_a(lora_tuning: RunConfig) -> None:
    outcome = train(lora_tuning)
    model, tokenizer = checkpoint.load_model("runs/lora")
    weights, base = model.state_dict(), base_weights()
    adapters = load_file(checkpoint.find("runs/lora").path / checkpoint.ADAPTER)
    assert tokenizer.name == "byte"
    assert weights.keys() == base.keys()
    layers = [name.removesuffix(".weight") for name in base if f"{name.removesuffix('.weight')}.lora_a" in adapters]
    assert len(layers) == 8
    for name, before in base.items():
        layer = name.removesuffix(".weight")
        expected = merged(before, adapters, layer, ALPHA / RANK).astype(np.float32) if layer in layers else before
        assert np.array_equal(expected, before) == (layer not in layers)
        assert np.array_equal(weights[name].numpy(), expected), name
    data = open_data(changed(lora_tuning, init="scratch", lora_rank=0), None, Ranks(), Screen())
    loss = evaluate_loss(model, data.validation, data.bytes_per_token, batch_size=4)
    assert loss.loss == pytest.approx(outcome.validation.loss, rel=1e-6)


def test_adapters_on_adapters_are_merged_in_turn(lora_tuning: RunConfig) -> None:
    train(lora_tuning)
    train(changed(lora_tuning, init="runs/lora", out="runs/second", lora_rank=2))
    layer = "blocks.1.mlp.expand"
    expected = weights_of("runs/lora")[f"{layer}.weight"].numpy()
    adapters = load_file(checkpoint.find("runs/second").path / checkpoint.ADAPTER)
    expected = merged(expected, adapters, layer, ALPHA / 2).astype(np.float32)
    assert np.array_equal(weights_of("runs/second")[f"{layer}.weight"].numpy(), expected)
    Path("runs/lora").rename("runs/lora-before")
    train(changed(lora_tuning, seed=5))
    with pytest.raises(CheckpointError, match=r"runs/second/.*runs/lora/checkpoints/\S+ has other weights"):
        checkpoint.load_model("runs/second")
    shutil.rmtree("runs/lora")
    Path("runs/lora-before").rename("runs/lora")
    checkpoint.load_model("runs/second")
    shutil.rmtree("runs/base")
    with pytest.raises(CheckpointError, match=r"runs/lora/.*adapters belong to the weights"):
        checkpoint.load_model("runs/second")


def test_adapters_of_a_cropped_context_are_loaded_with_it(lora_tuning: RunConfig) -> None:
    train(changed(lora_tuning, context_length=16, steps=5))
    model = checkpoint.load_model("runs/lora")[0]
    assert model.config.context_length == 16
    positions = base_weights()["position_embedding.weight"][:16]
    assert np.array_equal(model.position_embedding.weight.detach().numpy(), positions)


# A base that is gone, moved, or by now another one


def spoil(path: Path) -> None:
    """Put other weights in the same place, with a manifest that fits them."""
    tensors = checkpoint.read_checkpoint(path).tensors(checkpoint.MODEL)
    tensors["final_norm.weight"] += 1e-3
    content = safetensors.torch.save(tensors)
    (path / checkpoint.MODEL).write_bytes(content)
    record = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    reseal(path / "manifest.json", lambda manifest: manifest["files"].update({checkpoint.MODEL: record}))


def flip_a_bit(path: Path) -> None:
    content = (path / checkpoint.MODEL).read_bytes()
    (path / checkpoint.MODEL).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


WRONG: dict[Callable[[Path], object], str] = {
    spoil: r"runs/base/checkpoints/step-000020 has other weights \(SHA-256 \w{12}\)",
    flip_a_bit: r"runs/base/checkpoints/step-000020/model\.safetensors: damaged",
    shutil.rmtree: r"runs/base/checkpoints/step-000020: no such run or checkpoint",
    lambda path: path.parents[1].rename("runs/renamed"): r"runs/base/\S+: no such run or checkpoint",
}


def test_a_base_that_is_gone_or_another_is_refused_in_one_line(lora_tuning: RunConfig, base_folder: Path) -> None:
    train(changed(lora_tuning, steps=5))
    digest = checkpoint.find("runs/base").manifest.files[checkpoint.MODEL].sha256[:12]
    for wrong, reason in WRONG.items():
        wrong(Path("runs/base/checkpoints/step-000020"))
        expected = rf"runs/lora/checkpoints/step-000005: .*{digest}.* runs/base/checkpoints/step-000020, .*{reason}"
        for use in (lambda: train(lora_tuning), lambda: checkpoint.load_model("runs/lora")):
            with pytest.raises(CheckpointError, match=expected) as raised:
                use()
            assert str(raised.value).isprintable()
        assert newest(lora_tuning).step == 5
        shutil.rmtree("runs/base", ignore_errors=True)
        shutil.copytree(base_folder / "runs" / "base", "runs/base")


def test_runs_may_be_moved_and_used_from_anywhere(lora_tuning: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    train(lora_tuning)
    before = weights_of("runs/lora")
    Path("new place").mkdir()
    Path("runs").rename("new place/models")
    Path("somewhere/else").mkdir(parents=True)
    monkeypatch.chdir("somewhere/else")
    assert differing(weights_of("../../new place/models/lora"), before) == []


def test_a_base_that_was_trained_further_is_found_while_its_checkpoint_is_there(lora_tuning: RunConfig) -> None:
    train(lora_tuning)
    better = Path("runs/base/checkpoints/step-000040")
    shutil.copytree(better.with_name("step-000020"), better)
    spoil(better)
    reseal(better / "manifest.json", lambda manifest: manifest.update(step=40, val_loss=0.1))
    assert checkpoint.find("runs/base").step == 40
    train(changed(lora_tuning, steps=12))
    checkpoint.load_model("runs/lora")


def test_a_run_continues_with_the_same_base_in_another_place_and_with_no_other(lora_tuning: RunConfig) -> None:
    train(changed(lora_tuning, steps=5))
    shutil.copytree("runs/base", "copy")
    shutil.rmtree("runs/base")
    train(changed(lora_tuning, init="copy"))
    assert newest(lora_tuning).manifest.adapter.base.found == "copy/checkpoints/step-000020"
    checkpoint.load_model("runs/lora")
    shutil.copytree("copy", "runs/base")
    spoil(Path("runs/base/checkpoints/step-000020"))
    with pytest.raises(CheckpointError, match=r"--init runs/base has the weights .* of copy/checkpoints/step-000020"):
        train(changed(lora_tuning, init="runs/base", steps=12))


# A checkpoint of adapters


def test_a_damaged_adapter_file_is_reported_and_the_checkpoint_before_is_used(
    lora_tuning: RunConfig, messages: list[str]
) -> None:
    train(lora_tuning)
    path = newest(lora_tuning).path / checkpoint.ADAPTER
    content = path.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], None):
        messages.clear()
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"adapter\.safetensors.*to continue from the intact step 5,"):
            checkpoint.latest_intact(run_of(lora_tuning))
        assert checkpoint.find("runs/lora").step == 5
        assert str(path) in messages[-1]
        with pytest.raises(CheckpointError, match=r"adapter\.safetensors"):
            checkpoint.find(path.parent)


def test_a_manifest_that_does_not_fit_the_adapters_is_refused(lora_tuning: RunConfig) -> None:
    train(changed(lora_tuning, steps=5))
    path = newest(lora_tuning).path / "manifest.json"
    content = path.read_text()
    for part in ("settings", "base"):
        path.write_text(content)
        reseal(path, lambda manifest, part=part: manifest["adapter"][part].update(surprise=1))
        assert checkpoint.committed(run_of(lora_tuning)) == []
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.read_checkpoint(path.parent)
    path.write_text(content)
    reseal(path, lambda manifest: manifest["adapter"]["settings"].update(lora_rank=8))
    with pytest.raises(CheckpointError, match=r"runs/lora/.*adapters do not fit the model: blocks\.\d"):
        checkpoint.load_model(path.parent)

"""Starting from another model: what is kept, what begins anew, what is refused; and LoRA, whose base is named only."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file

import quillgpt
from quillgpt import checkpoint
from quillgpt.cli.settings import load_settings
from quillgpt.config import DataConfig, RunConfig, updated
from quillgpt.data.prepare import prepare
from quillgpt.errors import CheckpointError, ConfigError, DataError
from quillgpt.evaluate.held_out_loss import evaluate_held_out
from quillgpt.model.gpt import GPT
from quillgpt.recipes import load_recipe
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.train.loop import train
from quillgpt.train.open_data import Data, open_data
from quillgpt.train.progress import Quiet

RANK, ALPHA = 4, 8.0
LORA = {"lora_rank": RANK, "lora_alpha": ALPHA}
STILL = {"lr": 0.0, "min_lr": 0.0, "steps": 1}
"""a step that changes nothing"""


def changed(config: RunConfig, **settings: Any) -> RunConfig:
    return updated(config, settings, where="test")


def saved(config: RunConfig) -> checkpoint.Checkpoint:
    """The run's newest checkpoint."""
    return checkpoint.committed(RunDirectory(Path(config.train.out)))[-1]


def losses(config: RunConfig) -> list[object]:
    return [line["loss"] for line in read_metrics(RunDirectory(Path(config.train.out)).metrics)]


def listened() -> tuple[list[str], Quiet]:
    """A screen that keeps what is said."""
    screen = Quiet()
    said: list[str] = []
    screen.say = said.append  # type: ignore[method-assign]
    return said, screen


def refusal(config: RunConfig, error: type[Exception] = CheckpointError) -> str:
    """The one line with which a run is refused."""
    with pytest.raises(error) as raised:
        train(config)
    assert str(raised.value).isprintable()
    return str(raised.value)


@pytest.fixture(scope="session")
def base_folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/base, a small model that has learned something."""
    folder = tmp_path_factory.mktemp("base")
    flat = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32, "vocab_size": 257, "steps": 20}
    flat |= {"source": "text", "tokenizer": "byte", "data": str(prepared), "batch_size": 8, "lr": 3e-3, "min_lr": 0.0}
    flat |= {"device": "cpu", "dtype": "fp32", "compile": "off", "threads": 1, "eval_tokens": 500, "eval_every": 0}
    train(updated(RunConfig(), flat | {"out": str(folder / "runs" / "base")}, where="test"))
    return folder


@pytest.fixture
def here(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own copy of that folder, to stand in."""
    shutil.copytree(base_folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fine(small_run: RunConfig, here: Path) -> RunConfig:
    """A run of ten steps that starts from runs/base."""
    return changed(small_run, init="runs/base", out="runs/fine", steps=10, eval_every=5, save_every=5, keep_last=9)


@pytest.fixture
def lora(fine: RunConfig) -> RunConfig:
    """The same with adapters."""
    return changed(fine, out="runs/lora", **LORA)


def base_weights() -> dict[str, np.ndarray]:
    return load_file(checkpoint.find("runs/base").path / checkpoint.MODEL)


# What is kept of the source, and what begins anew


def test_weights_are_the_sources_and_step_and_optimizer_begin_anew(fine: RunConfig) -> None:
    outcome = train(changed(fine, **STILL))
    found = saved(fine)
    assert found.step == 1
    assert outcome.step == 1
    weights = found.tensors(checkpoint.MODEL)
    for name, expected in base_weights().items():
        assert np.array_equal(weights[name].numpy(), expected), name
    optimizer = found.tensors(checkpoint.OPTIMIZER)
    assert {float(value) for name, value in optimizer.items() if name.endswith(".step")} == {1.0}


def test_the_schedule_is_the_new_runs_own(fine: RunConfig) -> None:
    train(changed(fine, warmup_steps=5, lr=1e-3, min_lr=1e-4))
    rates = [line["lr"] for line in read_metrics(Path("runs/fine/metrics.jsonl"))]
    assert rates[0] < rates[4] < rates[5] == 1e-3
    assert rates[-1] < 3e-4


def test_the_run_started_from_stays_as_it_was(fine: RunConfig) -> None:
    before = {path: path.read_bytes() for path in Path("runs/base").rglob("*") if path.is_file()}
    train(fine)
    train(changed(fine, out="runs/lora", **LORA))
    assert {path: path.read_bytes() for path in Path("runs/base").rglob("*") if path.is_file()} == before


def test_a_run_is_continued_when_what_it_started_from_is_gone(fine: RunConfig, prepared: Path) -> None:
    train(changed(fine, steps=5))
    shutil.rmtree("runs/base")
    train(fine)
    assert saved(fine).step == 10
    flags = f"debug --init runs/base --out runs/fine --data {prepared}"
    assert load_settings(flags.split()).config.model == replace(fine.model, dropout=0.0)


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_a_shorter_context_sees_the_first_positions(fine: RunConfig, position: str) -> None:
    if position == "rotary":
        train(changed(fine, init="scratch", position="rotary", out="runs/base2", **STILL))
        fine = changed(fine, init="runs/base2", position="rotary")
    train(changed(fine, context_length=12, **STILL))
    long, short = (checkpoint.load_model(run)[0] for run in (fine.train.init, "runs/fine"))
    tokens = torch.randint(257, (2, 12), generator=torch.Generator().manual_seed(0))
    assert short.config.context_length == 12
    assert torch.equal(long(tokens), short(tokens))
    if position == "learned":
        assert torch.equal(short.position_embedding.weight, long.position_embedding.weight[:12])


def test_a_longer_context_is_for_rotary_positions_only(fine: RunConfig, prepared: Path) -> None:
    assert "context_length = 32 (here 64)" in refusal(changed(fine, context_length=64))
    flags = f"finetune-shakespeare --data {prepared} --context-length 64 --init"
    with pytest.raises(ConfigError, match=r"--context-length 64: runs/base/.* has 32"):
        load_settings([*flags.split(), "runs/base"])
    train(changed(fine, init="scratch", position="rotary", out="runs/rotary", **STILL))
    longer = load_settings([*flags.split(), "runs/rotary"]).config
    assert longer.model.context_length == 64
    train(changed(longer, steps=1, batch_size=1, gradient_accumulation_steps=1, threads=1, out="runs/longer"))
    assert checkpoint.load_model("runs/longer")[0].config.context_length == 64


def test_the_sources_shape_wins_over_the_recipe_in_python_and_on_the_command_line(here: Path, prepared: Path) -> None:
    by_flags = load_settings(["shakespeare-char", "--init", "runs/base", f"--data={prepared}", "--context-length=16"])
    in_python = quillgpt.load_recipe("shakespeare-char", init="runs/base", data=str(prepared), context_length=16)
    assert by_flags.config == in_python
    shape = in_python.model
    assert (shape.n_layer, shape.n_embd, shape.bias, shape.context_length, shape.vocab_size) == (2, 32, True, 16, 257)
    assert shape.dropout == 0.2  # the recipe's, because it belongs to training
    with pytest.raises(ConfigError, match=r"--n-layer 3: runs/base/checkpoints/step-000020 has 2; leave it out"):
        quillgpt.load_recipe("shakespeare-char", init="runs/base", n_layer=3)


# Tokenizer and vocabulary


@pytest.fixture
def in_characters(here: Path) -> str:
    """Data of another tokenizer."""
    Path("text.txt").write_text("to be or not to be\n" * 200)
    settings = DataConfig(source="text", path="text.txt", tokenizer="character")
    prepare(settings, vocab_size=0, out=Path("data/characters"))
    return "data/characters"


@pytest.mark.parametrize("settings", [{}, LORA], ids=["whole", "LoRA"])
def test_data_of_another_tokenizer_is_refused_naming_both_before_training(
    fine: RunConfig, in_characters: str, settings: dict[str, Any]
) -> None:
    message = refusal(changed(fine, data=in_characters, **settings), DataError)
    expected = r"data/characters was made with the tokenizer character of 257 tokens \(\w{12}\), "
    expected += (
        r"runs/base/checkpoints/step-000020 was trained with the tokenizer byte of 257 tokens \(\w{12}\); choose"
    )
    assert re.match(expected, message), message
    assert not list(Path("runs/fine/checkpoints").iterdir())


def test_another_tokenizer_than_the_sources_is_refused_and_its_own_may_be_named(here: Path, prepared: Path) -> None:
    line = f"debug --init runs/base --data {prepared} --tokenizer"
    assert load_settings([*line.split(), "byte"]).config.data.tokenizer == "byte"
    for other in ("character", "gpt2"):
        kept = r"a run that starts from runs/base/checkpoints/step-000020 keeps its tokenizer, byte; leave it out"
        with pytest.raises(ConfigError, match=rf"--tokenizer '{other}': {kept}"):
            load_settings([*line.split(), other])


def test_data_is_prepared_once_for_all_checkpoints_with_one_tokenizer(fine: RunConfig, in_characters: str) -> None:
    own = changed(fine, data="auto", path="text.txt", **STILL)
    train(own)
    shutil.copytree("runs/base", "elsewhere")
    train(changed(own, init="elsewhere", out="runs/other"))
    train(changed(own, steps=2))
    assert len(list(Path("data").glob("text-*"))) == 1
    manifest = json.loads(next(Path("data").glob("text-*/manifest.json")).read_text())
    assert manifest["tokenizer"]["name"] == "byte"


def test_text_that_is_prepared_for_the_recipe_is_not_prepared_again(small_run: RunConfig, here: Path) -> None:
    Path("text.txt").write_text("to be or not to be\n" * 2000)
    settings = {"data": "auto", "path": "text.txt", "tokenizer": "bpe", "vocab_size": 260, "eval_tokens": 100, **STILL}
    first = changed(small_run, **settings, out="runs/bpe")
    train(first)
    second = changed(first, init="runs/bpe", out="runs/tuned")
    train(second)
    shutil.rmtree("runs/bpe")
    train(changed(second, steps=2))
    assert [path.name[:12] for path in Path("data").iterdir()] == ["text-bpe260-"]


# LoRA


def test_a_lora_run_saves_its_adapters_and_names_its_base(lora: RunConfig) -> None:
    train(lora)
    found, base = saved(lora), checkpoint.find("runs/base")
    assert not (found.path / checkpoint.MODEL).exists()
    assert checkpoint.MODEL not in found.manifest["files"]
    tensors = found.tensors(checkpoint.ADAPTER)
    assert {name.rpartition(".")[2] for name in tensors} == {"lora_a", "lora_b"}
    assert len(tensors) == 2 * 4 * lora.model.n_layer
    size = (found.path / checkpoint.ADAPTER).stat().st_size
    assert size < 1.3 * sum(4 * tensor.numel() for tensor in tensors.values()) + 2000
    optimizer = {name.rpartition(".")[0] for name in found.tensors(checkpoint.OPTIMIZER)}
    assert optimizer == set(tensors)
    entry = found.manifest["adapter"]
    assert entry["settings"] == LORA
    assert entry["base"]["init"] == "runs/base"
    assert entry["base"]["weights"] == base.manifest["files"][checkpoint.MODEL]["sha256"]
    assert entry["base"]["model"] == base.manifest["model"]


def test_a_loaded_lora_run_is_a_plain_model_with_w_plus_s_b_a(lora: RunConfig) -> None:
    train(lora)
    model, tokenizer = checkpoint.load_model("runs/lora")
    weights, base = model.state_dict(), base_weights()
    adapters = load_file(checkpoint.find("runs/lora").path / checkpoint.ADAPTER)
    assert tokenizer.name == "byte"
    assert weights.keys() == base.keys()
    adapted = 0
    for name, before in base.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_a" in adapters:
            a, b = (adapters[f"{layer}.lora_{part}"].astype(np.float64) for part in "ab")
            before = (before.astype(np.float64) + ALPHA / RANK * b @ a).astype(np.float32)
            assert not np.array_equal(before, base[name])
            adapted += 1
        assert np.array_equal(weights[name].numpy(), before), name
    assert adapted == 8


def data_of(config: RunConfig) -> Data:
    return open_data(changed(config, init="scratch", lora_rank=0), None, quillgpt.distributed.Ranks(), Quiet())


def test_the_merged_model_has_the_held_out_loss_that_training_told(lora: RunConfig) -> None:
    outcome = train(lora)
    data = data_of(lora)
    model, _ = checkpoint.load_model(saved(lora).path)
    told = evaluate_held_out(
        model, data.held_out, data.bytes_per_token, batch_size=4, device="cpu", dtype=torch.float32
    )
    assert told.loss == pytest.approx(outcome.held_out.loss, rel=1e-6)
    assert outcome.held_out.loss < train(changed(lora, eval_only=True, out="runs/none")).held_out.loss


def test_before_its_first_step_a_lora_run_is_its_base_exactly(lora: RunConfig, fine: RunConfig) -> None:
    only = {"eval_only": True, "out": "runs/none"}
    assert train(changed(lora, **only)).held_out == train(changed(fine, **only)).held_out


def test_lora_needs_weights_to_adapt(small_run: RunConfig) -> None:
    with pytest.raises(
        ConfigError, match="lora_rank = 4 is not possible: expected 0, because init = scratch has no wei"
    ):
        changed(small_run, **LORA)


@pytest.mark.parametrize(("name", "value"), [("lora_rank", 2), ("lora_rank", 0), ("lora_alpha", 4.0)])
def test_other_adapters_do_not_continue_a_run(lora: RunConfig, name: str, value: float) -> None:
    train(changed(lora, steps=5))
    assert f"{name} {LORA[name]} -> {value}" in refusal(changed(lora, **{name: value}))


def test_a_whole_run_is_not_continued_with_adapters(fine: RunConfig) -> None:
    train(changed(fine, steps=5))
    assert "lora_rank 0 -> 4" in refusal(changed(fine, lora_rank=4))


def test_a_run_starts_from_a_lora_run_as_from_any_other(lora: RunConfig, fine: RunConfig) -> None:
    train(lora)
    merged = checkpoint.load_model("runs/lora")[0].state_dict()
    train(changed(fine, init="runs/lora", **STILL))
    found = saved(fine).tensors(checkpoint.MODEL)
    assert all(torch.equal(found[name], merged[name]) for name in merged)


def test_adapters_on_adapters_are_merged_in_turn(lora: RunConfig) -> None:
    train(lora)
    second = changed(lora, init="runs/lora", out="runs/second", lora_rank=2)
    train(second)
    model = checkpoint.load_model("runs/second")[0]
    expected = checkpoint.load_model("runs/lora")[0].get_parameter("blocks.1.mlp.expand.weight").detach().double()
    tensors = checkpoint.find("runs/second").tensors(checkpoint.ADAPTER)
    a, b = (tensors[f"blocks.1.mlp.expand.lora_{part}"].double() for part in "ab")
    expected += ALPHA / 2 * b @ a
    assert torch.equal(model.get_parameter("blocks.1.mlp.expand.weight"), expected.float())
    Path("runs/lora").rename("runs/lora-before")
    train(changed(lora, seed=5))
    with pytest.raises(CheckpointError, match=r"runs/second/.*, but runs/lora/checkpoints/\S+ has other weights"):
        checkpoint.load_model("runs/second")
    shutil.rmtree("runs/lora")
    Path("runs/lora-before").rename("runs/lora")
    checkpoint.load_model("runs/second")
    shutil.rmtree("runs/base")
    with pytest.raises(CheckpointError, match=r"runs/lora/.*: its adapters belong to the weights"):
        checkpoint.load_model("runs/second")


def test_adapters_beside_a_cropped_context_are_loaded_so(lora: RunConfig) -> None:
    train(changed(lora, context_length=16, steps=5))
    model = checkpoint.load_model("runs/lora")[0]
    assert model.config.context_length == 16
    assert np.array_equal(
        model.position_embedding.weight.detach().numpy(), base_weights()["position_embedding.weight"][:16]
    )


# A base that is gone, moved, or another one by now


def spoil(path: Path) -> None:
    """Other weights in the same place, with a manifest that fits them."""
    tensors = checkpoint.read_checkpoint(path).tensors(checkpoint.MODEL)
    tensors["final_norm.weight"] += 1e-3
    content = safetensors.torch.save(tensors)
    (path / checkpoint.MODEL).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][checkpoint.MODEL] = entry
    (path / "manifest.json").write_text(json.dumps(manifest))


def remove(path: Path) -> None:
    shutil.rmtree(path)


def move_the_run(path: Path) -> None:
    path.parents[1].rename("runs/renamed")


def damage(path: Path) -> None:
    content = bytearray((path / checkpoint.MODEL).read_bytes())
    content[-1] ^= 1
    (path / checkpoint.MODEL).write_bytes(content)


WRONG: dict[Callable[[Path], None], str] = {
    spoil: r"but runs/base/checkpoints/step-000020 has other weights \(SHA-256 \w{12}\)",
    remove: r"but runs/base/checkpoints/step-000020: no such run or checkpoint",
    move_the_run: r"but runs/base/checkpoints/step-000020: no such run or checkpoint",
    damage: r"but runs/base/checkpoints/step-000020/model\.safetensors: damaged",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_base_that_is_gone_or_another_is_refused_in_one_line(lora: RunConfig, wrong: Callable[[Path], None]) -> None:
    train(changed(lora, steps=5))
    digest = checkpoint.find("runs/base").manifest["files"][checkpoint.MODEL]["sha256"][:12]
    wrong(Path("runs/base/checkpoints/step-000020"))
    message = refusal(lora)
    expected = rf"runs/lora/checkpoints/step-000005: its adapters belong to the weights {digest} of "
    expected += rf"runs/base/checkpoints/step-000020, {WRONG[wrong]}.*; bring those back"
    assert re.match(expected, message), message
    with pytest.raises(CheckpointError, match=expected):
        checkpoint.load_model("runs/lora")
    assert saved(lora).step == 5


def test_runs_may_be_moved_together_and_used_from_anywhere(lora: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    train(lora)
    before = checkpoint.load_model("runs/lora")[0].state_dict()
    Path("new place").mkdir()
    Path("runs").rename("new place/models")
    (Path("somewhere") / "else").mkdir(parents=True)
    monkeypatch.chdir("somewhere/else")
    after = checkpoint.load_model("../../new place/models/lora")[0].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_base_that_was_trained_on_is_still_found_while_its_checkpoint_is_there(
    lora: RunConfig, small_run: RunConfig
) -> None:
    train(lora)
    path = Path("runs/base/checkpoints")
    better = path / "step-000040"
    shutil.copytree(path / "step-000020", better)
    spoil(better)
    manifest = json.loads((better / "manifest.json").read_text())
    (better / "manifest.json").write_text(json.dumps(manifest | {"step": 40, "held_out_loss": 0.1}))
    assert checkpoint.find("runs/base").step == 40
    train(changed(lora, steps=12))
    checkpoint.load_model("runs/lora")


def test_a_run_goes_on_with_the_same_base_in_another_place_and_with_no_other(lora: RunConfig) -> None:
    train(changed(lora, steps=5))
    shutil.copytree("runs/base", "copy")
    shutil.rmtree("runs/base")
    train(changed(lora, init="copy"))
    assert saved(lora).manifest["adapter"]["base"]["found"] == "copy/checkpoints/step-000020"
    checkpoint.load_model("runs/lora")
    shutil.copytree("copy", "runs/base")
    spoil(Path("runs/base/checkpoints/step-000020"))
    message = refusal(changed(lora, init="runs/base", steps=12))
    assert "--init runs/base has the weights" in message
    assert "of copy/checkpoints/step-000020; use that again" in message


# Guarantees of a checkpoint


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_a_damaged_adapter_file_is_said_and_the_checkpoint_before_is_used(lora: RunConfig, how: str) -> None:
    train(lora)
    path = saved(lora).path / checkpoint.ADAPTER
    content = path.read_bytes()
    path.unlink()
    if how != "delete":
        path.write_bytes(content[:-1] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    said: list[str] = []
    found = checkpoint.newest_intact(RunDirectory(Path("runs/lora")), said.append)
    assert found is not None
    assert found.step == 5
    assert str(path) in said[0]
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors"):
        checkpoint.find(saved(lora).path)


@pytest.mark.parametrize("part", ["settings", "base"])
def test_a_manifest_with_a_wrong_adapter_entry_is_no_checkpoint(lora: RunConfig, part: str) -> None:
    train(changed(lora, steps=5))
    path = saved(lora).path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["adapter"][part]["surprise"] = 1
    path.write_text(json.dumps(manifest))
    assert checkpoint.committed(RunDirectory(Path("runs/lora"))) == []
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read_checkpoint(path.parent)


def test_adapters_that_do_not_fit_the_base_are_refused(lora: RunConfig) -> None:
    train(changed(lora, steps=5))
    path = saved(lora).path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["adapter"]["settings"]["lora_rank"] = 8
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"runs/lora/.*: its adapters do not fit the model: blocks\.\d"):
        checkpoint.load_model(path.parent)


def test_the_best_adapters_are_kept_and_found(lora: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from quillgpt.evaluate.held_out_loss import HeldOutLoss
    from quillgpt.train import loop

    scripted = iter([3.0, 2.0, 2.5, 2.25])

    def evaluation(*_: object) -> HeldOutLoss:
        return HeldOutLoss(loss=next(scripted), standard_error=0.0, bits_per_byte=1.0, tokens=1, bytes=1)

    monkeypatch.setattr(loop, "_evaluate", evaluation)
    train(changed(lora, steps=8, eval_every=2, save_every=2, keep_last=1))
    kept = [found.step for found in checkpoint.committed(RunDirectory(Path("runs/lora")))]
    assert kept == [4, 8]
    assert checkpoint.find("runs/lora").step == 4


# Together with the rest


def test_compiled_lora_has_the_losses_of_eager_lora(lora: RunConfig) -> None:
    torch._dynamo.reset()
    lora = changed(lora, steps=4, eval_every=0, save_every=0)
    train(lora)
    compiled = changed(lora, compile="on", compile_backend="eager", out="runs/compiled")
    train(compiled)
    torch._dynamo.reset()
    assert losses(compiled) == pytest.approx(losses(lora), rel=1e-5)
    tensors = saved(compiled).tensors(checkpoint.ADAPTER)
    assert tensors.keys() == saved(lora).tensors(checkpoint.ADAPTER).keys()


def test_minutes_are_measured_with_the_adapters(lora: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from quillgpt.train import calibrate

    monkeypatch.setattr(calibrate, "WARMUP_SECONDS", 0.0)
    monkeypatch.setattr(calibrate, "MEASURE_SECONDS", 0.1)
    train(changed(lora, minutes=0.005, eval_every=0, save_every=0))
    assert saved(lora).step >= 1


def test_the_recipe_and_the_other_projects_names(here: Path, prepared: Path) -> None:
    config = load_settings(["config/finetune_shakespeare.py", "--init", "runs/base", f"--data={prepared}"]).config
    assert config.train.out == "runs/finetune-shakespeare"
    assert (config.optim.schedule, config.optim.lr) == ("constant", 3e-5)
    outcome = train(changed(config, steps=2, gradient_accumulation_steps=2, eval_tokens=500, threads=1, dtype="fp32"))
    assert outcome.step == 2
    assert isinstance(checkpoint.load_model(outcome.run)[0], GPT)


@pytest.mark.parametrize("run", ["runs/base", "runs/base/"])
def test_init_from_finetune_starts_from_out_dir_and_writes_beside_it(here: Path, prepared: Path, run: str) -> None:
    words = ["train_shakespeare_char", "--init_from=finetune", f"--out_dir={run}", f"--data={prepared}"]
    settings = load_settings(words)
    assert (settings.config.train.init, settings.config.train.out) == ("runs/base", "runs/base-finetuned")
    assert settings.origins["out"] == settings.origins["init"] == "init_from=finetune"
    assert settings.config.model.n_layer == 2
    assert load_recipe("debug", init="finetune", out=run).train.out == "runs/base-finetuned"
    (here / "mine.toml").write_text(f'init_from = "finetune"\nout_dir = "{run}"\ndata = "{prepared}"\n')
    assert load_settings(["mine.toml"]).config.train.init == "runs/base"


def test_init_from_finetune_without_a_run_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"init = finetune: which run\? --out-dir RUN starts from RUN and writes to RUN-f"
    ):
        load_settings(["debug", "--init_from=finetune"])


def test_the_start_is_said(lora: RunConfig) -> None:
    said, screen = listened()
    train(changed(lora, steps=5), screen)
    assert "starting from the weights of runs/base/checkpoints/step-000020" in said

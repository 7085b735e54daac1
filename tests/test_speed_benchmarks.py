"""The scripts that measure training run from end to end, at tiny sizes; what they measure here says nothing."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from quillgpt.config import ModelConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    if str(BENCHMARKS) not in sys.path:  # where a script finds the modules beside it
        sys.path.append(str(BENCHMARKS))
    specification = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def test_the_gpu_script_writes_speed_profile_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--out", "results"])
    script("gpu").main()
    results = json.loads(Path("results/gpu.json").read_text())
    assert results["is_a_measurement"] is False
    assert {name: side["rows"] for name, side in results["speed"]["sides"].items()} == {"ours": 2, "like nanoGPT": 12}
    assert all(side["tokens_per_second"] > 0 for side in results["speed"]["sides"].values())
    assert results["speed"]["choices"]["dtype"] == "bf16"
    assert {name: [point["step"] for point in points] for name, points in results["training"].items()} == {
        "GPT-2": [3, 6],
        "modern": [3, 6],
    }
    assert "aten::" in Path("results/profile.txt").read_text()
    assert Path("results/loss-against-minutes.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_card_the_gpu_script_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        script("gpu").main()
    assert "no CUDA card here; --smoke tries the script on a CPU" in capsys.readouterr().err


def test_the_cpu_script_compares_and_tells_where_time_goes(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    module = script("train_speed")
    model, optim, _ = module.NETS["demo"]
    tiny = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32}
    monkeypatch.setattr(module, "NETS", {"demo": (ModelConfig(**(vars(model) | tiny)), optim, 4)})
    monkeypatch.setattr(module, "set_up_torch", lambda *_, **__: None)
    for name in ("gradients", "apply_update"):
        monkeypatch.setattr(module.loop, name, getattr(module.loop, name))
    for name in ("get_total_norm", "clip_grad_norm_"):
        monkeypatch.setattr(torch.nn.utils, name, getattr(torch.nn.utils, name))
    monkeypatch.setattr(module.BatchLoader, "batch", module.BatchLoader.batch)
    for arguments in (["--rounds", "1", "--seconds", "0"], ["--parts", "--steps", "12"]):
        monkeypatch.setattr(sys, "argv", ["train_speed.py", *arguments])
        module.main()
    told = capsys.readouterr().out
    assert "fp32, torch's own operations" in told
    assert "1.00 x" in told
    shares = [float(line.split()[-1].rstrip("%")) for line in told.splitlines() if " ms " in line and "%" in line]
    assert len(shares) == 6
    assert sum(shares) == pytest.approx(100, abs=0.1)


def test_memory_of_the_loss_is_measured_in_a_process_of_its_own() -> None:
    assert script("train_speed").added_by(8) >= 0

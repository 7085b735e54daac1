"""`quill bench sample` and `quill bench data`: what they count, held against what was done."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from quillgpt.bench import loading
from quillgpt.bench.loading import measure_loading
from quillgpt.bench.sampling import NEW, PROMPT, Sampled, Task, measure_sampling
from quillgpt.bench.windows import Plan
from quillgpt.config import ModelConfig, RunConfig
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import ConfigError, DataError
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import prefill_flops
from quillgpt.sample.generator import Generator
from quillgpt.sample.weights import WEIGHTS
from quillgpt.train.progress import Quiet

SHORT = Plan(windows=2, seconds=0.01, warmup=0)
SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=64, vocab_size=257)


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillgpt.bench.machine.SQUARES", {"cpu": (64,)})
    monkeypatch.setattr("quillgpt.bench.machine.PEAK_SECONDS", 0.01)


def small(name: str = "small", dtype: str = "fp32") -> Sampled:
    model = GPT(SMALL).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    return Sampled(name=name, model=model, device="cpu", dtype=dtype, threads=1)


def test_the_tokens_read_and_written_are_those_that_were(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    prefill, decode = Generator.prefill, Generator.decode
    monkeypatch.setattr(Generator, "prefill", lambda self, x: (seen.append(("read", x.numel())), prefill(self, x))[1])
    monkeypatch.setattr(Generator, "decode", lambda self, x: (seen.append(("write", x.numel())), decode(self, x))[1])
    (found,) = measure_sampling([small()], Task(samples=3, prompt_tokens=10, new_tokens=5), SHORT)
    repetitions = sum(window.repetitions for window in found.windows)
    counted = seen[-repetitions * 5 :]  # those of the warm-up came before
    assert sum(count for kind, count in counted if kind == "read") == sum(w.amounts[PROMPT] for w in found.windows)
    assert sum(count for kind, count in counted if kind == "write") == sum(w.amounts[NEW] for w in found.windows)
    assert [count for _, count in counted[:5]] == [10, 3, 3, 3, 3]


@pytest.mark.parametrize(("name", "part"), [("prefill", "prefill"), ("decode", "decode")])
def test_a_slow_half_is_told_as_that_half(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(Generator, name)
    monkeypatch.setattr(Generator, name, lambda self, tokens: (time.sleep(0.1), real(self, tokens))[1])
    (found,) = measure_sampling([small()], Task(prompt_tokens=4, new_tokens=2), SHORT)
    other = "decode" if part == "prefill" else "prefill"
    assert all(window.parts[part] >= 0.1 * window.repetitions for window in found.windows)
    assert all(window.parts[other] < window.parts[part] for window in found.windows)


@pytest.mark.parametrize("tokens", [1, 7, 64])
@pytest.mark.parametrize("changes", [{}, {"tied_head": False}, {"mlp": "relu2", "norm": "rmsnorm"}])
def test_the_prefills_operations_are_those_that_torch_counts(tokens: int, changes: dict) -> None:
    config = ModelConfig(n_layer=3, n_head=2, n_embd=64, context_length=64, vocab_size=320, bias=False, **changes)
    config = ModelConfig(**{**vars(config), "attention": "explicit"})
    generator = Generator(GPT(config).eval())
    with FlopCounterMode(display=False) as counter:
        generator.prefill(torch.zeros(1, tokens, dtype=torch.int64))
    assert prefill_flops(config, tokens) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_weights_are_counted_in_the_dtype_they_are_read_in() -> None:
    wide, narrow = measure_sampling([small(), small("bf16", "bf16")], Task(prompt_tokens=4, new_tokens=2), SHORT)
    read = sum(x.numel() for x in GPT(SMALL).parameters()) - SMALL.context_length * SMALL.n_embd
    padding = (-SMALL.vocab_size % 64) * SMALL.n_embd
    assert wide.weight_bytes == 4 * (read - padding)
    assert narrow.weight_bytes == wide.weight_bytes // 2


@pytest.mark.parametrize("quantize", [name for name in WEIGHTS if name != "none"])
def test_quantised_weights_are_counted_with_their_scales(quantize: str) -> None:
    linear = WEIGHTS[quantize](torch.nn.Linear(512, 256, bias=False))
    (found,) = measure_sampling([replace(small(), quantize=quantize)], Task(prompt_tokens=4, new_tokens=2), SHORT)
    (plain,) = measure_sampling([small()], Task(prompt_tokens=4, new_tokens=2), SHORT)
    held = [tensor for tensor in vars(linear).values() if isinstance(tensor, torch.Tensor)]
    bytes_of_a_weight = (
        sum(x.nbytes for x in held) / (512 * 256) if held else 1.0
    )  # int8 is in an object of torch's own
    assert found.weight_bytes / plain.weight_bytes == pytest.approx(bytes_of_a_weight / 4, rel=1e-3)


def test_no_more_memory_is_taken_than_the_text_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[int | None] = []
    begun = Generator.__init__
    monkeypatch.setattr(
        Generator, "__init__", lambda self, model, room=None: (rooms.append(room), begun(self, model, room))[1]
    )
    measure_sampling([small()], Task(prompt_tokens=4, new_tokens=3), SHORT)
    assert set(rooms) == {7}


def test_a_prompt_is_no_longer_than_the_context() -> None:
    (found,) = measure_sampling([small()], Task(prompt_tokens=1000, new_tokens=3), SHORT)
    assert found.prompt_tokens == SMALL.context_length


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"prompt_tokens": 0}, {"new_tokens": 1}, {"new_tokens": 10**6}])
def test_an_impossible_task_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = .* is not possible"):
        Task(**wrong)


def test_a_profile_of_sampling_is_written(tmp_path: Path) -> None:
    task = Task(prompt_tokens=4, new_tokens=2)
    (found,) = measure_sampling([small()], task, SHORT, traces=[tmp_path / "trace.json"])
    assert found.profile is not None
    assert found.profile.trace.is_file()


def test_the_loader_counts_batches_tokens_and_stored_bytes(small_run: RunConfig) -> None:
    (found,) = measure_loading([("small", small_run)], SHORT, Quiet())
    for window in found.loading:
        assert window.amounts == {
            "batches": window.repetitions,
            "tokens": window.repetitions * 8 * 32,
            "bytes": window.repetitions * 8 * 32 * 2,
        }


def test_the_encoder_reads_the_training_text_again(small_run: RunConfig) -> None:
    (found,) = measure_loading([("small", small_run)], SHORT, Quiet())
    train = TokenDataset.open(Path(small_run.data.data), "train")
    for window in found.encoding:
        assert window.amounts == {
            "bytes": window.repetitions * train.text_bytes,
            "tokens": window.repetitions * train.token_count,
        }
    assert found.why == ""


def test_what_cannot_be_encoded_says_why(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    (drawn,) = measure_loading([("small", small_run)], SHORT, Quiet(), is_random=True)
    assert (drawn.encoding, drawn.why) == ((), "tokens drawn at random stand for no text")

    def refused(*_: object) -> None:
        raise DataError("not UTF-8")

    monkeypatch.setattr(loading, "decoded_pieces", refused)
    (found,) = measure_loading([("small", small_run)], SHORT, Quiet())
    assert (found.encoding, found.why) == ((), "not UTF-8")

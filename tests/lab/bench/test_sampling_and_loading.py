"""`quill bench sample` and `quill bench data`: what they count equals what was done; random tokens."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from quillgpt.config import DataConfig, ModelConfig, RunConfig, updated
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.sources import SOURCES
from quillgpt.errors import ConfigError, DataError
from quillgpt.lab.bench import loading
from quillgpt.lab.bench.loading import (
    LARGE_SOURCES,
    MAX_CHARACTERS,
    VOCABULARIES,
    check_prepared,
    measure_loading,
    random_text,
    with_random_tokens,
)
from quillgpt.lab.bench.measure import Plan
from quillgpt.lab.bench.sampling import NEW, PROMPT, Sampling, SamplingModel, SamplingWork, measure_sampling
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import prefill_flops
from quillgpt.sample.engine import Generator
from quillgpt.sample.weights import WEIGHTS
from quillgpt.tokenizer import load_tokenizer
from quillgpt.tokenizer.character import CharacterTokenizer
from quillgpt.training.screen import Screen

SHORT = Plan(windows=2, seconds=0.01, warmup=0)
SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=64, vocab_size=257)


def small(dtype: str = "fp32", quantize: str = "none") -> SamplingModel:
    model = GPT(SMALL).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    return SamplingModel(name="small", model=model, device="cpu", dtype=dtype, threads=1, quantize=quantize)


def measured(folder: Path, model: SamplingModel | None = None, **work: int) -> Sampling:
    (found,) = measure_sampling(
        [model or small()], SamplingWork(**{"prompt_tokens": 4, "new_tokens": 2} | work), SHORT, folder
    )
    return found


def test_it_counts_the_tokens_that_are_read_and_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    capacities: set[int | None] = set()
    begin, prefill, decode = Generator.__init__, Generator.prefill, Generator.decode
    monkeypatch.setattr(Generator, "prefill", lambda self, x: (seen.append(("read", x.numel())), prefill(self, x))[1])
    monkeypatch.setattr(Generator, "decode", lambda self, x: (seen.append(("new", x.numel())), decode(self, x))[1])
    monkeypatch.setattr(
        Generator, "__init__", lambda self, model, size=None: (capacities.add(size), begin(self, model, size))[1]
    )
    found = measured(tmp_path, samples=3, prompt_tokens=10, new_tokens=5)
    repetitions = sum(window.repetitions for window in found.windows)
    counted = seen[-repetitions * 5 :]  # those of the warm-up came before
    assert sum(count for kind, count in counted if kind == "read") == sum(w.amounts[PROMPT] for w in found.windows)
    assert sum(count for kind, count in counted if kind == "new") == sum(w.amounts[NEW] for w in found.windows)
    assert [count for _, count in counted[:5]] == [10, 3, 3, 3, 3]
    assert capacities == {15}  # no more memory than the text needs
    assert measured(tmp_path, prompt_tokens=1000, new_tokens=3).prompt_tokens == SMALL.context_length


def test_a_slow_half_is_reported_as_that_half(tmp_path: Path) -> None:
    for part, other in (("prefill", "decode"), ("decode", "prefill")):
        real = getattr(Generator, part)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Generator, part, lambda self, tokens, real=real: (time.sleep(0.1), real(self, tokens))[1])
            found = measured(tmp_path)
        assert all(window.parts[part] >= 0.1 * window.repetitions for window in found.windows), part
        assert all(window.parts[other] < window.parts[part] for window in found.windows), part


def test_the_operations_of_the_prefill_are_those_that_torch_counts() -> None:
    shape = ModelConfig(n_layer=3, n_head=2, n_embd=64, context_length=64, vocab_size=320, bias=False)
    for changes in ({}, {"tied_head": False}, {"mlp": "relu2", "norm": "rmsnorm"}):
        config = replace(shape, attention="explicit", **changes)
        for tokens in (1, 7, 64):
            generator = Generator(GPT(config).eval())
            with FlopCounterMode(display=False) as counter:
                generator.prefill(torch.zeros(1, tokens, dtype=torch.int64))
            counted = counter.get_total_flops()
            assert prefill_flops(config, tokens) == pytest.approx(counted, rel=0.01), (changes, tokens)


def test_weights_are_counted_in_the_form_they_are_read_in() -> None:
    read = sum(x.numel() for x in GPT(SMALL).parameters()) - SMALL.context_length * SMALL.n_embd
    padding = (-SMALL.vocab_size % 64) * SMALL.n_embd
    plain = small().weight_bytes
    assert plain == 4 * (read - padding)
    assert small("bf16").weight_bytes == plain // 2
    for quantize in [name for name in WEIGHTS if name != "none"]:
        linear = WEIGHTS[quantize](torch.nn.Linear(512, 256, bias=False))
        held = [tensor for tensor in vars(linear).values() if isinstance(tensor, torch.Tensor)]
        # int8 is held by an object of torch
        bytes_per_weight = sum(x.nbytes for x in held) / (512 * 256) if held else 1.0
        found = small(quantize=quantize).weight_bytes
        assert found / plain == pytest.approx(bytes_per_weight / 4, rel=1e-3), quantize


def test_invalid_work_is_refused_by_name() -> None:
    for wrong in ({"samples": 0}, {"prompt_tokens": 0}, {"new_tokens": 1}, {"new_tokens": 10**6}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SamplingWork(**wrong)


def test_a_profile_of_sampling_is_written(tmp_path: Path) -> None:
    work, traces = SamplingWork(prompt_tokens=4, new_tokens=2), [tmp_path / "trace.json"]
    (found,) = measure_sampling([small()], work, SHORT, tmp_path, traces=traces)
    assert found.profile is not None
    assert found.profile.trace.is_file()


def test_loader_and_encoder_count_what_they_deliver(small_run: RunConfig) -> None:
    (found,) = measure_loading([("small", small_run)], SHORT, Screen())
    for window in found.windows:
        count = window.repetitions
        assert window.amounts == {"batches": count, "tokens": count * 8 * 32, "bytes": count * 8 * 32 * 2}
    train = TokenDataset.open(Path(small_run.data.data), "train")
    for window in found.encode_windows:
        count = window.repetitions
        assert window.amounts == {"bytes": count * train.text_bytes, "tokens": count * train.token_count}
    assert found.not_encoded_because is None


def test_text_that_cannot_be_encoded_has_a_reason(small_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise DataError("not UTF-8")

    monkeypatch.setattr(loading, "decoded_chunks", refused)
    for is_random, reason in ((True, "random tokens have no text"), (False, "not UTF-8")):
        sides = [("small", small_run)]
        (found,) = measure_loading(sides, SHORT, Screen(), is_random=is_random)
        assert (found.encode_windows, found.encode_bytes_per_second) == ((), None)
        assert found.not_encoded_because == reason


def test_random_text_has_a_vocabulary_of_the_requested_size() -> None:
    for vocab_size in (257, 258, 2048, 50257, 60000):
        text = random_text(vocab_size, 100)
        assert CharacterTokenizer(text).vocab_size == vocab_size
        assert text.encode().decode() == text


def test_random_tokens_have_the_vocabulary_of_the_recipe(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "RANDOM_TOKENS", 50_000)
    for name in ("gpt2", "byte", "character", "bpe"):
        with_tokenizer = replace(small_run, data=DataConfig(tokenizer=name))
        requested = updated(with_tokenizer, {"vocab_size": 2048, "init": "gpt2"}, where="test")
        config = with_random_tokens(requested, tmp_path)
        train = TokenDataset.open(Path(config.data.data), "train")
        assert train.vocab_size == config.model.vocab_size == VOCABULARIES.get(name, 2048), name
        assert config.train.init == "scratch"  # weights would bring their own tokenizer
        assert with_random_tokens(requested, tmp_path) == config  # made once
    too_many = updated(with_tokenizer, {"vocab_size": MAX_CHARACTERS + 1}, where="test")
    with pytest.raises(ConfigError, match=r"vocab_size.* 1000001 .* with --random-tokens"):
        with_random_tokens(too_many, tmp_path)


def test_fixed_sizes_of_vocabularies_are_those_of_the_tokenizers() -> None:
    assert load_tokenizer("byte").vocab_size == VOCABULARIES["byte"]
    assert CharacterTokenizer("an English text").vocab_size == VOCABULARIES["character"]
    assert SOURCES.keys() >= LARGE_SOURCES


def test_data_that_would_be_downloaded_is_refused_and_other_data_is_not(
    small_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    web = DataConfig(source="openwebtext", tokenizer="byte")
    with pytest.raises(DataError, match=r"`quill prepare openwebtext --tokenizer byte` downloads .*; or else"):
        check_prepared(replace(small_run, data=web), "; or else")
    for data in (replace(web, path="some/file"), replace(web, source="python"), small_run.data):
        check_prepared(replace(small_run, data=data), "")

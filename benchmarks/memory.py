"""Peak memory and time of loading, export, LoRA and the loss, each measurement in its own process.

    python benchmarks/memory.py load       # a 124M model: load_model against reading and hashing its file
    python benchmarks/memory.py export     # every export format of GPT-2 124M; --layers 1 is faster
    python benchmarks/memory.py lora       # training GPT-2 124M: all weights, and LoRA adapters
    python benchmarks/memory.py loss       # the memory that the loss of a large vocabulary adds

The weights are random. Peak memory is the resident size that the system reports.
"""

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import torch
from measuring import in_new_process, resident_bytes, seconds_of
from train_speed import Ours

from quillgpt import checkpoint
from quillgpt.config import LoraConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from quillgpt.distributed import Ranks
from quillgpt.export import EXPORTERS
from quillgpt.export.export import export as export_model
from quillgpt.export.gpt2 import gpt2_tensors
from quillgpt.export.huggingface import write_safetensors
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import add_adapters
from quillgpt.model.loss import LOSS_CHUNK_ELEMENTS, linear_cross_entropy
from quillgpt.model.sizes import SIZES, estimated_memory_bytes, parameter_count
from quillgpt.run_dir import RunDirectory
from quillgpt.runtime import Runtime, detect, peak_memory_bytes, resolve
from quillgpt.tokenizer import load_tokenizer
from quillgpt.training.step import WrappedModel, wrap

BLOCK_BYTES = 1 << 22
GPT2 = SIZES["gpt2"]


def load(repeats: int = 5) -> None:
    """Time and memory of loading a 124M model, against reading and hashing its file.

    The file has Hugging Face's format and is in the system's file cache; one thread, imports do not count. transformers
    maps the file and reads a weight when it is used, so every weight is used once.
    """
    measuring.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        in_new_process(write_hugging_face, folder)
        size = (Path(folder) / "model.safetensors").stat().st_size
        found: dict[str, list[tuple[float, int]]] = {way: [] for way in WAYS}
        for _ in range(repeats):  # in turns, because the machine's speed drifts
            for way, results in found.items():
                results.append(in_new_process(measure_loading, way, folder))
    medians = {way: [statistics.median(each) for each in zip(*results, strict=True)] for way, results in found.items()}
    print(f"124M in fp32, {size:,} bytes; median of {repeats}, in turns, one thread")
    print("way                      seconds   x (read + hash)   x read into new memory   peak memory / weights")
    for way, (seconds, growth) in medians.items():
        ratios = f"{seconds / medians['hash'][0]:17.2f} {seconds / medians['read into new memory'][0]:24.2f}"
        print(f"{way:<22} {seconds:9.3f} {ratios} {growth / size:23.2f}")


def write_hugging_face(folder: str) -> None:
    """Write random weights in the files of `save_pretrained`, without transformers."""
    write_safetensors(Path(folder) / "model.safetensors", gpt2_tensors(GPT(GPT2)))
    (Path(folder) / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def read(directory: Path) -> None:
    """Read the file through one small buffer."""
    block = bytearray(BLOCK_BYTES)
    with (directory / "model.safetensors").open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def read_and_hash(directory: Path) -> None:
    with (directory / "model.safetensors").open("rb") as file:
        hashlib.file_digest(file, "sha256")


def read_into_new_memory(directory: Path) -> None:
    """Read the file into new memory of its size: the minimum of any loader."""
    with (directory / "model.safetensors").open("rb", buffering=0) as file:
        view = torch.empty((directory / "model.safetensors").stat().st_size, dtype=torch.uint8).numpy().data
        while view:
            view = view[file.readinto(view) :]


def load_transformers(directory: Path) -> None:
    """`GPT2LMHeadModel.from_pretrained`, and one use of every weight."""
    from transformers import GPT2LMHeadModel

    for parameter in GPT2LMHeadModel.from_pretrained(directory).parameters():
        parameter.detach().sum()


WAYS: dict[str, Callable[[Path], object]] = {"read": read, "hash": read_and_hash}
WAYS |= {"read into new memory": read_into_new_memory, "quillgpt": checkpoint.load_model}
WAYS |= {"transformers": load_transformers}


def measure_loading(way: str, folder: str) -> tuple[float, int]:
    """Seconds, and the increase of the peak memory in bytes."""
    if way == "transformers":
        import transformers
        from transformers import GPT2LMHeadModel  # noqa: F401

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    before = resident_bytes()
    seconds = seconds_of(lambda: WAYS[way](Path(folder)))
    return seconds, resident_bytes("VmHWM") - before


def export(layers: int = 12) -> None:
    """Peak memory and time of every export format of a GPT-2, against the size of its weights and loading it."""
    config = replace(GPT2, n_layer=layers)
    weights = 4 * parameter_count(config)
    measuring.print_machine(more=f"{weights / 1e6:,.0f} MB of weights")
    print(f"{'':<20}{'peak MB':>10}{'x weights':>12}{'seconds':>10}{'x loading':>12}{'written MB':>12}{'off by':>10}")
    with tempfile.TemporaryDirectory() as folder:
        # in a new process: a process inherits the peak memory of its parent
        in_new_process(save_random_run, config, f"{folder}/run")
        formats = [(name, dtype) for name, exporter in EXPORTERS.items() for dtype in exporter.tolerance]
        loading = 0.0
        for name, dtype in [("load", ""), *formats]:
            peak, seconds, written, difference = in_new_process(measure_export, name, dtype, folder)
            loading = loading or seconds
            print(
                f"{name + ' ' + dtype:<20}{peak / 1e6:>10,.0f}{peak / weights:>12.2f}{seconds:>10.1f}"
                f"{seconds / loading:>12.1f}{written / 1e6:>12,.0f}{difference:>10.1e}",
                flush=True,
            )


def measure_export(name: str, dtype: str, folder: str) -> tuple[int, float, int, float]:
    """Load or export the run; return peak bytes, seconds, bytes written and the difference found."""
    started, written, difference = time.perf_counter(), 0, 0.0
    if name == "load":
        checkpoint.load_model(f"{folder}/run")
    else:
        done = export_model(f"{folder}/run", name, out=f"{folder}/{name}-{dtype}", dtype=dtype)
        written, difference = sum(done.sizes.values()), done.difference
    return peak_memory_bytes(torch.device("cpu")), time.perf_counter() - started, written, difference


def save_random_run(config: ModelConfig, path: str) -> None:
    torch.manual_seed(0)
    empty: dict[str, Any] = {key: {} for key in ("optimizer_state", "state", "runtime")}
    empty |= {"config_toml": "", "data_fingerprint": "", "val_loss": None}
    checkpoint.save(RunDirectory(Path(path)), step=1, model=GPT(config), tokenizer=load_tokenizer("gpt2"), **empty)


def lora(lora_rank: int = 8, dtype: str = "auto", batch_sizes: tuple[int, ...] = (1, 4)) -> None:
    """Memory of training GPT-2 124M, all weights or LoRA adapters; the ratio, and the estimates.

    Two optimizer steps on random tokens; the peak (on CUDA the allocator's, elsewhere the resident size) minus the
    memory before the model was created. `quill train` chooses its micro-batch by the same estimate.
    """
    chosen = runtime(dtype, 1)
    measuring.print_machine(more=f"device {chosen.device}, dtype {chosen.dtype}; rank {lora_rank}")
    for batch_size in batch_sizes:
        sides = {"all weights": 0, f"LoRA of rank {lora_rank}": lora_rank}
        peaks = {name: in_new_process(training_bytes, chosen.dtype, batch_size, rank) for name, rank in sides.items()}
        print(f"micro-batches of {batch_size} x {GPT2.context_length}")
        for name, rank in sides.items():
            kind = chosen.device.partition(":")[0]
            estimate = estimated_memory_bytes(GPT2, batch_size, chosen.dtype, kind, rank) / 1e9
            ratio = peaks[name] / peaks["all weights"]
            print(f"  {name:<16} {peaks[name] / 1e9:5.2f} GB  {ratio:.2f} x  estimated {estimate:.2f} GB", flush=True)


def runtime(dtype: str, batch_size: int) -> Runtime:
    config = RunConfig(model=GPT2, train=TrainConfig(dtype=dtype, batch_size=batch_size, compile="off"))
    return resolve(config, detect(), Ranks())[0]


def training_bytes(dtype: str, batch_size: int, rank: int) -> int:
    chosen = runtime(dtype, batch_size)
    device = torch.device(chosen.device)
    torch.set_num_threads(chosen.threads)
    (torch.ones(256, 256, device=device) @ torch.ones(256, 256, device=device)).sum().item()  # loads the libraries
    before = peak_memory_bytes(device)

    def adapted(model: GPT, runtime: Runtime) -> WrappedModel:
        if rank:
            add_adapters(model, LoraConfig(lora_rank=rank))
            model.to(device)
        return wrap(model, runtime)

    step = Ours(GPT2, OptimConfig(), chosen, adapted)
    step()
    step()
    return peak_memory_bytes(device) - before


def loss(tokens: tuple[int, ...] = (1024, 4096, 16384)) -> None:
    """The memory of the loss over GPT-2's vocabulary, forward and backward, by the number of tokens."""
    measuring.print_machine()
    for count in tokens:
        added, logits = in_new_process(loss_bytes, count) / 2**20, count * 50304 * 4 / 2**20
        print(f"  {count:>6,} tokens: {added:6,.0f} MiB; their logits in fp32 are {logits:6,.0f} MiB", flush=True)


def loss_bytes(tokens: int) -> int:
    """Increase of this process's memory, including the gradients of the arguments."""
    hidden = torch.randn(tokens, 64).bfloat16().requires_grad_()
    weight = torch.randn(50304, 64).requires_grad_()
    targets = torch.zeros(tokens, dtype=torch.int64)
    before = peak_memory_bytes(torch.device("cpu"))
    chunk_tokens = LOSS_CHUNK_ELEMENTS // 50257
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = linear_cross_entropy(hidden, weight, targets, vocab_size=50257, softcap=0.0, chunk_tokens=chunk_tokens)
    total.backward()
    return peak_memory_bytes(torch.device("cpu")) - before


if __name__ == "__main__":
    measuring.run_script(__doc__, {"load": load, "export": export, "lora": lora, "loss": loss})

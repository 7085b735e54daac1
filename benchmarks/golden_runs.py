"""Record the bits of a fixed set of tiny runs, and check that another commit computes the same ones.

    python benchmarks/golden_runs.py record golden.json
    python benchmarks/golden_runs.py check golden.json                  # exit status 1 if anything differs
    python benchmarks/golden_runs.py check golden.json --only 'attention-*,lora'

A case is a training run, a sample, an evaluation or a prepared data set, computed by the command line of this tree
on the CPU with one thread. Numbers are compared as hexadecimal floats, tensors and files of tokens by their SHA-256, so
that equal means bit-identical; those that only have another name count as equal and are told. The bits depend on the
CPU, torch and Python: record and check on one machine. Either takes four minutes of one core.
"""

import argparse
import fnmatch
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What a rename touches: edit here. A setting's flag is --its-name unless FLAGS has another: {"lora_rank": "--rank"}.
# EVERY_STEP and EVALUATED have the keys that a number may have in the file of metrics, the oldest first; SCORES those
# under SCORES_KEY in what `quill eval --json` prints.
PACKAGE, SOURCE, STEP_KEY, SCORES_KEY = "quillgpt", "src", "step", "scores"
FLAGS: dict[str, str] = {}
DEBUG, MODERN, SHAKESPEARE, BUNDLED_MODEL = "debug", "modern-python", "shakespeare-char", "quill-python"
METRICS_FILE, TENSOR_FILE, OPTIMIZER_FILE, TOKEN_FILE = "metrics*.jsonl", "*.safetensors", "*optim*", "*.bin"
EVERY_STEP = {"train_loss": ("loss", "train_loss"), "lr": ("lr",), "grad_norm": ("gradient_norm", "grad_norm")}
EVALUATED = {"val_loss": ("held_out_loss", "val_loss"), "val_bpb": ("held_out_bits_per_byte", "val_bpb")}
SCORES = {"val_loss": ("loss", "val_loss"), "val_bpb": ("bits_per_byte", "val_bpb", "bpb"), "ppl": ("perplexity",)}
STEPS, EVAL_EVERY = 30, 15
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 64, "batch_size": 8, "eval_tokens": 4000}
RUN = {"steps": STEPS, "eval_every": EVAL_EVERY, "save_every": EVAL_EVERY, "log_every": 1, "seed": 1337, **TINY}
RUN |= {"device": "cpu", "threads": 1, "compile": "off", "dtype": "fp32"}
SMALL_BPE = {"minutes": 0, "vocab_size": 300, "documents": 120, "batch_size": 4, "batch_tokens": 1024}
FOUR_PARTS = {"batch_size": 4, "gradient_accumulation_steps": 4}
RAMP = {"batch_ramp": "0.25@0,0.5@0.3,1@0.6"}
GREEDY = {"prompt": "def main(", "max_new_tokens": 60, "temperature": 0, "device": "cpu"}
SEEDED = {**GREEDY, "prompt": "import", "temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7}
EVALUATION = {"eval_tokens": 4096, "threads": 1, "device": "cpu", "json": True}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
PLAYS = {"path": SHARED / "tinyshakespeare" / "input.txt"}
MLPS = ("gelu-exact", "relu2", "square", "swiglu")  # gelu and softmax are those of debug
POINTWISE = ("relu", "gelu", "relu2", "silu", "tanh", "sigmoid", "identity", "softplus")
ATTENTIONS = ["explicit", "gaussian", "gaussian-normalized", "power"]
ATTENTIONS += [f"gaussian-poly-{power}" for power in (2, 4, 6, 8)] + [f"pointwise-{name}" for name in POINTWISE]
FORMS = {"fp32": {}, "bf16": {"dtype": "bf16"}, "int8": {"quantize": "int8"}, "int4": {"quantize": "int4"}}
SOURCES = {"text": {"path": "text", "format": "nanogpt"}, "jsonl": {"path": "lines.jsonl", "text_field": "body"}}
SOURCES |= {"python": {"documents": 60}, "shakespeare": PLAYS}
Settings = Record = dict[str, Any]
CASES: dict[str, tuple[str, str, Settings]] = {  # name -> (command, recipe or model or source, settings)
    "debug-fp32": ("train", DEBUG, {}),
    "debug-bf16": ("train", DEBUG, {"dtype": "bf16"}),
    "modern-python": ("train", MODERN, SMALL_BPE),
    "modern-python-bf16": ("train", MODERN, {**SMALL_BPE, "dtype": "bf16"}),
    "shakespeare-char": ("train", SHAKESPEARE, {**PLAYS, "warmup_steps": 5}),
    "muon-batch-ramp": ("train", MODERN, {**SMALL_BPE, **RAMP, "weight_decay": 0.1, "gradient_clip": 0.5}),
    "adamw-batch-ramp": ("train", DEBUG, {**FOUR_PARTS, **RAMP}),
    "accumulation-dropout": ("train", DEBUG, {**FOUR_PARTS, "dropout": 0.1}),
    "lora": ("train", DEBUG, {"init": "debug-fp32", "lora_rank": 4, "lora_alpha": 8, "lr": 1e-3}),
    "two-ranks": ("train", DEBUG, {"dist_backend": "gloo", "gradient_accumulation_steps": 4}),
    "resumed": ("train", DEBUG, {}),
    "compiled": ("train", DEBUG, {"compile": "on", "compile_backend": "aot_eager"}),
    "schedule-linear": ("train", DEBUG, {"schedule": "linear", "warmup_steps": 5}),
    "schedule-constant": ("train", DEBUG, {"schedule": "constant", "beta1": 0.8, "beta2": 0.99, "eps": 1e-6}),
    "schedule-wsd": ("train", DEBUG, {"schedule": "wsd", "warmup_steps": 5, "decay_fraction": 0.5}),
    "norm-rmsnorm": ("train", DEBUG, {"norm": "rmsnorm", "bias": False, "tied_head": False}),
    "position-rotary": ("train", DEBUG, {"position": "rotary", "qk_norm": True}),
    **{f"mlp-{name}": ("train", DEBUG, {"mlp": name}) for name in MLPS},
    **{f"attention-{name}": ("train", DEBUG, {"attention": name}) for name in ATTENTIONS},
    "attention-length-power": ("train", DEBUG, {"attention": "pointwise-relu", "pointwise_length_power": 0.5}),
    "attention-bf16-dropout": ("train", DEBUG, {"attention": "gaussian", "dtype": "bf16", "dropout": 0.1}),
    **{f"greedy-{form}": ("sample", BUNDLED_MODEL, {**GREEDY, **flags}) for form, flags in FORMS.items()},
    **{f"seeded-{form}": ("sample", BUNDLED_MODEL, {**SEEDED, **flags}) for form, flags in FORMS.items()},
    **{
        f"three-{form}": ("sample", BUNDLED_MODEL, {**SEEDED, **flags, "num_samples": 3})
        for form, flags in FORMS.items()
    },
    "sample-lora": ("sample", "lora", SEEDED),
    "sample-gaussian": ("sample", "attention-gaussian", {**SEEDED, "num_samples": 2}),
    **{f"eval-{d}": ("eval", BUNDLED_MODEL, {**EVALUATION, "dtype": d, "data": "text"}) for d in ("fp32", "bf16")},
    "eval-lora": ("eval", "lora", EVALUATION),
    **{
        f"data-{source}-{tokenizer}": ("prepare", source, {**flags, "tokenizer": tokenizer, "vocab_size": 300})
        for source, flags in SOURCES.items()
        for tokenizer in ("byte", "character", "bpe", "gpt2")
    },
}


def quill(folder: Path, command: str, subject: str, settings: Settings, launcher: tuple[str, ...] = ()) -> str:
    """Run a command of quill in the folder and return its standard output; a failure is a `RuntimeError`."""
    pairs = [(FLAGS.get(name, "--" + name.replace("_", "-")), str(value)) for name, value in settings.items()]
    variables = {"PYTHONPATH": ROOT / SOURCE, "OMP_NUM_THREADS": 1, "TIKTOKEN_CACHE_DIR": SHARED / "tiktoken-cache"}
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    arguments = [sys.executable, *launcher, "-m", PACKAGE, command, subject, *sum(pairs, ())]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout


@functools.cache
def train(folder: Path, name: str) -> Path:
    """Train a case, after those it starts from; return its run directory."""
    _, recipe, settings = CASES[name]
    if "init" in settings:
        train(folder, settings["init"])
    if name == "resumed":  # the finished run without its last checkpoint, as if it had been killed after step 15
        shutil.copytree(train(folder, "debug-fp32"), folder / name)
        shutil.rmtree(max((folder / name).rglob(TENSOR_FILE)).parent)
    quill(folder, "train", recipe, {**RUN, **settings, "out": name}, TORCHRUN if name == "two-ranks" else ())
    return folder / name


def compute(folder: Path, name: str) -> Record:
    """The record of a case."""
    command, subject, settings = CASES[name]
    if command == "train":
        return record_of_run(train(folder, name))
    if command == "prepare":
        quill(folder, command, subject, {**settings, "processes": 1, "out": name})
        files = list((folder / name).glob(TOKEN_FILE))
        if not files:
            raise RuntimeError(f"no file {TOKEN_FILE}")
        return {"files": {file.name: sha256(file.read_bytes()) for file in files}}
    if subject in CASES:
        train(folder, subject)
    output = quill(folder, command, subject, settings)
    if command == "sample":
        return {"text": output}
    scores = json.loads(output)[0][SCORES_KEY]
    return {"numbers": {name: {"": number(scores, keys)} for name, keys in SCORES.items()}}


def record_of_run(run: Path) -> Record:
    """Tensors of the last checkpoint and the metrics of every step; of all tensors together a hash without names."""
    parts = {file.name: tensor_hashes(file) for file in max(run.rglob(TENSOR_FILE)).parent.glob(TENSOR_FILE)}
    optimizer = parts.pop(*fnmatch.filter(parts, OPTIMIZER_FILE))
    (weights,) = parts.values()
    (metrics,) = run.rglob(METRICS_FILE)
    lines = {line[STEP_KEY]: line for line in map(json.loads, metrics.read_text().splitlines())}
    evals, steps = range(EVAL_EVERY, STEPS + 1, EVAL_EVERY), range(1, STEPS + 1)
    numbers = {name: {str(i): number(lines[i], keys) for i in steps} for name, keys in EVERY_STEP.items()}
    numbers |= {name: {str(i): number(lines[i], keys) for i in evals} for name, keys in EVALUATED.items()}
    together = [sha256("".join(sorted(part.values())).encode()) for part in (weights, optimizer)]
    return {"sha256": together, "weights": weights, "optimizer": sorted(optimizer.values()), "numbers": numbers}


def number(values: dict[str, float], keys: tuple[str, ...]) -> str:
    key = next((key for key in keys if key in values), keys[0])
    return float(values[key]).hex()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tensor_hashes(file: Path) -> dict[str, str]:
    """Name -> SHA-256 of dtype, shape and bytes, read from the safetensors format itself."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    entries = {name: entry for name, entry in json.loads(content[8:start]).items() if name != "__metadata__"}
    return {
        name: sha256(f"{entry['dtype']} {entry['shape']} ".encode() + content[start + begin : start + end])
        for name, entry in sorted(entries.items())
        for begin, end in [entry["data_offsets"]]
    }


def write_text(folder: Path) -> None:
    """Sixty documents of made-up words: files in text/, and the lines of lines.jsonl."""
    parts = ["ba", "ke", "li", "mo", "nu", "Ra", "sté", "wø", "x,", "y.", "z\n", "語", "🙂", "def ", "12", " "]
    documents = ["".join(random.Random(seed).choices(parts, k=600)) for seed in range(60)]
    (folder / "text").mkdir()
    for index, document in enumerate(documents):
        (folder / "text" / f"{index:02}.txt").write_text(document, encoding="utf-8")
    (folder / "lines.jsonl").write_text("".join(json.dumps({"body": document}) + "\n" for document in documents))


def differences(then: Record, now: Record) -> tuple[list[str], list[str]]:
    """What differs, and what only has another name."""
    different, renamed = [], []
    for part in ("weights", "files"):
        old, new = then.get(part, {}), now.get(part, {})
        if old.keys() != new.keys() and sorted(old.values()) == sorted(new.values()):
            renamed.append(f"{part}: {sorted(old.keys() - new.keys())} -> {sorted(new.keys() - old.keys())}")
        elif old != new:
            names = [name for name in old | new if old.get(name) != new.get(name)]
            different.append(f"{part}: {len(names)} of {len(old | new)}: {', '.join(names)[:150]}")
    if then.get("optimizer") != now.get("optimizer"):
        different.append(f"optimizer: {len(set(now['optimizer']) - set(then['optimizer']))} tensors")
    for name, old in then.get("numbers", {}).items():
        new = now["numbers"][name]
        if steps := [step for step in old if old[step] != new[step]]:
            values = " -> ".join(repr(float.fromhex(series[steps[0]])) for series in (old, new))
            different.append(f"{name}: {len(steps)} of {len(old)}, first {steps[0]}: {values}")
    if (old := then.get("text")) != (new := now.get("text")):
        same = next(length for length in range(len(old) + 1) if old[: length + 1] != new[: length + 1])
        different.append(f"text: from character {same}: {old[same : same + 40]!r} -> {new[same : same + 40]!r}")
    return different, renamed


def machine() -> dict[str, str]:
    lines = set(Path("/proc/cpuinfo").read_text().splitlines())
    cpu = sha256("".join(sorted(line for line in lines if line.startswith(("model name", "flags")))).encode())
    return {"cpu": cpu[:16], "python": sys.version.split()[0], "torch": version("torch"), "numpy": version("numpy")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="*", metavar="NAME,...", help="cases, as names or shell patterns")
    options = parser.parse_args()
    is_check = options.action == "check"
    golden = json.loads(options.file.read_text()) if is_check else {"machine": machine(), "cases": {}}
    if golden["machine"] != machine():
        print(f"another machine, bits may differ: {golden['machine']}, here {machine()}")
    chosen = [name for name in CASES if any(fnmatch.fnmatch(name, one) for one in options.only.split(","))]
    started, failures = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder))
        for name in chosen:
            record, renamed = {}, []
            try:
                record = compute(Path(folder), name)
                golden["cases"] |= {} if is_check else {name: record}
                different, renamed = differences(golden["cases"][name], record)
            except (RuntimeError, LookupError, ValueError, TypeError, OSError) as error:
                different = [f"failed: {type(error).__name__}: {error}"]
            failures += bool(different)
            verdict = "DIFFERENT" if different else "renamed" if renamed else "equal" if is_check else "recorded"
            lines = [f"{name:30}{verdict:12}{record.get('sha256', [''])[0][:12]}", *different, *renamed]
            print("\n    ".join(lines), flush=True)
    if not is_check and not failures:
        options.file.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{len(chosen)} cases, {failures} different or failed, {time.perf_counter() - started:.0f} s")
    sys.exit(1 if failures or not chosen else 0)


if __name__ == "__main__":
    main()

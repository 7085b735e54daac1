"""How fast `quill prepare` turns text into shards with GPT-2's BPE, against tiktoken alone on the same text in one run.

    TIKTOKEN_CACHE_DIR=../shared/data/tiktoken-cache python benchmarks/prepare_speed.py
    python benchmarks/prepare_speed.py --megabytes 1000     # memory stays what it is

The text is Python's standard library again and again, each document with another first line, in one JSON file. Time is
that of the whole command, from start to exit: reading, JSON, splitting, hashing, encoding, writing, checking. A core's
rate is the text divided by the time on the clock and by the processes; beside it, by the processor time that all of
them used, which other work on the machine disturbs less. The goal is at least 4 MB/s per core and less than 1 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from quillgpt.config import DataConfig
from quillgpt.data.document import Tally
from quillgpt.data.sources import open_source
from quillgpt.hardware import available_cores, cpu_name

GOAL = 4.0
BARE_BYTES = 16_000_000
SECONDS_BETWEEN_LOOKS = 0.02


@dataclass
class Measured:
    """One run of the command: seconds on the clock and of processors, most memory of all its processes together."""

    processes: int
    seconds: float
    processor_seconds: float
    memory_bytes: int

    def report(self, text_bytes: int, bare: float) -> None:
        """Print the rates and their ratio to tiktoken alone."""
        megabytes = text_bytes / 1e6
        rate = megabytes / self.seconds / self.processes
        by_processor = megabytes / self.processor_seconds
        print(
            f"quill prepare, encoding in {self.processes:2}: {rate:5.2f} MB/s per core ({rate / bare:.2f} of tiktoken "
            f"alone); {by_processor:5.2f} MB per second of processor time ({by_processor / bare:.2f}); "
            f"{self.seconds:.1f} s; peak {self.memory_bytes / 1e6:,.0f} MB in all processes"
        )


def write_text(path: Path, megabytes: int) -> int:
    """Write the JSON lines; return the bytes of their text."""
    source = open_source(DataConfig(source="python"))
    written = number = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1_000_000:
            for blocks in source.documents(Tally()):
                number += 1
                text = f"# document {number}\n{''.join(blocks)}"
                written += len(text.encode())
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                if written >= megabytes * 1_000_000:
                    break
    return written


def bare_tiktoken(path: Path) -> float:
    """Megabytes a second of tiktoken on the first part of the texts, in one thread, decoded and ready."""
    encoding = tiktoken.get_encoding("gpt2")
    texts, size = [], 0
    with path.open(encoding="utf-8") as file:
        while size < BARE_BYTES and (line := file.readline()):
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
    encoding.encode_to_numpy(texts[0], disallowed_special=())
    started = time.perf_counter()
    for text in texts:
        encoding.encode_to_numpy(text, disallowed_special=())
    return size / 1e6 / (time.perf_counter() - started)


def measure(path: Path, out: Path, processes: int) -> Measured:
    """Run `quill prepare` once."""
    arguments = ["prepare", "jsonl", "--path", str(path), "--out", str(out), "--processes", str(processes)]
    started = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = subprocess.Popen([sys.executable, "-m", "quillgpt", *arguments], **quiet)
    peak = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            peak = max(peak, memory_of_tree(command.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, used = os.wait4(command.pid, 0)
    seconds = time.perf_counter() - started
    command.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    watcher.join()
    if command.returncode:
        sys.exit(f"quill prepare ended with exit code {command.returncode}")
    return Measured(processes, seconds, used.ru_utime + used.ru_stime, peak)


def memory_of_tree(process: int) -> int:
    """Resident bytes of a process and those it started, as Linux tells; what they share is counted for each."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(memory_of_tree(int(child)) for child in children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64, help="size of the text")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, available_cores()], help="how many encode")
    options = parser.parse_args()
    print(f"python {' '.join(sys.argv)}")
    print(f"{available_cores()} cores of {cpu_name()}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.jsonl"
        text_bytes = write_text(path, options.megabytes)
        before = bare_tiktoken(path)
        measured = [
            measure(path, Path(folder) / f"data{processes}", processes) for processes in sorted(set(options.processes))
        ]
        bare = (before + bare_tiktoken(path)) / 2
    print(f"{text_bytes / 1e6:,.0f} MB of text; tiktoken alone, 1 thread: {bare:5.2f} MB/s (mean of before and after)")
    for run in measured:
        run.report(text_bytes, bare)
    best = max(text_bytes / 1e6 / run.seconds / run.processes for run in measured)
    print(f"goal {GOAL} MB/s per core: {'reached' if best >= GOAL else 'missed'}")


if __name__ == "__main__":
    main()

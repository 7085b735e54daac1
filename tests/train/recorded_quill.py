"""`quill`, with a record of what each rank trains on: `torchrun ... -m recorded_quill train ...`.

$RECORD/rank-N.jsonl gets a line for each step: the step and a hash of every row of the rank's batch.
"""

import json
import os
import runpy
from pathlib import Path

from torch import Tensor

from quillgpt.data.loader import BatchLoader

unrecorded = BatchLoader.batch


def row_hashes(inputs: Tensor, targets: Tensor) -> list[str]:
    """One hash for each row's inputs and targets."""
    import hashlib

    return [
        hashlib.sha256(row.numpy().tobytes() + target.numpy().tobytes()).hexdigest()[:16]
        for row, target in zip(inputs, targets, strict=True)
    ]


def recorded(self: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
    """The batch, written down."""
    inputs, targets = unrecorded(self, step, rank, world_size)
    with (Path(os.environ["RECORD"]) / f"rank-{rank}.jsonl").open("a") as file:
        file.write(json.dumps([step, row_hashes(inputs, targets)]) + "\n")
    return inputs, targets


if __name__ == "__main__":
    BatchLoader.batch = recorded
    runpy.run_module("quillgpt", run_name="__main__")

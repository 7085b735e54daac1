"""Imported before torch: threads then wait for each other as they do under `quill`, which sets it at its start."""

from quillgpt.openmp import spin_briefly

spin_briefly()

"""Checkpoints: `save.py` writes them, `load.py` finds and opens them, `init_from.py` starts a run from a model."""

from quillgpt.checkpoint.load import ADAPTER as ADAPTER
from quillgpt.checkpoint.load import BUNDLED_MODEL as BUNDLED_MODEL
from quillgpt.checkpoint.load import CONFIG as CONFIG
from quillgpt.checkpoint.load import MANIFEST as MANIFEST
from quillgpt.checkpoint.load import MODEL as MODEL
from quillgpt.checkpoint.load import OPTIMIZER as OPTIMIZER
from quillgpt.checkpoint.load import RUNTIME as RUNTIME
from quillgpt.checkpoint.load import STATE as STATE
from quillgpt.checkpoint.load import TOKENIZER as TOKENIZER
from quillgpt.checkpoint.load import Checkpoint as Checkpoint
from quillgpt.checkpoint.load import CheckpointManifest as CheckpointManifest
from quillgpt.checkpoint.load import FileRecord as FileRecord
from quillgpt.checkpoint.load import committed as committed
from quillgpt.checkpoint.load import find as find
from quillgpt.checkpoint.load import latest_intact as latest_intact
from quillgpt.checkpoint.load import load_model as load_model
from quillgpt.checkpoint.load import open_model as open_model
from quillgpt.checkpoint.load import read_checkpoint as read_checkpoint
from quillgpt.checkpoint.load import scan as scan
from quillgpt.checkpoint.load import to_source as to_source
from quillgpt.checkpoint.load import verify as verify
from quillgpt.checkpoint.save import prune as prune
from quillgpt.checkpoint.save import save as save
from quillgpt.checkpoint.save import weights_fingerprint as weights_fingerprint

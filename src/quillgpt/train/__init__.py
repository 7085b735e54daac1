"""Training: `loop.py` is the one function that trains; the other files are the parts it names.

This folder and the function share a name: `quillgpt.train(config)` is `quillgpt.train.loop.train(config)`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quillgpt.config import RunConfig
    from quillgpt.train.loop import Outcome
    from quillgpt.train.progress import Screen


class _CallableFolder(ModuleType):
    """Python binds `quillgpt.train` to this module as soon as a file of it is imported; so it is the function too."""

    def __call__(self, config: "RunConfig", screen: "Screen | None" = None) -> "Outcome":
        from quillgpt.train.loop import train

        return train(config, screen)


sys.modules[__name__].__class__ = _CallableFolder

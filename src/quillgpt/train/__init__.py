"""Training: `loop.py` is the one function that trains; the other files are the parts it names.

    import quillgpt

    config = quillgpt.load_recipe("debug")
    outcome = quillgpt.train(config)
    print(outcome.step, outcome.held_out.bits_per_byte)
    outcome = quillgpt.train(config)  # finished: evaluates, and changes nothing

`quillgpt.train` is this folder and, when called, `loop.train`: Python gives a package's name to the folder, so the folder
answers calls.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quillgpt.config import RunConfig
    from quillgpt.train.loop import Outcome
    from quillgpt.train.progress import Screen


class _Train(ModuleType):
    def __call__(self, config: "RunConfig", screen: "Screen | None" = None) -> "Outcome":
        from quillgpt.train.loop import train

        return train(config, screen)


sys.modules[__name__].__class__ = _Train

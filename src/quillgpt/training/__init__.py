"""Training: `loop.py` is the function that trains, `step.py` one optimizer step, `setup.py` what both work with."""

from quillgpt import recipes
from quillgpt.config import RunConfig, Scalar


def load_recipe(name_or_path: str, **changes: Scalar) -> RunConfig:
    """The settings of a recipe, by its name or file, some of them changed; `train` takes them.

    Where `init` names a model to start from, the shape is that of the model. Without one no torch is loaded.

    For example:
        config = quillgpt.load_recipe("debug", steps=50, device="cpu", out="runs/first")
        print(config.model.n_layer, config.train.steps)  # 2 50
        outcome = quillgpt.train(config)
    """
    config = recipes.recipe_config(name_or_path, **changes)
    if config.train.init == "scratch":
        return config
    from quillgpt.checkpoint.init_from import with_init_shape

    origins = recipes.read_recipe(name_or_path)[1] | {name: f"flag {name}" for name in changes}
    return with_init_shape(config, origins)[0]

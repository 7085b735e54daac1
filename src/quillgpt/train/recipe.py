"""A recipe's settings from Python, with the shape of the model that the run is to start from; no torch without one."""

from quillgpt import recipes
from quillgpt.config import RunConfig, Scalar


def load_recipe(name_or_path: str, **changes: Scalar) -> RunConfig:
    """The settings of a recipe by its name or its file, some of them changed; `train` takes them.

    Where `init` names a model to start from, the shape is that model's.

    For example:
        config = quillgpt.load_recipe("debug", steps=50, device="cpu", out="runs/first")
        print(config.model.n_layer, config.train.steps)  # 2 50
        outcome = quillgpt.train(config)
    """
    config = recipes.load_recipe(name_or_path, **changes)
    if config.train.init == "scratch":
        return config
    from quillgpt.train.starting_point import with_the_shape_of_init

    origins = recipes.read_recipe(name_or_path)[1] | {name: f"flag {name}" for name in changes}
    return with_the_shape_of_init(config, origins)[0]

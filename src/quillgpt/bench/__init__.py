"""What training, sampling and loading cost on this machine, and what a setting changes: `quill bench`.

- windows.py: repeated windows of several sides in turn; median and quartiles, ratios turn by turn
- machine.py: the measured peak of matrix products, and what else belongs beside every number
- training.py, sampling.py, loading.py: the three things that are measured, each through the code that runs otherwise
- time_to_loss.py: training until a held-out loss is reached
- profiling.py: the heaviest operators, and a trace to look at
- random_tokens.py: data of the right shape where a recipe's own is not at hand
"""

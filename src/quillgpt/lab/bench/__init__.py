"""Benchmarks of training, sampling and loading on this machine, and of what a setting changes: `quill bench`.

- measure.py: windows in turns, medians and ratios; the measured peak, the clock, the profiler
- training.py, sampling.py, loading.py: what is measured, with the code that a run executes
- time_to_loss.py: training until a validation loss is reached
"""

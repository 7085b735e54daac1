"""Evaluation of models: validation loss, tasks, and lm-evaluation-harness; each result is one JSON file."""

"""Attention on encrypted numbers: a check of the arithmetic, and what keeps the rest of a model from it.

head.py takes one head of a model apart, in the clear; layout.py puts matrices into the slots of a ciphertext; ckks.py
is the encryption, the client's keys on one side and the server's on the other; circuit.py is what the server computes;
check.py runs both sides and compares. verdicts.py says of every menu entry what it costs, survey.py of a whole model.
"""

"""Attested agents of training: what holds keys, data and weights, apart from the engine that carries their messages.

Spec: docs/spec/training.md.
"""

"""Passes of a model at a sweep point: inputs, KV caches, CUDA graphs."""

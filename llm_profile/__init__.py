"""LLM-Profile: per-layer GPU latency of Hugging Face causal LMs, for LLM-serving simulators."""

__version__ = "0.1.0"

"""Qwen2-family language models and process reward models as Flax modules."""

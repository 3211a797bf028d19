"""Benchmarks, prompts, tokenizers and answer grading."""

"""Configurations of the commands, installed as `trim_jax.configs`; each has a `get_config()`."""

"""Configurations of the commands; installed as `trim_jax.configs`. Each file has a `get_config()`."""

"""What `trim-jax` can do, one file a sub-command: each has `run(config, ...)`."""

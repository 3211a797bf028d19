"""What `trim-jax bench` measures, one module a question."""

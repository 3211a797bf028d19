"""Random parameters for tests, made with NumPy: compiling JAX's initialisers takes longer."""

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.models.qwen2 import ModelConfig, init_params


def lively(config: ModelConfig, seed: int = 0, scale: float = 0.2) -> dict:
    """Parameters with random biases and norms too, large enough to make attention uneven."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key.startswith("norm") else 0.0
        return jnp.asarray(centre + scale * rng.normal(size=leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(lambda: init_params(config, 0))
    return jax.tree_util.tree_map_with_path(draw, shapes)

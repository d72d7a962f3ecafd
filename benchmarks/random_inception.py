"""Random weights for Inception-v3 with PyTorch's names and shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.metrics.features.inception import InceptionV3, torch_names


def random_inception(seed: int = 0) -> dict[str, np.ndarray]:
    """Draw a float32 state dict of PyTorch's module that preserves the scale of activations."""
    rng = np.random.RandomState(seed)
    shapes = jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
    state = {}
    for path, leaf in jax.tree.leaves_with_path(shapes["params"]):
        *layer, part = (key.key for key in path)
        if part == "bias":
            continue
        name, norm = torch_names(".".join(layer))
        *window, inputs, features = leaf.shape
        scale = np.sqrt(2 / (inputs * np.prod(window)))
        state[f"{name}.weight"] = scale * rng.standard_normal((features, inputs, *window))
        if norm is None:
            state[f"{name}.bias"] = rng.standard_normal(features)
            continue
        for part, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", -0.5, 0.5),
            ("running_mean", -0.5, 0.5),
            ("running_var", 0.5, 1.5),
        ):
            state[f"{norm}.{part}"] = rng.uniform(low, high, features)
        state[f"{norm}.num_batches_tracked"] = np.array(1.0)
    return {name: array.astype(np.float32) for name, array in state.items()}

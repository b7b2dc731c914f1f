"""Optimisers of the learner, without the learning rate, which `Steps.apply` multiplies in.

Both clip the gradient by its global norm first, and both let only matrices decay, not norm scales
and biases. Moments are float32 or wider whatever the parameters are; of parameters that are
narrower learn/step.py keeps a copy in float32.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as optax_muon

# The root mean square of Muon's updates, that of AdamW's: one learning rate suits both
# (arXiv 2502.16982, section 2.2).
MUON_RMS = 0.2


def adamw(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    max_norm: float = 1.0,
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101)."""
    return optax.chain(
        optax.clip_by_global_norm(max_norm),
        optax.scale_by_adam(b1, b2, eps),
        _decay(weight_decay),
    )


def muon(weight_decay: float = 0.01, max_norm: float = 1.0) -> optax.GradientTransformation:
    """Muon (K. Jordan, 2024) for the matrices inside the layers, Adam for all other parameters.

    Orthogonalised updates learn a small model from scratch in a fraction of AdamW's steps; the
    price is five products of each layer matrix with itself in every step, whatever the batch.
    """
    inner = optax_muon(
        learning_rate=1.0, consistent_rms=MUON_RMS, muon_weight_dimension_numbers=_layer_matrices
    )
    return optax.chain(
        optax.clip_by_global_norm(max_norm), inner, optax.scale(-1.0), _decay(weight_decay)
    )


OPTIMISERS = {"adamw": adamw, "muon": muon}


def _decay(weight_decay: float) -> optax.GradientTransformation:
    return optax.add_decayed_weights(
        weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    )


def _layer_matrices(params: Any) -> Any:
    """Which parameters Muon takes; None for the others."""

    def one(path, x):
        inside = any(str(getattr(key, "key", key)).startswith("layers_") for key in path)
        return MuonDimensionNumbers() if inside and x.ndim == 2 else None

    return jax.tree_util.tree_map_with_path(one, params)

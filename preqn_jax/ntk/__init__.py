"""The neural tangent kernel of a Q-function, K_ij = grad Q(x_i) . grad Q(x_j)  (Eq. 9).

Two exact ways to the same K:

* ``method="jacobian"``: per-example gradients by ``jax.vmap(jax.jacrev(q))``, then Phi^T Phi. The
  reference. For d parameters it holds ``B*d`` numbers and spends about ``B^2*d`` multiply-adds.
* ``method="structured"``: a weight matrix W that enters only as ``x @ W`` has per-example gradient
  x (outer) D, where D is the gradient of Q with respect to that product. Two such gradients have
  the inner product (x.x')(D.D'), so the layer's share of K is (X X^T) * (D D^T), elementwise:
  ``B^2*(in + out)`` multiply-adds where the Jacobian spends ``B^2*in*out``, and no per-example
  gradient exists at any time.

How a weight is used is read off the jaxpr of ``q``, through casts, transposes and reshapes: every
weight whose uses are all ``dot_general`` with the same layout is taken apart in this way (dense
layers with any number of axes, layers used several times, stacked ensembles, layers in mixed
precision), and every other leaf (biases, LayerNorm scales, convolutions, tied weights) goes through
the per-example Jacobian of that leaf alone. Both parts are exact, so the sum is, for any pure
function; a matrix that has to take the slow way is named in a warning.

q computes in its own dtypes, and its inputs may have any. The kernel's products are taken in
float32, or in float64 if a parameter is float64. Every leaf of the parameters must be real and
floating-point; any other leaf raises an error that names it, and q should close over it instead.

`usage` reads the jaxpr, `factored` does the algebra, `api` holds the public functions.
"""

from preqn_jax.ntk.api import (
    METHODS,
    Elsewhere,
    Linearization,
    Method,
    kernel,
    linearize,
)

__all__ = [
    "METHODS",
    "Elsewhere",
    "Linearization",
    "Method",
    "kernel",
    "linearize",
]

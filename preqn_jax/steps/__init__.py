"""`ValueStep`: how the parameters of a value function are updated, given inputs and target values.

Every algorithm of the paper is a `ValueStep` and a rule for the targets. Targets are numbers that
are computed outside of the step, so no step can differentiate through the bootstrap.

Numbers such as a learning rate may be traced by JAX, so `jax.vmap` over a function that makes a
step and applies it is a sweep. Only numbers of Python and NumPy are checked to be in range.
"""

from preqn_jax.steps.base import LearningRate, Memory, StepInfo, ValueStep, ensemble, gradient
from preqn_jax.steps.ngql import natural_gradient
from preqn_jax.steps.preqn import Adaptive, PreconditionedMemory, preconditioned

__all__ = [
    "Adaptive",
    "LearningRate",
    "Memory",
    "PreconditionedMemory",
    "StepInfo",
    "ValueStep",
    "ensemble",
    "gradient",
    "natural_gradient",
    "preconditioned",
]

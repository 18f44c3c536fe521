"""`ValueStep`: how the parameters of a value function move, given inputs and the targets their
values should take.

Every algorithm of the paper is this record and a rule for the targets. Targets are numbers,
computed outside: no step can differentiate through the bootstrap.

Numbers such as a learning rate may be arrays that JAX traces, so `jax.vmap` over a function that
makes a step and takes it is a sweep. Only a number of Python's own is checked.
"""

from preqn_jax.steps.base import LearningRate, Memory, StepInfo, ValueStep, ensemble, gradient
from preqn_jax.steps.ngql import natural_gradient
from preqn_jax.steps.preqn import Adaptive, Kept, preconditioned

__all__ = [
    "Adaptive",
    "Kept",
    "LearningRate",
    "Memory",
    "StepInfo",
    "ValueStep",
    "ensemble",
    "gradient",
    "natural_gradient",
    "preconditioned",
]

"""How q uses its parameters, read off its jaxpr: the one file that knows jax's internals.

`read` writes q down as a flat list of operations on numbered values, with the calls that take a
parameter replaced by their bodies. A value's number says what it is: the leaves of the parameters
come first, then the leaves of one example's inputs, then all that is computed.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from preqn_jax.batching import batch_size
from preqn_jax.types import Array, Inputs, Params, QFunction

_CALLS = ("jit", "pjit", "closed_call", "remat", "remat2", "checkpoint")
_SMALL_LEAF = 1024  # numbers; the Jacobian of stacked biases and the like is cheap: no warning


class Operation(NamedTuple):
    """One equation of q: from the values `inputs` its primitive makes the values `outputs`."""

    eqn: jex.JaxprEqn
    inputs: list[int]
    outputs: list[int]


class Use(NamedTuple):
    """One `dot_general` of data with a weight, as seen from the weight. Axes are paired in the
    weight's order.
    """

    leaf: int  # the weight
    on_left: bool  # the weight is the left operand
    weight_batch: tuple[int, ...]
    weight_contract: tuple[int, ...]
    data_batch: tuple[int, ...]
    data_contract: tuple[int, ...]

    @property
    def weight_axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.weight_batch, self.weight_contract

    def canonical_data(self, x: Array) -> Array:
        """The data operand as `[G, U, in]`: stacked members, uses, contracted features."""
        free = tuple(a for a in range(x.ndim) if a not in self.data_batch + self.data_contract)
        groups, uses = (math.prod(x.shape[a] for a in axes) for axes in (self.data_batch, free))
        return x.transpose(self.data_batch + free + self.data_contract).reshape(groups, uses, -1)

    def canonical_product(self, z: Array, weight_ndim: int) -> Array:
        """The product (or a gradient shaped like it) as `[G, U, out]`."""
        batch = len(self.weight_batch)
        weight_free = weight_ndim - batch - len(self.weight_contract)
        groups, rest = math.prod(z.shape[:batch]), z.shape[batch:]
        if self.on_left:
            out, uses = math.prod(rest[:weight_free]), math.prod(rest[weight_free:])
            return z.reshape(groups, out, uses).swapaxes(1, 2)
        return z.reshape(groups, math.prod(rest[: len(rest) - weight_free]), -1)


class Program(NamedTuple):
    """q for one example, and which leaves of its parameters are taken apart, and where."""

    operations: list[Operation]
    constants: dict[int, Any]  # values that no operation computes
    output: int  # the value that q returns
    treedef: Any  # of the parameters
    shapes: list[tuple[int, ...]]  # of their leaves
    uses: list[Use]  # of leaves that are taken apart, in the order of evaluation
    dense: dict[int, list[int]]  # such a leaf -> positions of its uses in `uses`
    direct: list[int]  # every other leaf: it goes through per-example Jacobians

    def canonical(self, leaf: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The order in which a leaf's axes are those of `[G, in, out]`, and its shape."""
        shape = self.shapes[leaf]
        axes = sum(self.uses[self.dense[leaf][0]].weight_axes, ()) if leaf in self.dense else ()
        return axes + tuple(a for a in range(len(shape)) if a not in axes), shape


def read(q: QFunction, params: Params, inputs: Inputs, *, apart: bool) -> Program:
    """`q` as a program. Without `apart` all leaves are left whole.

    Raises ValueError where `inputs` have no batch axis in common, or q returns no scalar.
    """
    batch_size(inputs)
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
    jaxpr = jax.make_jaxpr(q)(params, *example)
    shapes = [out.shape for out in jaxpr.out_avals]
    if shapes != [()]:
        raise ValueError(
            f"q must return one scalar for one example, got shapes {shapes}; index the last axis, "
            f"as in out[0]"
        )
    leaves, treedef = jax.tree.flatten(params)
    number, constants = itertools.count(), {}
    arguments = list(itertools.islice(number, len(jaxpr.in_avals)))
    operations, (output,) = _flatten(jaxpr, arguments, len(leaves), number, constants)
    uses, other = _uses(operations, output, len(leaves)) if apart else ([], {})
    _warn_of_slow_leaves(params, other)
    uses = [use for use in uses if use.leaf not in other]
    dense = {
        leaf: [position for position, use in enumerate(uses) if use.leaf == leaf]
        for leaf in sorted({use.leaf for use in uses})
    }
    direct = [leaf for leaf in range(len(leaves)) if leaf not in dense]
    shapes = [leaf.shape for leaf in jaxpr.in_avals[: len(leaves)]]
    return Program(operations, constants, output, treedef, shapes, uses, dense, direct)


def _flatten(
    closed: jex.ClosedJaxpr,
    arguments: Sequence[int],
    leaves: int,
    number: Iterator[int],
    constants: dict[int, Any],
) -> tuple[list[Operation], list[int]]:
    """The operations of a jaxpr on `arguments`, and the values that it returns. Calls are entered
    only where they take one of the first `leaves` values.
    """
    jaxpr, operations = closed.jaxpr, []
    numbers: dict[Any, int] = dict(zip(jaxpr.invars, arguments, strict=True))

    def constant(value: Any) -> int:
        constants[new := next(number)] = value
        return new

    def find(atom: Any) -> int:
        return constant(atom.val) if isinstance(atom, jex.Literal) else numbers[atom]

    numbers |= {v: constant(c) for v, c in zip(jaxpr.constvars, closed.consts, strict=True)}
    for eqn in jaxpr.eqns:
        inputs, body = [find(atom) for atom in eqn.invars], _body(eqn)
        if body is not None and any(value < leaves for value in inputs):
            inside, outputs = _flatten(body, inputs, leaves, number, constants)
            operations += inside
        else:
            outputs = [next(number) for _ in eqn.outvars]
            operations.append(Operation(eqn, inputs, outputs))
        numbers |= zip(eqn.outvars, outputs, strict=True)
    return operations, [find(atom) for atom in jaxpr.outvars]


def _body(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr | None:
    """The body of a call that may be replaced by its body: jit and remat, but not a custom
    derivative or a loop.
    """
    if eqn.primitive.name not in _CALLS:
        return None
    body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(body, jex.ClosedJaxpr):
        return body
    return jex.ClosedJaxpr(body, ())  # pyright: ignore[reportArgumentType]


def _uses(
    operations: Sequence[Operation], output: int, leaves: int
) -> tuple[list[Use], dict[int, str]]:
    """Every product of a leaf with data, and of each leaf that must stay whole the reason."""
    uses: list[Use] = []
    other: dict[int, str] = {}  # what a leaf is used by besides products
    for operation in operations:
        taken = [value for value in operation.inputs if value < leaves]
        if not taken:
            continue
        name = str(operation.eqn.primitive)
        use = _use(operation, taken[0]) if name == "dot_general" and len(taken) == 1 else None
        if isinstance(use, Use):
            uses.append(use)
        else:
            other |= dict.fromkeys(taken, use or name)
    if output < leaves:
        other[output] = "the output"
    layouts: dict[int, set] = {}
    for use in uses:
        layouts.setdefault(use.leaf, set()).add(use.weight_axes)
    several = "products with different layouts (a tied, transposed weight)"
    return uses, {leaf: several for leaf in layouts if len(layouts[leaf]) > 1} | other


def _use(product: Operation, leaf: int) -> Use | str:
    """How a product uses its weight, or why that is of no use."""
    on_left = product.inputs[0] == leaf
    contract, batch = product.eqn.params["dimension_numbers"]
    weight, data = (0, 1) if on_left else (1, 0)
    batch_pairs = sorted(zip(batch[weight], batch[data], strict=True))
    contract_pairs = sorted(zip(contract[weight], contract[data], strict=True))
    # The product lists its batch axes in dot_general's order: only the weight's own order keeps D
    # and X aligned.
    if [w for w, _ in batch_pairs] != list(batch[weight]):
        return "a product with permuted batch axes"
    both = (batch_pairs, contract_pairs)
    return Use(leaf, on_left, *(tuple(pair[i] for pair in pairs) for i in (0, 1) for pairs in both))


def _warn_of_slow_leaves(params: Params, other: dict[int, str]) -> None:
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    slow = [
        f"{jax.tree_util.keystr(path)} {leaf.shape} (used by {other[i]})"
        for i, (path, leaf) in enumerate(paths)
        if i in other and leaf.ndim >= 2 and leaf.size > _SMALL_LEAF
    ]
    if slow:
        warnings.warn(
            "the structured kernel takes the per-example Jacobian of these parameters, exact but "
            "slow: " + ", ".join(slow),
            stacklevel=4,
        )


def evaluate(
    program: Program, args: Sequence[Array], shifts: list[Array] | None
) -> tuple[Array, list[Array]]:
    """Run q on one example, adding `shifts` to the products of the leaves that are taken apart.

    `args` are the leaves of the parameters and of the example. Returns the value, and the data
    operand of each product; the products themselves if `shifts` is None.
    """
    values: dict[int, Any] = dict(enumerate(args)) | program.constants
    recorded: list[Array] = []
    for eqn, inputs, outputs in program.operations:
        operands = [values[i] for i in inputs]
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        results = list(results) if eqn.primitive.multiple_results else [results]
        if any(i in program.dense for i in inputs):
            if shifts is None:
                recorded.append(results[0])
            else:
                results[0] = results[0] + shifts[len(recorded)]
                recorded.append(operands[1] if inputs[0] in program.dense else operands[0])
        values |= zip(outputs, results, strict=True)
    return values[program.output], recorded

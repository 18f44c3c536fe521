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
import jax.numpy as jnp
from jax.extend import core as jex

from preqn_jax.batching import check_q, check_scalar, full_precision, one_example
from preqn_jax.types import Array, Inputs, Params, QFunction

_CALLS = ("jit", "pjit", "closed_call", "remat", "remat2", "checkpoint")
_SMALL_LEAF = 1024  # numbers; the Jacobian of stacked biases and the like is cheap: no warning


class Operation(NamedTuple):
    """One equation of q: from the values `inputs` its primitive makes the values `outputs`."""

    eqn: jex.JaxprEqn
    inputs: list[int]
    outputs: list[int]


class View(NamedTuple):
    """A leaf of the parameters in the form in which a product uses it. Casts, transposes and
    reshapes of a weight only rearrange its gradient, so inner products of gradients stay the same.
    """

    leaf: int
    moves: tuple[tuple[str, tuple[int, ...]], ...] = ()  # ("transpose", axes), ("reshape", shape)


class Use(NamedTuple):
    """One `dot_general` of data with a weight, as seen from the weight. Axes are paired in the
    order of the weight's view.
    """

    operation: int  # position of the product in the program
    view: View
    ndim: int  # of the view
    on_left: bool  # the weight is the left operand
    weight_batch: tuple[int, ...]
    weight_contract: tuple[int, ...]
    data_batch: tuple[int, ...]
    data_contract: tuple[int, ...]

    @property
    def layout(self) -> tuple[Any, ...]:
        """The properties that all uses of one weight must share."""
        return self.view.moves, self.weight_batch, self.weight_contract

    def canonical_weight(self, leaf: Array) -> Array:
        """The leaf (or a change of it) as `[G, in, out]`: stacked members, contracted features."""
        for move, argument in self.view.moves:
            leaf = getattr(leaf, move)(argument)
        free = _others(self.ndim, self.weight_batch + self.weight_contract)
        parts = (self.weight_batch, self.weight_contract, free)
        sizes = [math.prod(leaf.shape[a] for a in axes) for axes in parts]
        return leaf.transpose(sum(parts, ())).reshape(sizes)

    def canonical_data(self, x: Array) -> Array:
        """The data operand as `[G, U, in]`: stacked members, uses, contracted features."""
        free = _others(x.ndim, self.data_batch + self.data_contract)
        parts = (self.data_batch, free, self.data_contract)
        sizes = [math.prod(x.shape[a] for a in axes) for axes in parts]
        return x.transpose(sum(parts, ())).reshape(sizes)

    def canonical_product(self, z: Array) -> Array:
        """The product (or a gradient shaped like it) as `[G, U, out]`."""
        batch = len(self.weight_batch)
        weight_free = self.ndim - batch - len(self.weight_contract)
        groups, rest = math.prod(z.shape[:batch]), z.shape[batch:]
        if self.on_left:
            out, uses = math.prod(rest[:weight_free]), math.prod(rest[weight_free:])
            return z.reshape(groups, out, uses).swapaxes(1, 2)
        data_free = len(rest) - weight_free
        return z.reshape(groups, math.prod(rest[:data_free]), math.prod(rest[data_free:]))


def _others(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in axes)


class Program(NamedTuple):
    """q for one example, and which leaves of its parameters are taken apart, and where."""

    operations: list[Operation]
    constants: dict[int, Any]  # values that no operation computes
    output: int  # the value that q returns
    treedef: Any  # of the parameters
    shapes: list[tuple[int, ...]]  # of their leaves
    dtype: Any  # of the kernel: float32, or float64 where a leaf is
    uses: list[Use]  # of leaves that are taken apart, in the order of evaluation
    dense: dict[int, list[int]]  # such a leaf -> positions of its uses in `uses`
    direct: list[int]  # every other leaf that q reads: it goes through per-example Jacobians


def varying(tree: Any) -> set[str]:
    """The mesh axes over which leaves vary, within a `shard_map` that tracks this."""
    kinds = (getattr(jax.typeof(leaf), "mat", None) for leaf in jax.tree.leaves(tree))
    return set().union(*(kind.varying for kind in kinds if kind is not None))


def read(q: QFunction, params: Params, inputs: Inputs, *, apart: bool) -> Program:
    """Read `q` into a program. `params` and `inputs` are arrays, as from `parameters` and `arrays`.
    Without `apart` no leaf is taken apart.

    Raises ValueError where `inputs` have no batch axis in common, q is a network itself, returns no
    real scalar, or needs a named axis, as for a mean over the batch.
    """
    check_q(q)
    try:
        with full_precision():
            jaxpr: Any = jax.make_jaxpr(q)(params, *one_example(inputs))
    except NameError as error:
        if "axis name" not in str(error):
            raise
        raise ValueError(
            f"q of one example depends on its batch ({error}), as a network in training mode does, "
            "and such a Q has no kernel; use the network in evaluation mode"
        ) from None
    check_scalar([out.shape for out in jaxpr.out_avals])
    if not _is_real(jaxpr.out_avals[0].dtype):
        raise ValueError(
            f"q returns a number of the type {jaxpr.out_avals[0].dtype}, expected a real "
            f"floating-point one"
        )
    leaves, treedef = jax.tree.flatten(params)
    number, constants = itertools.count(), {}
    arguments = list(itertools.islice(number, len(jaxpr.in_avals)))
    views = {leaf: View(leaf) for leaf in range(len(leaves))}
    operations, (output,) = _flatten(jaxpr, arguments, views, number, constants)
    uses, other = _uses(operations, output, views) if apart else ([], {})
    _warn_of_slow_leaves(params, other)
    uses = [use for use in uses if use.view.leaf not in other]
    dense = {
        leaf: [position for position, use in enumerate(uses) if use.view.leaf == leaf]
        for leaf in sorted({use.view.leaf for use in uses})
    }
    read = {output}.union(*(operation.inputs for operation in operations))
    direct = [leaf for leaf in range(len(leaves)) if leaf in read and leaf not in dense]
    shapes = [leaf.shape for leaf in leaves]
    dtype = jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else jnp.float32
    return Program(operations, constants, output, treedef, shapes, dtype, uses, dense, direct)


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _struct(atom: jex.Var | jex.Literal) -> jax.ShapeDtypeStruct:
    aval: Any = atom.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _flatten(
    closed: Any,
    arguments: Sequence[int],
    views: dict[int, View],
    number: Iterator[int],
    constants: dict[int, Any],
) -> tuple[list[Operation], list[int]]:
    """The operations of a jaxpr on `arguments`, and the values that it returns. Values that are
    views of a leaf are added to `views`; calls are entered only if an argument is a view.
    """
    # Up to jax 0.10 a jaxpr comes in a pair with its constants, or alone if it has none, as in a
    # remat; since 0.11 both are one type.
    jaxpr, values = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    operations: list[Operation] = []
    numbers: dict[Any, int] = dict(zip(jaxpr.invars, arguments, strict=True))

    def constant(value: Any) -> int:
        constants[new := next(number)] = value
        return new

    def find(atom: Any) -> int:
        return constant(atom.val) if isinstance(atom, jex.Literal) else numbers[atom]

    numbers |= {v: constant(c) for v, c in zip(jaxpr.constvars, values, strict=True)}
    for eqn in jaxpr.eqns:
        inputs, body = [find(atom) for atom in eqn.invars], _body(eqn)
        if body is not None and any(value in views for value in inputs):
            inside, outputs = _flatten(body, inputs, views, number, constants)
            operations += inside
        else:
            outputs = [next(number) for _ in eqn.outvars]
            operations.append(Operation(eqn, inputs, outputs))
            if len(inputs) == 1 and inputs[0] in views and (view := _seen(eqn, views[inputs[0]])):
                views[outputs[0]] = view
        numbers |= zip(eqn.outvars, outputs, strict=True)
    return operations, [find(atom) for atom in jaxpr.outvars]


def _body(eqn: jex.JaxprEqn) -> Any:
    """The body of a call that may be replaced by its body: jit and remat, but not a custom
    derivative or a loop.
    """
    if eqn.primitive.name not in _CALLS:
        return None
    return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))


def _seen(eqn: jex.JaxprEqn, view: View) -> View | None:
    """The view that an equation makes of `view`; None if its result is not a view."""
    before, after = _struct(eqn.invars[0]), _struct(eqn.outvars[0])
    match eqn.primitive.name:
        case "convert_element_type" if _is_real(after.dtype):
            return view
        case "transpose":
            return view._replace(moves=(*view.moves, ("transpose", eqn.params["permutation"])))
        case "reshape" if eqn.params["dimensions"] is not None:
            return None  # such a reshape transposes first
        case "reshape" | "squeeze" | "broadcast_in_dim" if before.size == after.size:
            return view._replace(moves=(*view.moves, ("reshape", after.shape)))
    return None


def _uses(
    operations: Sequence[Operation], output: int, views: dict[int, View]
) -> tuple[list[Use], dict[int, str]]:
    """Every product of a leaf with data, and for each leaf that must stay whole the reason."""
    uses: list[Use] = []
    other: dict[int, str] = {}  # leaf -> what uses it that is no such product
    for position, operation in enumerate(operations):
        taken = [value for value in operation.inputs if value in views]
        if not taken or any(value in views for value in operation.outputs):
            continue
        name = str(operation.eqn.primitive)
        product = name == "dot_general" and len(taken) == 1
        use = _use(operation, position, views) if product else name
        if isinstance(use, Use):
            uses.append(use)
        else:
            other |= {views[value].leaf: use for value in taken}
    if output in views:
        other[views[output].leaf] = "the output"
    layouts: dict[int, set] = {}
    for use in uses:
        layouts.setdefault(use.view.leaf, set()).add(use.layout)
    several = "products with different layouts (a tied, transposed weight)"
    return uses, {leaf: several for leaf in layouts if len(layouts[leaf]) > 1} | other


def _use(operation: Operation, position: int, views: dict[int, View]) -> Use | str:
    """How a product uses its weight, or why the weight cannot be taken apart for it."""
    eqn, on_left = operation.eqn, operation.inputs[0] in views
    if not _is_real(_struct(eqn.outvars[0]).dtype):
        return "a product that is not real"
    contract, batch = eqn.params["dimension_numbers"]
    weight, data = (0, 1) if on_left else (1, 0)
    batch_pairs = sorted(zip(batch[weight], batch[data], strict=True))
    contract_pairs = sorted(zip(contract[weight], contract[data], strict=True))
    # The product lists its batch axes in dot_general's order: only the weight's own order keeps D
    # and X aligned.
    if [w for w, _ in batch_pairs] != list(batch[weight]):
        return "a product with permuted batch axes"
    both = (batch_pairs, contract_pairs)
    axes = (tuple(pair[i] for pair in pairs) for i in (0, 1) for pairs in both)
    ndim = _struct(eqn.invars[weight]).ndim
    return Use(position, views[operation.inputs[weight]], ndim, on_left, *axes)


def _warn_of_slow_leaves(params: Params, other: dict[int, str]) -> None:
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    slow = [
        f"{jax.tree_util.keystr(path)} {leaf.shape} (used by {other[i]})"
        for i, (path, leaf) in enumerate(paths)
        if i in other and leaf.ndim >= 2 and leaf.size > _SMALL_LEAF
    ]
    if slow:
        warnings.warn(
            "the structured kernel takes the per-example Jacobian of these parameters, which is "
            "exact but slow: " + ", ".join(slow),
            stacklevel=4,
        )


def products(program: Program) -> list[jax.ShapeDtypeStruct]:
    """Shape and type of each product of a leaf that is taken apart."""
    return [_struct(program.operations[use.operation].eqn.outvars[0]) for use in program.uses]


def evaluate(
    program: Program, args: Sequence[Array], shifts: list[Array]
) -> tuple[Array, list[Array]]:
    """Run q on one example, adding `shifts` to the products of the leaves that are taken apart.

    `args` are the leaves of the parameters and of the example. Returns the value, and the data
    operand of each product.
    """
    values: dict[int, Any] = dict(enumerate(args)) | program.constants
    uses = {use.operation: use for use in program.uses}
    recorded: list[Array] = []
    for position, (eqn, inputs, outputs) in enumerate(program.operations):
        operands = [values[i] for i in inputs]
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        results = list(results) if eqn.primitive.multiple_results else [results]
        if position in uses:
            results[0] = results[0] + shifts[len(recorded)]
            recorded.append(operands[1 if uses[position].on_left else 0])
        values |= zip(outputs, results, strict=True)
    return values[program.output], recorded

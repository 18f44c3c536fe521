"""Arrays on disk, by orbax: a tree of them is a folder."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import orbax.checkpoint as ocp


def write(folder: Path, tree: Any) -> dict[str, list[Any]]:
    """Writes a tree of arrays to a folder; returns its `forms`. Raises OSError, ValueError or
    RuntimeError, as tensorstore does.
    """
    named = jax.device_get(_named(tree))
    with _orbax() as orbax:
        orbax.save(folder, args=ocp.args.StandardSave(named))
    return _forms(named)


def read(folder: Path, like: Any) -> Any:
    """The tree that `write` wrote to a folder. Raises ValueError where it has not the names, shapes
    and types of `like`, and whatever a damaged file makes orbax raise.
    """
    there = forms(like)
    with _orbax() as orbax:
        arrays = orbax.restore(folder, args=ocp.args.StandardRestore())
    if _forms(arrays) != there:  # given others, orbax would cut or fill up what is there
        raise ValueError(f"its {folder.name} does not match its note")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in there])


def forms(tree: Any) -> dict[str, list[Any]]:
    """Name -> [shape, type] of each array of a tree, as plain JSON."""
    return _forms(_named(tree))


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that ends after its tasks.

    Orbax closes its own loop at the first array that fails, while tensorstore is still writing the
    others, each of which would print a traceback, "Event loop is closed", when it ends.
    """

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _Loops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


_alone = threading.RLock()  # `_orbax` changes settings of the whole process


@contextlib.contextmanager
def _orbax() -> Iterator[ocp.Checkpointer]:
    """Orbax, which tells of failures by exceptions alone, and not on the console as well."""
    with contextlib.ExitStack() as held:
        held.enter_context(_alone)
        policy, logger = asyncio.get_event_loop_policy(), logging.getLogger("absl")
        held.callback(asyncio.set_event_loop_policy, policy)
        held.callback(setattr, logger, "disabled", logger.disabled)
        logger.disabled = True
        asyncio.set_event_loop_policy(_Loops())
        # Each of several processes saves its own arrays, and waits for no other: Orbax is told that
        # it is the only one.
        alone = mock.patch.multiple(jax, process_count=lambda: 1, process_index=lambda: 0)
        with alone, ocp.Checkpointer(ocp.StandardCheckpointHandler()) as orbax:
            yield orbax


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by name: a layout on disk that outlives changes of the classes."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _forms(named: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [list(leaf.shape), leaf.dtype.name] for name, leaf in named.items()}

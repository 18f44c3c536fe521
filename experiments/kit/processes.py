"""One command in several processes, also on several machines: which process this is, and waiting
for the others.

`jax.distributed` tells the processes about one another, and is shut down before the work begins:
while it runs, a process that ends takes all others down with it. After that they share nothing but
a folder: each trains members of its own, and none waits for another until the end.
"""

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from preqn_jax.options import UserError, check, option

_LOOK = 2.0  # seconds between looks at what others have done


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """The same command in several processes."""

    coordinator: str = option(
        "",
        "host:port of process 0, where the processes of one command meet; auto on a TPU pod and "
        "under srun, which know it",
    )
    num_processes: int | None = option(None, "number of processes", at_least=1)
    process_id: int | None = option(None, "index of this process, from 0", at_least=0)
    timeout: float = option(300.0, "seconds in which all processes must have started", above=0)
    patience: float = option(
        3600.0,
        "seconds that the first process waits at the end without any new record of another",
        above=0,
    )


def meet(config: ProcessesConfig, begin: Callable[[], object]) -> None:
    """Makes this process one of several, if the flags say so, and calls `begin` in the first
    process before any other goes on.

    Raises UserError for flags that do not fit one another, and in the first process what `begin`
    raises. A process that waits longer than `timeout` for the others ends, with one sentence.
    """
    check(config)
    given = (config.num_processes, config.process_id)
    if not config.coordinator:
        if given != (None, None):
            raise UserError(
                "num_processes or process_id is given, but no coordinator: add the address of "
                "process 0, as in `coordinator=10.0.0.1:1234`"
            )
        begin()
        return
    auto = config.coordinator == "auto"
    if not auto:
        _check_address(config.coordinator)
        if None in given or int(config.process_id or 0) >= int(config.num_processes or 0):
            raise UserError(
                f"num_processes is {config.num_processes} and process_id {config.process_id}, but "
                "a coordinator needs both, with process_id from 0 to num_processes - 1"
            )
    where = "where SLURM or the TPU pod says" if auto else f"at {config.coordinator}"
    words = f"not all processes met {where} in {config.timeout:g} s"
    mend = "start all of them, or give a longer --timeout, or another --coordinator"
    with _ends_after(config.timeout, f"error: {words}; {mend}"):
        try:
            jax.distributed.initialize(
                None if auto else config.coordinator,
                *given,
                initialization_timeout=int(config.timeout) + 60,  # JAX would abort, with a stack
                shutdown_timeout_seconds=int(config.timeout) + 60,
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"the processes cannot meet {where}: {reason}; {mend}") from error
        jax.devices()  # made now, as they keep how many processes there are, and which this is
    words = f"{'another' if first() else 'the first'} process did not begin in time; {mend}"
    try:
        if first():
            begin()
    except UserError as error:
        words = str(error)
        raise
    finally:
        with _ends_after(config.timeout, f"error: {words}"):
            jax.distributed.shutdown()  # waits for all


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"coordinator is {address!r}, but it must be host:port, as 10.0.0.1:1234, or auto"
        )


@contextlib.contextmanager
def _ends_after(seconds: float, sentence: str) -> Iterator[None]:
    """Ends the process with a sentence if the code in this context takes longer, even if it is in a
    call that does not return.
    """

    def end() -> None:
        print(sentence, file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def share(members: int) -> slice:
    """The slice of so many members that this process trains."""
    index, count = jax.process_index(), jax.process_count()
    return slice(index * members // count, (index + 1) * members // count)


def first() -> bool:
    """Whether this is the first process, which writes what all have in common."""
    return jax.process_index() == 0


def wait(
    config: ProcessesConfig, logdir: Path, left: Callable[[], bool], asked: Callable[[], bool]
) -> bool:
    """In the first process, waits until nothing is `left` to do in `logdir`, or until it is `asked`
    to end. If the others' records have not grown for `patience` seconds, says so, and returns
    False.
    """
    if jax.process_count() == 1:
        return True
    seen, since = None, time.monotonic()
    while not asked():
        with _unless_unread():
            if not left():
                break
            now = {path: path.stat().st_size for path in logdir.glob("*/metrics.jsonl")}
            if now != seen:
                seen, since = now, time.monotonic()
        if time.monotonic() - since > config.patience:
            words = f"the other processes recorded nothing in {config.patience:g} s"
            print(f"{words}: the report is of the records so far", file=sys.stderr)
            return False
        time.sleep(_LOOK)
    return True


@contextlib.contextmanager
def _unless_unread() -> Iterator[None]:
    """Ignores that a file could not be read, as when another process replaces it over a network."""
    try:
        yield
    except OSError:
        pass
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise

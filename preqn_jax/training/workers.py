"""Worker processes, each with some of the seeds.

They end with the process that started them, however it ends, and otherwise when it tells them to.
"""

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import jax
import numpy as np

from preqn_jax import envs
from preqn_jax.envs import EnvError
from preqn_jax.options import UserError
from preqn_jax.training import provenance, watch
from preqn_jax.training.config import named
from preqn_jax.training.errors import Asked, Interrupted, Stopped, never
from preqn_jax.training.local import Local, Recipe

_PATIENCE = 60  # seconds for a worker that is idle to end by itself
_LOOK = 0.2  # seconds between looks at whether a run is to stop
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_NO_CHILDREN = "daemonic processes are not allowed to have children"  # says multiprocessing


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection
    stack: Connection  # raw text: its stack, once it is asked for by SIGUSR1
    place: watch.Place
    seeds: list[int]


class _Failure(NamedTuple):
    """What a worker answers in place of results."""

    error: Exception
    trace: str  # the traceback of its cause; may be empty


class Remote(Exception):
    """The traceback of another process or thread, as text."""


class Workers:
    """Seeds divided among worker processes. It has the methods of `Local`; a call is one exchange
    with each.
    """

    def __init__(self, recipe: Recipe, count: int, asked: Asked = never):
        """Starts `count` processes, or fewer where there are fewer seeds. Raises UserError for a
        recipe that does not pickle. Errors of environments as a worker makes them are raised by the
        first call.
        """
        # A worker has these options of JAX from the process that started it.
        with _pickling():
            packed = pickle.dumps((provenance.ways(), recipe))
        context = multiprocessing.get_context("spawn")  # a fork of JAX's threads would hang
        seeds, self._asked = recipe.config.seeds, asked
        self._workers: list[_Worker] = []
        # Workers that may be killed with nothing lost: at first all.
        self._killable = set(range(min(count, len(seeds))))
        self._hung: dict[int, EnvError] = {}
        self._end = weakref.finalize(
            self, _end, self._workers, self._killable
        )  # at exit too, before multiprocessing waits for them
        bound = threading.current_thread() is threading.main_thread()
        with _signals_held():
            for share in np.array_split(np.array(seeds), min(count, len(seeds))):
                share, place = [int(seed) for seed in share], context.RawArray("q", 4)
                ours, theirs = context.Pipe()
                stack, told = context.Pipe(duplex=False)
                process = context.Process(
                    target=_serve, args=(theirs, told, place, packed, share, bound), daemon=True
                )
                process.start()
                theirs.close()  # or this end would not notice its death
                told.close()
                self._workers.append(_Worker(process, ours, stack, place, share))
        name, seconds = envs.name(recipe.env), recipe.env_timeout
        tell = partial(_end_hung, self._workers, self._hung, name, seconds)
        self._watch = watch.Watch([worker.place for worker in self._workers], seconds, tell)

    def call(self, method: str, arguments: Sequence[tuple | None] | None = None) -> list[Any]:
        """As `Local.call`; after Interrupted only `close` may be called."""
        first = 0
        for i, worker in enumerate(self._workers):
            last = first + len(worker.seeds)
            with self._deaths(i):
                worker.pipe.send((method, None if arguments is None else arguments[first:last]))
            self._killable.add(i)
            first = last
        results, failed = [], []
        for i, worker in enumerate(self._workers):
            with self._deaths(i):
                while not worker.pipe.poll(_LOOK):
                    if method == "evaluate" and self._asked():
                        raise Interrupted
                reply = worker.pipe.recv()
            self._killable.discard(i)
            if isinstance(reply, _Failure):
                failed.append(reply)
            else:
                results.extend(reply)
        if failed:
            raise _unpacked(failed[0])
        return results

    @contextlib.contextmanager
    def _deaths(self, i: int) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            worker = self._workers[i]
            worker.process.join(_PATIENCE)
            if i in self._hung:
                raise self._hung[i] from self._hung[i].__cause__
            code = worker.process.exitcode
            how = (
                f"was killed by signal {-code}"
                if code is not None and code < 0
                else f"ended with status {code}"
            )
            guard = ""
            if code == 1 and not any(worker.place):  # it died before any call of an environment
                guard = (
                    " before its first step; put the script's code under "
                    '`if __name__ == "__main__":`, because workers import it'
                )
            raise Stopped(
                f"the worker process that steps {named(worker.seeds)} {how}{guard}; `workers=0` "
                "runs without worker processes"
            ) from error

    def close(self) -> None:
        """Raises EnvError for the first environment that raised, once all workers have ended."""
        failed = self._end()
        self._watch.close()
        if failed:
            raise _unpacked(failed[0])


def _end(workers: list[_Worker], killable: set[int]) -> list[_Failure]:
    """Ends the workers, and kills those that are `killable`. Returns what environments raised as
    the others closed them.
    """
    for i, worker in enumerate(workers):
        if i in killable:
            worker.process.kill()
        else:
            with contextlib.suppress(OSError):  # the worker is dead
                worker.pipe.send(None)
    failed = []
    for i, worker in enumerate(workers):
        if not connection.wait([worker.pipe, worker.process.sentinel], _PATIENCE):
            worker.process.kill()
        with contextlib.suppress(EOFError, OSError):
            if i not in killable and isinstance(reply := worker.pipe.recv(), _Failure):
                failed.append(reply)
        worker.pipe.close()
        worker.process.join(_PATIENCE)
        worker.process.kill()
        worker.process.join()
        worker.stack.close()
    return failed


def _end_hung(
    workers: list[_Worker],
    hung: dict[int, EnvError],
    name: str,
    seconds: float,
    i: int,
    place: Sequence[int],
) -> None:
    """Notes in `hung` where worker `i` hangs, and kills it, so that no one waits for it longer."""
    worker, text = workers[i], b""
    error = EnvError(watch.hung(name, place, seconds))
    with contextlib.suppress(OSError):
        os.kill(worker.process.pid or 0, signal.SIGUSR1)
        ready = worker.stack.poll(5)
        while ready and (more := os.read(worker.stack.fileno(), 65536)):
            text += more
            ready = worker.stack.poll(0.2)
    error.__cause__ = Remote("\n" + text.decode(errors="replace")) if text else None
    hung[i] = error
    worker.process.kill()


def _unpacked(failure: _Failure) -> Exception:
    failure.error.__cause__ = Remote("\n" + failure.trace) if failure.trace else None
    return failure.error


@contextlib.contextmanager
def _pickling() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the pickling of somebody's object raises
        raise UserError(
            f"the agent or the environment cannot be sent to worker processes ({error}); define "
            "the function that makes it at the top level of a module, or use `workers=0`"
        ) from error


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """A context. Processes started in it do not get Ctrl-C, or another signal that asks a process
    group to end, before they have `_ignore_signals`.
    """
    resource_tracker.ensure_running()  # starting it lets the signals through again
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


# --- in a worker ----------------------------------------------------------------------------------


def _serve(
    pipe: Connection,
    stack: Connection,
    place: watch.Place,
    packed: bytes,
    seeds: list[int],
    bound: bool,
) -> None:
    """The main function of a worker, which answers until it is told to end, or its pipe closes."""
    _end_with_parent(bound)
    _ignore_signals(stack)
    jax.config.update("jax_platforms", "cpu")  # accelerators belong to the learner
    jax.config.update(
        "jax_cpu_enable_async_dispatch", False
    )  # handing over to a thread takes longer than the policy
    local = broken = None
    try:
        with _pickling():
            ways, recipe = pickle.loads(packed)
        for name, value in ways.items():
            jax.config.update(name, value)
        local = Local(recipe, seeds, place)
    except Exception as error:
        broken = _failure(error)
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):  # the other end is gone
            return
        if local is not None:
            reply = _answer(local, request)
        else:  # at the end this was told of already
            reply = None if request is None else broken
        try:
            pipe.send(reply)
        except OSError:
            return
        if request is None:
            return


def _answer(local: Local, request: tuple[str, Sequence[tuple | None] | None] | None) -> Any:
    """The results that a request asks for, or a _Failure. The request None, which ends the worker,
    has no results.
    """
    try:
        return local.close() if request is None else local.call(*request)
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> _Failure:
    """An error in a form that can be sent: a UserError as it is, any other as a RuntimeError with
    its traceback.
    """
    if isinstance(error, UserError):
        cause = error.__cause__
        if _NO_CHILDREN in str(error):
            error = EnvError(f"{error}; `workers=0` runs without worker processes")
        return _Failure(error, "".join(traceback.format_exception(cause)) if cause else "")
    told = RuntimeError(f"a worker process raised {type(error).__name__}: {error}")
    return _Failure(told, "".join(traceback.format_exception(error)))


def _ignore_signals(stack: Connection) -> None:
    """Ignores Ctrl-C, and the other signals that ask a process group to end: the last checkpoint
    still needs this process's environments. At SIGUSR1 it writes its stack to `stack`.

    Processes that an environment starts take signals as usual. They would inherit signals that are
    blocked or ignored, but a handler ends with an exec, and after a fork the old one is put back.
    """
    old = {number: signal.getsignal(number) for number in _SIGNALS - {signal.SIGUSR1}}
    for number, handler in old.items():
        if handler is not signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, lambda *_: None)
            signal.siginterrupt(number, False)  # so that no system call fails
    # This gives the stack even of a worker that hangs in compiled code.
    faulthandler.register(signal.SIGUSR1, file=stack.fileno(), all_threads=False)

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)
        faulthandler.unregister(signal.SIGUSR1)

    os.register_at_fork(after_in_child=restore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _end_with_parent(bound: bool) -> None:
    """Ends this process with the one that started it, also while an environment is stuck.

    A thread sees to it and, on Linux, also the kernel, even where no thread of Python gets a turn.
    But the kernel acts when the thread that started this process ends, so it is asked to only where
    that thread lasts: `bound`.
    """

    def watch_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()
    if bound and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

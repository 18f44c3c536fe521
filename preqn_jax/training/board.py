"""TensorBoard files, a folder for each seed.

Events are written at once, without a thread or a queue: tensorboardX's `SummaryWriter` has a
thread, which a full disk ends, and then waits for it for ever.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

_log = logging.getLogger(__name__)
FLUSH = 60.0  # seconds between flushes, each of which is an fsync


class Boards:
    """Writes TensorBoard files. A run can do without them: where one cannot be written, a warning
    is logged once, and no more are written.
    """

    def __init__(self, folder: Path, seeds: tuple[int, ...], resume_at: int):
        """Adds files to `folder`. Of the files that are there already, TensorBoard will hide the
        steps after `resume_at`.
        """
        self._writers: dict[int, EventsWriter] = {}
        self._flushed = time.monotonic()
        start = Event(step=resume_at + 1, session_log=SessionLog(status=SessionLog.START))
        with self._given_up():
            for seed in seeds:
                mine = folder / f"seed_{seed}"
                mine.mkdir(parents=True, exist_ok=True)
                self._writers[seed] = EventsWriter(str(mine / "events"), f".{resume_at}")
                self._writers[seed].write_event(start)

    def write(self, step: int, seed: int, numbers: Mapping[str, float]) -> None:
        """Writes one event with all numbers."""
        if seed not in self._writers:
            return
        values = [Summary.Value(tag=name, simple_value=x) for name, x in numbers.items()]
        event = Event(step=step, wall_time=time.time(), summary=Summary(value=values))
        with self._given_up():
            self._writers[seed].write_event(event)
            if time.monotonic() - self._flushed > FLUSH:
                self.flush()

    def flush(self) -> None:
        """Writes what is buffered, for whoever follows the run. Raises OSError."""
        for writer in self._writers.values():
            writer.flush()
        self._flushed = time.monotonic()

    @contextlib.contextmanager
    def _given_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _log.warning("TensorBoard files are no longer written: %s", error.strerror or error)
            self.close()

    def close(self) -> None:
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                writer.close()
        self._writers = {}

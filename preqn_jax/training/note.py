"""The note of a checkpoint: its content beside arrays, and the checksums of all its files.

Its first line is the SHA-256 of the second, which is JSON. Every byte of a checkpoint is covered:
those of the note by this line, those of every other file by their digests in the note. That guards
against accidents only. As an attacker can write a new digest, the whole note is also checked before
anything is done with it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from preqn_jax.envs import codec
from preqn_jax.training import files
from preqn_jax.training.config import LoopConfig

NAME = "note"
FORMAT = 2  # 1 was a note without digests, by orbax


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes the note of the checkpoint in `folder`, whose other files are all there. Raises
    OSError.
    """
    text = json.dumps({"format": FORMAT, **content, "files": files.digests(folder)}).encode()
    files.replace(folder / NAME, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def read(folder: Path, step: int) -> dict[str, Any]:
    """The note in the folder of the checkpoint of `step`. Raises ValueError where it is damaged or
    of another step, OSError.
    """
    if not (folder / NAME).is_file():
        raise ValueError("it has no note, so it is of an earlier version or was never finished")
    digest, _, text = (folder / NAME).read_bytes().partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError("its note does not match its checksum")
    content = json.loads(text)
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']}, not {FORMAT}")
    if content["step"] != step:
        raise ValueError(f"its note says that it is of step {content['step']}")
    return content


def verify(folder: Path, note: dict[str, Any], part: str) -> None:
    """Raises ValueError where files of one part of a checkpoint are not as they were written,
    OSError.
    """
    noted = {name: digest for name, digest in note["files"].items() if name.startswith(f"{part}/")}
    found = {f"{part}/{k}": v for k, v in files.digests(folder / part).items()}
    if foreign := sorted(found.keys() - noted.keys()):
        raise ValueError(f"{foreign[0]} is no file of this checkpoint: remove it")
    if found != noted:
        raise ValueError(f"the files in {part} do not match their checksums")


def check(note: dict[str, Any], config: LoopConfig, fresh: list[Any]) -> None:
    """Checks that all that the note says fits this run. `fresh` is what `Collector.save` returns
    for environments of this run at any step, which gives the form to check against.

    Raises ValueError where it does not, or whatever a malformed note leads to.
    """
    step, seeds = note["step"], list(config.seeds)
    rounds, left = divmod(step, config.update_every)
    first = config.first_round * config.update_every  # steps before it
    frozen = note["counters"]["frozen"]
    some = sorted(set(frozen) & set(range(len(seeds))))
    counters = {"round": rounds, "updates": max(0, step - first), "frozen": some}
    if left or not 0 < step <= config.num_steps or note["counters"] != counters:
        raise ValueError(f"its counters {note['counters']} are not those of step {step}")
    filled, full = note["filled"], min(step, config.replay_capacity)
    stood = len(frozen) == len(seeds) and 0 <= filled < full  # frozen members' buffers get no more
    if filled != full and not stood:
        raise ValueError(f"its replay of {filled} transitions is not that of step {step}")
    extra = note["extra"]
    if extra["seeds"] != seeds or len(note["collector"]) != len(seeds):
        raise ValueError(f"its seeds {extra['seeds']} are not {seeds}")
    if type(extra["records"]) is not int:
        raise ValueError("its number of records is not an integer")
    every = extra.get("eval_every")
    if every is not None and (type(every) is not int or every < 1):
        raise ValueError(f"its eval_every of {every!r} is not a positive integer")
    _check_pending(codec.decode(extra["pending"]), len(seeds))
    codec.check_form(fresh, note["collector"], "its collector")


def check_made(note: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises ValueError where the checkpoint is of a run with other `settings`, as one that was
    copied here. Those that one side lacks, as it is of another version, do not count.
    """
    made = note["extra"].get("run", {})
    for name in sorted(made.keys() & settings.keys()):
        if made[name] != settings[name]:
            raise ValueError(
                f"it is of a run with {name}={made[name]!r}, but this one has {settings[name]!r}"
            )


def _check_pending(pending: list[dict[str, Any]], seeds: int) -> None:
    """Raises ValueError unless it is what a `Session` keeps of rounds since the last line of
    records.
    """
    if not isinstance(pending, list):
        raise ValueError("its pending metrics are not a list")
    for noted in pending:
        for name, values in noted["metrics"].items():
            if np.shape(values) != (seeds,) or np.asarray(values).dtype.kind not in "fiu":
                raise ValueError(f"its pending {name} is not {seeds} numbers")
        for i, total in noted["episodes"]:
            if i not in range(seeds) or not isinstance(total, float):
                raise ValueError(
                    f"its pending episode ({i!r}, {total!r}) is not a member and a return"
                )

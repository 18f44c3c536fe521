"""Command-line flags derived from config dataclasses, and what all commands do alike: --help, and
errors as one sentence.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shlex
import signal
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from absl import app, flags
from absl import logging as absl_logging

import experiments
import preqn_jax
from experiments.kit import streams
from preqn_jax.options import UserError, inner
from preqn_jax.training.config import RunConfig
from preqn_jax.training.directory import CONFIGS

Config = TypeVar("Config")
# The library's name of an argument, and the flag for it.
FLAGS_OF_ARGUMENTS = {
    "(steps.preconditioned)": "(--critic_step=preconditioned)",
    "(target=)": "(--target_networks)",
    "(members=2)": "(--num_critics=2)",
    "(damping=)": "(--damping)",
    "(solve.eigh)": "(--solver=eigh)",
}
# The flags that --help shows where a command has many, in the order in which one thinks of them.
FIRST = (
    "algorithm",
    "env",
    "seeds",
    "sweep",
    "num_steps",
    "logdir",
    "hidden_sizes",
    "critic_learning_rate",
    "eta",
    "eval_every",
    "diagnose_every",
)
_LIST = r"[]\[' ]"  # the brackets, quotes and spaces of a printed list of texts
_groups: dict[str, list[str]] = {}  # title -> flags, in the order of --helpfull
_DEBUG = flags.DEFINE_bool(
    "debug", False, "also show the traceback of an error", module_name="Manners"
)


def define(*configs: type, values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for each field of each dataclass, with its name, default and help.
    `--helpfull` groups the flags by dataclass; a group's title is the first sentence of the
    dataclass's docstring.

    The flags are those of the command line, or of other `values`.
    """
    for config in configs:
        if values is flags.FLAGS:
            title = (config.__doc__ or config.__name__).split(";")[0].split(".")[0]
            _groups[title] = [field.name for field in dataclasses.fields(config)]
        hints = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            _define_one(field, inner(hints[field.name]), config.__name__, values)


def home(run: RunConfig, name: str) -> RunConfig:
    """`run`, with a default run directory if it has none, named after `name` and `run.env`."""
    if run.logdir is not None:
        return run
    env = re.sub(r"[^\w.-]", "-", run.env)
    return dataclasses.replace(run, logdir=f"runs/{name}-{env}")


def group(title: str, names: list[str]) -> None:
    """Gives flags that a command defined by itself a title in `--helpfull`."""
    _groups[title] = names


def _define_one(field: dataclasses.Field, kind: Any, group: str, values: flags.FlagValues) -> None:
    help_text: str = field.metadata["help"]
    default: Any = field.default
    if kind is bool:
        flags.DEFINE_bool(field.name, default, help_text, module_name=group, flag_values=values)
    elif kind is int:
        as_text = flags.ArgumentSerializer()
        options = {"module_name": group, "flag_values": values}
        flags.DEFINE(_Whole(), field.name, default, help_text, serializer=as_text, **options)
    elif kind is float:
        flags.DEFINE_float(field.name, default, help_text, module_name=group, flag_values=values)
    elif kind in (tuple[int, ...], tuple[str, ...]):
        entries = None if default is None else [str(v) for v in default]
        flags.DEFINE_list(field.name, entries, help_text, module_name=group, flag_values=values)
    else:
        flags.DEFINE_string(field.name, default, help_text, module_name=group, flag_values=values)


class _Whole(flags.IntegerParser):
    """A parser of whole numbers, also in the forms 1e6 and 1_000_000."""

    def convert(self, argument: Any) -> int:
        return _whole(argument) if isinstance(argument, str) else super().convert(argument)


def _whole(text: str) -> int:
    for kind in (int, float):
        with contextlib.suppress(ValueError, OverflowError):  # infinity is no whole number
            if (number := kind(text)) == int(number):
                return int(number)
    raise ValueError(f"{text!r} is not a whole number")


def parse(config: type[Config], values: flags.FlagValues = flags.FLAGS) -> Config:
    """The config that the flags describe. Raises UserError for a list entry that is not a number,
    and for text that is not the JSON object it should be.
    """
    hints = typing.get_type_hints(config)
    fields = {}
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        value, kind = getattr(values, field.name), inner(hints[field.name])
        if value is not None and kind == tuple[int, ...]:
            value = _integers(field.name, value)
        elif value is not None and kind == tuple[str, ...]:
            value = _texts(value)
        elif isinstance(value, str) and re.match("~(/|$)", value):  # as a shell leaves --logdir=~/x
            value = os.path.expanduser(value)
        elif value is not None and typing.get_origin(kind) is Mapping:
            value = _arguments(field.name, value)
        fields[field.name] = value
    return config(**fields)


def read(arguments: Sequence[str], *configs: type) -> tuple[Any, ...]:
    """The configs that `arguments` describe, read like the command line of a command. Raises
    UserError for what a command line would refuse.
    """
    values = _values(arguments, *configs)
    return tuple(parse(config, values) for config in configs)


def given(arguments: Sequence[str], *configs: type) -> list[str]:
    """The names of the settings that `arguments` set, read in the same way. Raises UserError
    likewise.
    """
    values = _values(arguments, *configs)
    return [name for name in values if values[name].present]


def _values(arguments: Sequence[str], *configs: type) -> flags.FlagValues:
    values = flags.FlagValues()
    define(*configs, values=values)
    for word in arguments:  # absl's own flags, which would let any flag through
        refuse([word] if word.lstrip("-").split("=")[0] in ("flagfile", "undefok") else [])
    try:
        rest = values(["", *arguments])[1:]
    except flags.Error as error:
        raise UserError(str(error).splitlines()[0]) from None
    refuse(rest)
    return values


def refuse(words: Sequence[str]) -> None:
    """Raises UserError if `words` are left of a command line that takes only flags."""
    if words:
        raise UserError(
            f"unexpected argument {words[0]!r}; flags start with --, as in --env=Walker2d-v5"
        )


def _integers(name: str, entries: Sequence[str]) -> tuple[int, ...]:
    try:
        return tuple(number for entry in entries for number in _range(entry))
    except UserError:
        raise
    except ValueError:
        raise UserError(
            f"{name} is {','.join(entries)!r}, but it must be whole numbers separated by commas, "
            f"as in 0,1,2, or a range, as in 0:3"
        ) from None


def _texts(entries: Sequence[str]) -> tuple[str, ...]:
    """The entries of a list, put together again where a comma within parentheses split one."""
    whole: list[str] = []
    for entry in entries:
        if whole and whole[-1].count("(") > whole[-1].count(")"):
            whole[-1] += f",{entry}"
        else:
            whole.append(entry)
    return tuple(whole)


def _arguments(name: str, text: str) -> dict[str, Any] | None:
    """The arguments in a JSON object; None for an empty one. Raises UserError for anything else."""
    try:
        value = json.loads(text) if text else {}
        why = f"{text[:60]} is not an object" if not isinstance(value, dict) else ""
    except (ValueError, RecursionError) as error:
        value, why = None, f"it is not JSON ({error})"
    if not why:
        return value or None
    example = f"--{name}='{json.dumps({'frame_skip': 2})}'"
    raise UserError(f"{name} must be a JSON object of arguments, as in {example}, but {why}")


_LONGEST = 100_000  # the longest range


def _range(entry: str) -> Sequence[int]:
    """The numbers of an entry: 0, 1, 2 for "0:3", as in a slice, and a single one for "5"."""
    first, colon, end = entry.partition(":")
    if colon and _whole(end) - _whole(first) > _LONGEST:
        raise UserError(
            f"the range {entry} has {_whole(end) - _whole(first):,} numbers, but at most "
            f"{_LONGEST:,} are allowed"
        )
    return range(_whole(first), _whole(end)) if colon else (_whole(entry),)


def in_flags(text: str) -> str:
    """A text of the library, such as `diagnostics.Finding.remedy`, with flags in place of
    arguments. Names in it that have no value and are none of our flags stay as they are: they are
    quoted from others, as Gymnasium quotes names of environments.
    """
    ours = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    ours.update(flags.FLAGS)
    for argument, words in FLAGS_OF_ARGUMENTS.items():
        text = text.replace(argument, words)

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if not value and name not in ours:
            return match[0]
        if name == "logdir" and flags.FLAGS.is_parsed() and name not in flags.FLAGS:
            return "run directory"  # which such a command takes without a flag
        if name == "wrappers" and value:  # whose parentheses belong to the value
            return f"--{name}={shlex.quote(re.sub(_LIST, '', value[1:]))}"
        if name == "env_kwargs" and value:
            return f"--{name}={shlex.quote(value[1:])}"
        return f"--{name}" + re.sub(r"[() '\"]", "", value or "").rstrip(",")

    return re.sub(r"`(\w+)(=[^`]*)?`", flag, text)  # arguments stand in backquotes


def translated(record: logging.LogRecord) -> bool:
    """A log filter that lets every record through, and rewrites the library's own by `in_flags`."""
    if record.name.split(".")[0] == preqn_jax.__name__:
        record.msg, record.args = in_flags(record.getMessage()), None
    return True


def run(main: Callable[[list[str]], int], takes_words: bool = False, keeps: bool = False) -> None:
    """Runs `main` by `app.run`, and reports a user's mistake as one sentence on stderr, with exit
    status 1. Words that are not flags are such a mistake too, unless `takes_words`; so is a stdout
    that takes no more, as on a full disk, unless the command `keeps` its results in files.
    """
    streams.forgive()
    asked = {word.lstrip("-") for word in sys.argv[1:] if word.startswith("-")}
    if asked & {"help", "h", "helpshort", "helpfull"}:
        print(sys.modules["__main__"].__doc__)
        print(_help("helpfull" in asked))
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    absl_logging.set_verbosity(absl_logging.WARNING)  # jax and orbax log a lot
    absl_logging.get_absl_handler().addFilter(translated)

    def checked(argv: list[str]) -> int:
        refuse([] if takes_words else argv[1:])
        status = main(argv)
        sys.stdout.flush()
        lost = getattr(sys.stdout, "lost", None)
        if lost is not None and not keeps:
            raise UserError(f"cannot write to the standard output: {lost.strerror or lost}")
        return status

    app.run(lambda argv: guard(checked, argv), flags_parser=_parsed)


def _parsed(argv: Sequence[str]) -> list[str]:
    """absl's parser, which does not tell of a --flagfile that is no text."""
    try:
        return app.parse_flags_with_usage(list(argv))
    except UnicodeDecodeError as error:
        sys.exit(f"error: a --flagfile is not text in UTF-8: {error}")


def _help(full: bool) -> str:
    """The help of all flags, by group; that of `FIRST` if there are more than twenty flags."""
    names = [name for group in _groups.values() for name in group]
    first = [name for name in FIRST if name in names]
    if full or len(names) <= 20 or len(first) < len(FIRST) // 2:
        groups, more = {**_groups, "Flag of every command": ["debug"]}, ""
    else:
        more = f"\n--helpfull shows all {len(names) + 1} flags."
        groups = {"The most important flags": first}
    parts = [f"{title}:\n" + "\n".join(map(_meaning, group)) for title, group in groups.items()]
    return "\n\n".join(parts) + "\n" + more


def _meaning(name: str) -> str:
    """The help of one flag: its name and default, and what it means."""
    flag = flags.FLAGS[name]
    value = flag.default
    if isinstance(value, list):
        value = ",".join(value)
    shown = f"--[no]{name}" if flag.boolean else f"--{name}{'' if value is None else f'={value}'}"
    words = textwrap.fill(str(flag.help), 84, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"  {shown}{' (on)' if flag.boolean and value else ''}\n{words}"


def guard(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Returns `main(argv)`; or prints a UserError, and returns 1."""
    try:
        return main(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except UserError as error:
        return _refused(error, in_flags(str(error)))
    except OSError as error:  # of a file that is not ours to use, a name that is too long
        what = f"cannot use {error.filename!r}" if error.filename else "the system refused"
        return _refused(error, f"{what}: {error.strerror or error}")
    except (RuntimeError, AssertionError) as error:
        if words := out_of_memory(error):
            return _refused(error, in_flags(words))
        if "initialize backend" not in str(error) and _has_devices():
            raise
        given = {
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS"),
            "XLA_FLAGS": experiments.XLA_FLAGS_GIVEN,
        }
        named = " and ".join(f"{name}={value}" for name, value in given.items() if value)
        return _refused(
            error,
            f"JAX finds no device to compute on; unset {named or 'what chooses one'}, or give one "
            "of this machine: JAX_PLATFORMS=cpu",
        )


def out_of_memory(error: Exception) -> str | None:
    """A message for JAX's error of a full memory; None for any other error."""
    first = (str(error).splitlines() or [""])[0]
    if not first.startswith("RESOURCE_EXHAUSTED"):
        return None
    what = first.partition(": ")[2].rstrip(".") or "out of memory"
    return (
        f"the device has too little memory: {what}; lower `batch_size`, `replay_capacity` or the "
        "number of seeds and settings trained at once, or look for other processes on the device"
    )


def _has_devices() -> bool:
    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):  # the latter where a plugin is missing
        return False


def _refused(error: Exception, sentence: str) -> int:
    if flags.FLAGS.is_parsed() and _DEBUG.value:
        traceback.print_exception(error)
    print(f"error: {sentence}", file=sys.stderr)
    return 1

"""From a command line to settings, and from what happened to an exit code.

Flags are the fields of a settings class, whatever group they are in. `--config FILE.yaml` gives any of them by the same
names; flags win. The YAML goes through the same parser as the flags do. `unet train ...` is `python jobs/train.py ...`.
"""

import contextlib
import difflib
import importlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from unet import __version__
from unet.runtime.stop import exit_on_signals
from unet.settings import ExitCode, RequestError
from unet.storage.faults import StorageError

Settings = TypeVar("Settings")

JOBS = {
    "train": ("unet.train.job", "train", "unet.train.settings", "TrainSettings"),
    "segment": ("unet.segment.job", "segment", "unet.segment.settings", "SegmentSettings"),
    "explain": ("unet.segment.explain", "explain", "unet.segment.settings", "ExplainSettings"),
    "evaluate": ("unet.evaluate.job", "evaluate", "unet.evaluate.settings", "EvaluateSettings"),
    "export": ("unet.model.onnx", "export", "unet.model.settings", "ExportSettings"),
}
"""Of each job the module and name of its function, and of its settings. Only the one that is asked for is imported."""

USAGE = """usage: unet check|train|segment|explain|evaluate|export|submit ...

  check     check a labelled set, and make a page that shows it
  train     train a U-Net on a labelled image set
  segment   segment the new and changed images of a folder or bucket
  explain   say of a mask how it was made: unet explain s3://masks/KEY.png
  evaluate  score a model on a labelled set
  export    write a model as an ONNX file
  submit    run one of these on a Ray cluster: unet submit -- unet train ...

unet JOB --help documents every flag."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job that the first argument names, with the flags behind it; return its exit code."""
    name, *flags = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name == "check":
        return run_job("train", ["--check", *flags])
    if name == "explain" and flags and not flags[0].startswith("-"):
        flags = ["--mask", *flags]
    if name in JOBS:
        return run_job(name, flags)
    if name == "submit":
        return int(importlib.import_module("unet_cluster.submit").main(flags))  # cluster/submit.py
    if name in ("--help", "-h", "--version"):
        print(__version__ if name == "--version" else USAGE)
        return 0
    print(f"error: {name or 'no job'}: name one of the jobs\n{USAGE}", file=sys.stderr)
    return ExitCode.BAD_REQUEST


def run_job(name: str, arguments: list[str] | None = None) -> int:
    """Run a job of `JOBS` with these flags, by default the process's own; return its exit code."""
    module, function, settings_module, settings = JOBS[name]
    job = getattr(importlib.import_module(module), function)
    return run(job, getattr(importlib.import_module(settings_module), settings), arguments)


def run(job: Callable[[Settings], int], settings: type[Settings], arguments: list[str] | None = None) -> int:
    """Parse, call `job`, return its exit code. Two errors are printed on one line: a `RequestError`, which is exit
    code 2, and a `StorageError`, which may not come again: exit code 1."""
    try:
        with exit_on_signals():
            return job(parse(settings, sys.argv[1:] if arguments is None else arguments))
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.BAD_REQUEST
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.UNEXPECTED


def parse(settings: type[Settings], arguments: list[str]) -> Settings:
    """Return settings from flags and from the files that --config names.

    Raises:
        RequestError: an unknown or misspelt flag or key, a value of the wrong kind, or settings that contradict.
    """
    flags, files = _take_configs(arguments)
    from_files = [flag for file in files for flag in _flags_of(file, settings)]
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(
                settings,
                args=from_files + flags,
                config=(tyro.conf.OmitArgPrefixes,),
                description=f"{settings.__doc__} Any flag can also come from --config FILE.yaml; flags win.",
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise RequestError(_one_line(output.getvalue())) from None


def _take_configs(arguments: list[str]) -> tuple[list[str], list[str]]:
    flags, files = [], []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name != "--config":
            flags.append(argument)
            continue
        file = value or next(rest, "")
        if not file:
            raise RequestError("--config: name a YAML file after it")
        files.append(file)
    return flags, files


class _Loader(yaml.SafeLoader):
    """Leaves numbers as they are written: in YAML 1.1 `1:4` is 64, and `2024_01` is 202401."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] in ("bool", "merge", "null")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\.(inf|nan)$", re.IGNORECASE), list("-+."))


def _flags_of(file: str, settings: type) -> Iterator[str]:
    try:
        content = yaml.load(Path(file).read_text(), _Loader)
    except OSError as error:
        raise RequestError(f"--config {file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"--config {file}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RequestError(f"--config {file}: must hold `flag: value` lines")
    known = _kinds(settings)
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "see --help for the names"
            raise RequestError(f"--config {file}: there is no setting {key!r}; {hint}")
        flag = "--" + name.replace("_", "-")
        if known[name] is bool:
            if not isinstance(value, bool):
                raise RequestError(f"--config {file}: {key} must be true or false, not {value!r}")
            yield flag if value else "--no-" + flag[2:]
        else:
            yield flag
            yield from map(str, value if isinstance(value, list) else [value])


def _kinds(settings: Any) -> dict[str, Any]:
    """Return the type of every setting by its name, groups flattened."""
    kinds: dict[str, Any] = {}
    for item in fields(settings):
        kinds |= _kinds(item.type) if is_dataclass(item.type) else {item.name: item.type}
    return kinds


def _one_line(message: str) -> str:
    """Return the parser's message, a title and a text in a box, on one line without title, frame and footer."""
    lines = [line.strip("│╭╮╰╯ ") for line in message.splitlines()[1:]]
    if any(line.startswith("Missing from") for line in lines):
        return "missing: " + ", ".join(re.findall(r"^(--\S+) \S", "\n".join(lines), re.M)) + "; see --help"
    words = " ".join(line for line in lines if line.strip("-─")).split("For full helptext")[0].split()
    return re.sub(r"^Error parsing \w+: (?=--)", "", " ".join(words)) + "; see --help"

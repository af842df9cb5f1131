"""The command line: arguments and printing only.

Results go to stdout, progress and warnings to stderr. An error is one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import typing
from pathlib import Path
from typing import Any, NoReturn, Self

from gplfast import config as settings
from gplfast.errors import ConfigError, GplfastError

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STEP_SECTIONS = {
    "run": settings.SECTIONS,
    "generate": ("input", "generate"),
    "mine": ("input", "mine"),
    "label": ("input", "label", "train"),
    "train": ("input", "train", "genq"),
    "evaluate": ("input", "evaluate", "label", "train"),
}
# Flags that name a setting in fewer words.
_ALIASES = {
    "--generator": ("generate.model",),
    "--retrievers": ("mine.retrievers",),
    "--teacher": ("label.model",),
    "--student": ("train.base",),
    "--similarity": ("train.similarity",),
}
_EPILOGS = {
    None: """examples:
  gplfast run --corpus my_documents/ --work W             adapt a retriever to a folder of .txt and .md files
  gplfast run --corpus scifact/ --work W --evaluate       ... and measure it on the judged queries in the folder
  gplfast ask "who are the normans" --model W/train/gpl/model --model nano:student --corpus my_documents/
  gplfast demo                                            all of it on a bundled collection, about five minutes""",
    "run": """examples:
  gplfast run --corpus scifact --preset nano --work W --evaluate
  gplfast run --corpus scifact --work W --dry-run         what is fresh, what is stale and why
  gplfast run --corpus scifact --work W --loss mnrl       GenQ: the same queries, MultipleNegativesRanking
  gplfast run --corpus docs.csv --input-text-column body --work W --config my.toml --train-steps 500
A run that was killed goes on where it was when it is started again.""",
    "generate": "example:\n  gplfast generate --corpus scifact --work W --queries-per-passage 3",
    "mine": "example:\n  gplfast mine --corpus scifact --work W --retrievers nano:student bm25",
    "label": "example:\n  gplfast label --corpus scifact --work W --model cross-encoder/ms-marco-MiniLM-L-6-v2",
    "train": "example:\n  gplfast train --corpus scifact --work W --learning-rate 1e-4\n"
    "  gplfast train --corpus scifact --work W --loss mnrl",
    "evaluate": "example:\n  gplfast evaluate --corpus scifact --work W --model other/model --systems bm25 gpl",
    "ask": 'example:\n  gplfast ask "who are the normans" --model nano:student --model W/train/gpl/model --corpus C',
    "demo": "example:\n  gplfast demo --work demo",
    "export": "example:\n  gplfast export --corpus scifact --work W --output gpl_files",
    "info": "example:\n  gplfast info",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and status 2, without the usage."""
        sys.stderr.write(f"{self.prog}: error: {message}; see {self.prog} --help\n")
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = parser().parse_args(argv)
    _logging(arguments)
    try:
        return int(arguments.command(arguments) or 0)
    except GplfastError as error:
        sys.stderr.write(f"gplfast: error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("gplfast: interrupted; start it again to go on\n")
        return 130


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; flags of settings come from the dataclasses."""
    top = _Parser(
        prog="gplfast",
        description="Adapt a dense retriever to documents without labels (GPL).",
        epilog=_EPILOGS[None],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(metavar="command", required=True)

    def add(name: str, text: str, command: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            allow_abbrev=False,
            usage=None
            if name in ("ask", "info", "demo", "export")
            else f"gplfast {name} --corpus C --work W [options]",
            help=text,
            description=text,
            epilog=_EPILOGS[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(command=command, name=name)
        made.add_argument("--quiet", action="store_true", help="no progress, warnings only")
        return made

    _add_pipeline_commands(add)
    ask = add("ask", "Show the top passages for a question; two models side by side.", _ask)
    ask.add_argument("question")
    ask.add_argument("--model", action="append", required=True, help="bi-encoder; give it twice to compare")
    ask.add_argument("-k", type=int, default=5, help="passages to show (default 5)")
    _add_corpus(ask, work_help="work directory whose embeddings are used and kept", work_required=False)
    demo = add("demo", "Adapt the bundled models to a bundled collection and show the table.", _demo)
    demo.add_argument("--work", type=Path, default=Path("gplfast-demo"), help="work directory (default gplfast-demo)")
    demo.add_argument("--threads", type=int, default=0, help="CPU threads (0: all cores)")
    export = add("export", "Write a work directory's queries, negatives and margins as GPL's own files.", _export)
    _add_corpus(export, work_help="work directory")
    export.add_argument("--output", type=Path, required=True, help="folder to write")
    add("info", "Show versions, instruction set, threads and accelerators.", _info)
    return top


def _add_pipeline_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    texts = {
        "run": "Generate, mine, label, train (and evaluate), doing only what is not done yet.",
        "generate": "Generate queries from the passages.",
        "mine": "Mine hard negatives for the generated queries.",
        "label": "Score positives and negatives with the teacher.",
        "train": "Train the student.",
        "evaluate": "Measure systems on judged queries.",
    }
    for name, text in texts.items():
        command = add(name, text, {"run": _run, "evaluate": _evaluate}.get(name, _step))
        _add_corpus(command, work_help="work directory: everything that is made, and where a killed run goes on")
        command.add_argument("--preset", choices=sorted(settings.PRESETS), help="settings to start from (default nano)")
        command.add_argument("--config", type=Path, help="TOML or YAML file with settings over the preset")
        if name in ("run", "evaluate"):
            command.add_argument(
                "--judgements", type=Path, help="BEIR folder with queries and qrels (default: the corpus)"
            )
        if name == "run":
            command.add_argument("--evaluate", action="store_true", help="measure at the end; needs judged queries")
            command.add_argument(
                "--dry-run", action="store_true", help="say what is fresh, what is stale and why; do nothing"
            )
        if name == "evaluate":
            command.add_argument("--model", action="append", default=[], help="another bi-encoder for the table")
        _add_settings(command, name)


def _add_corpus(command: argparse.ArgumentParser, *, work_help: str, work_required: bool = True) -> None:
    command.add_argument(
        "--corpus", required=True, help="BEIR folder, folder of .txt/.md, or .jsonl, .csv, .tsv, .parquet file"
    )
    command.add_argument("--work", type=Path, required=work_required, help=work_help)


def _add_settings(command: argparse.ArgumentParser, name: str) -> None:
    general = command.add_argument_group("settings")
    for item in dataclasses.fields(settings.RunConfig):
        if item.metadata and item.name != "preset":
            _add_flag(general, [f"--{item.name}"], f"{item.name}", item, settings.RunConfig)
    taken = set(command._option_string_actions)
    for section in _STEP_SECTIONS[name]:
        kind = settings.field_types(settings.RunConfig)[section]
        group = command.add_argument_group(f"settings of [{section}]")
        for item in dataclasses.fields(kind):
            long = item.name.replace("_", "-")
            flags = [f"--{section}-{long}"]
            # A command of one step has its settings without the step's name too.
            if section == name and f"--{long}" not in taken:
                flags.insert(0, f"--{long}")
            flags += [
                alias for alias, (target,) in _ALIASES.items() if target == f"{section}.{item.name}" and name == "run"
            ]
            _add_flag(group, flags, f"{section}.{item.name}", item, kind)


def _add_flag(group: Any, flags: list[str], target: str, item: dataclasses.Field[Any], owner: type[Any]) -> None:
    kind = settings.field_types(owner)[item.name]
    options: dict[str, Any] = {"dest": f"set:{target}", "default": argparse.SUPPRESS}
    options["help"] = item.metadata["help"].replace("%", "%%")
    if kind is bool:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, **options)
        return
    element = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    if typing.get_origin(kind) is tuple:
        options["nargs"] = "+"
    choices = item.metadata["choices"]
    options["metavar"] = "{" + ",".join(choices) + "}" if choices else element.__name__.upper()
    group.add_argument(*flags, type=_number(element), **options)


def _number(kind: type[Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {'a whole number' if kind is int else 'a number'}"
            ) from None

    return parse


def _config(arguments: argparse.Namespace) -> settings.RunConfig:
    """The settings: preset, file, flags."""
    overrides: dict[str, Any] = {}
    given = {name.removeprefix("set:"): value for name, value in vars(arguments).items() if name.startswith("set:")}
    for target, value in given.items():
        section, _, name = target.rpartition(".")
        kind = settings.field_types(settings.RunConfig)[section] if section else settings.RunConfig
        item = next(field for field in dataclasses.fields(kind) if field.name == name)
        flag = "--" + target.replace(".", "-").replace("_", "-")
        checked = settings.coerce(item, settings.field_types(kind)[name], value, flag)
        (overrides.setdefault(section, {}) if section else overrides)[name] = checked
    if arguments.name == "train" and given.get("loss") in ("mnrl", "both"):
        overrides["genq"] = {**overrides.get("train", {}), **overrides.get("genq", {})}
    return settings.load_config(arguments.config, preset=arguments.preset, overrides=overrides)


def _run(arguments: argparse.Namespace) -> None:
    from gplfast.pipeline import Pipeline
    from gplfast.report import table

    config = _config(arguments)
    with _Bars(arguments) as bars:
        pipeline = Pipeline(arguments.corpus, arguments.work, config, judgements=arguments.judgements, report=bars)
        if arguments.dry_run:
            for item in pipeline.plan(evaluate=arguments.evaluate):
                print(f"{'fresh' if item.fresh else 'stale'}  {item.step}{'' if item.fresh else ': ' + item.reason}")
            return
        pipeline.check(evaluate=arguments.evaluate)
        with pipeline.work:
            adapted = pipeline.run(evaluate=arguments.evaluate)
    for path in adapted.models.values():
        print(path)
    if adapted.report is not None:
        print(table(adapted.report))


def _step(arguments: argparse.Namespace) -> None:
    from gplfast.pipeline import Pipeline

    with _Bars(arguments) as bars:
        pipeline = Pipeline(arguments.corpus, arguments.work, _config(arguments), report=bars, alone=True)
        steps = [step for step in pipeline.steps() if step.split()[0] == arguments.name] or [arguments.name]
        with pipeline.work:
            for step in steps:
                pipeline.step(step)
                print(pipeline.describe(step))


def _evaluate(arguments: argparse.Namespace) -> None:
    from gplfast.pipeline import Pipeline
    from gplfast.report import table

    with _Bars(arguments) as bars:
        pipeline = Pipeline(
            arguments.corpus,
            arguments.work,
            _config(arguments),
            judgements=arguments.judgements,
            report=bars,
            alone=True,
        )
        with pipeline.work:
            report = pipeline.evaluate({name: name for name in arguments.model})
    print(table(report))


def _demo(arguments: argparse.Namespace) -> None:
    from gplfast.pipeline import demo
    from gplfast.report import table

    with _Bars(arguments) as bars:
        adapted = demo(arguments.work, threads=arguments.threads, report=bars)
    for path in adapted.models.values():
        print(path)
    if adapted.report is not None:
        print(table(adapted.report))


def _export(arguments: argparse.Namespace) -> None:
    from gplfast.pipeline import Pipeline
    from gplfast.steps import export_gpl

    pipeline = Pipeline(arguments.corpus, arguments.work, settings.load_config(), alone=True)
    for path in export_gpl(pipeline, arguments.output):
        print(path)


def _ask(arguments: argparse.Namespace) -> None:
    from gplfast.ask import ask, side_by_side

    if arguments.k < 1:
        raise ConfigError(f"-k is {arguments.k} but must be at least 1")
    with _Bars(arguments) as bars:
        answers = ask(
            arguments.question, arguments.model, arguments.corpus, arguments.k, work=arguments.work, report=bars
        )
    print(side_by_side(answers))


def _info(_: argparse.Namespace) -> None:
    from importlib import metadata

    from gplfast import ops
    from gplfast.models import session

    print(f"gplfast: {metadata.version('gplfast')} (python {sys.version.split()[0]})")
    for name in ("numpy", "pyarrow", "torch", "transformers", "sentence-transformers", "bm25s", "ir-measures"):
        try:
            print(f"{name}: {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name}: not installed")
    for part, found in (("extension", ops.info()), ("onnxruntime", session.info())):
        for name, value in found.items():
            if name != "conflict":
                print(f"{part} {name}: {_words(value)}")
            elif value:
                sys.stderr.write(f"warning: {value}\n")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)


class _Bars:
    """Progress on stderr, a bar for each thing that goes on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._quiet = arguments.quiet
        self._bar: Any = None
        self._what = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def __call__(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None or what != self._what:
            self._close()
            # Not a terminal: a line now and then instead of a moving bar.
            slow = 0.1 if sys.stderr.isatty() else 15.0
            self._bar = tqdm(
                total=total, initial=done, desc=what, disable=self._quiet, file=sys.stderr, mininterval=slow
            )
            self._what = what
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._what = None, ""


def _logging(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("gplfast").setLevel(logging.WARNING if arguments.quiet else logging.INFO)

"""The command line: arguments and printing only.

Results go to stdout, progress and warnings to stderr. An error is one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gplfast import ranks
from gplfast.bench import flags
from gplfast.epilogs import EPILOGS
from gplfast.errors import ConfigError, GplfastError
from gplfast.flags import add_labelled, add_settings, flag_of, given_settings, read_labelled, read_settings
from gplfast.labelled_settings import EXPORTED, FORMATS
from gplfast.preset_settings import PRESETS
from gplfast.progress import Bars

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gplfast.pipeline import Pipeline


# Commands in which processes that train together have something to do besides the first one.
_TRAINING = ("run", "train", "demo")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and status 2, without the usage."""
        sys.stderr.write(f"{self.prog}: error: {message}; see {self.prog} --help\n")
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = parser().parse_args(argv)
    if not ranks.first() and arguments.name not in _TRAINING:
        return 0
    _logging(arguments)
    try:
        return _one_of_several(arguments) if ranks.world_size() > 1 else int(arguments.command(arguments) or 0)
    except GplfastError as error:
        sys.stderr.write(f"gplfast: error: {' '.join(str(error).split())}\n")
        return 2
    except BrokenPipeError:
        # Whoever read our output has seen enough (`gplfast ask … | head`); Python must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        sys.stderr.write(f"gplfast: error: {where}{' '.join((error.strerror or str(error)).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("gplfast: interrupted; start it again to go on\n")
        return 130


def _one_of_several(arguments: argparse.Namespace) -> int:
    """A command in a process that torchrun started: the first one speaks, the others only train."""
    from gplfast.models import meeting

    if ranks.first():
        status = int(arguments.command(arguments) or 0)
    else:
        arguments.quiet = True
        with contextlib.redirect_stdout(io.StringIO()):
            status = int(arguments.command(arguments) or 0)
    meeting.leave()
    return status


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; flags of settings come from the dataclasses."""
    top = _Parser(
        prog="gplfast",
        description="Adapt a dense retriever to documents without labels (GPL, R-GPL, GenQ).",
        epilog=EPILOGS[None],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(metavar="command", required=True)

    def add(name: str, text: str, command: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            allow_abbrev=False,
            usage=None
            if name in ("ask", "info", "demo", "export", "bench")
            else f"gplfast {name} --corpus C --work W [options]",
            help=text,
            description=text,
            epilog=EPILOGS[name],
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
    add_settings(ask, "ask")
    demo = add("demo", "Adapt the bundled models to a bundled collection and show the table.", _demo)
    demo.add_argument("--work", type=Path, default=Path("gplfast-demo"), help="work directory (default gplfast-demo)")
    demo.add_argument("--threads", type=int, default=0, help="CPU threads (0: all cores)")
    export = add("export", "Write queries, negatives and margins of a work directory as files of other tools.", _export)
    _add_corpus(export, work_help="work directory")
    _add_formats(export, "gpl")
    add_settings(export, "export")
    flags.add_commands(
        add("bench", "Time operations and models on your shapes and your machine, beside other libraries.", _bench)
    )
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
        command = add(name, text, {"run": _run, "mine": _mine, "evaluate": _evaluate}.get(name, _step))
        work_help = "work directory: everything that is made, and where a killed run goes on"
        _add_corpus(command, work_help=work_help, work_required=name != "mine", corpus_required=name != "mine")
        command.add_argument("--preset", choices=sorted(PRESETS), help="settings to start from (default nano)")
        if name in ("run", "evaluate"):
            command.add_argument(
                "--judgements", type=Path, help="BEIR folder with queries and qrels (default: the corpus)"
            )
        if name == "run":
            command.add_argument("--evaluate", action="store_true", help="measure at the end; needs judged queries")
            command.add_argument(
                "--dry-run",
                action="store_true",
                help="say what is fresh, what is stale and why; reads the corpus and the models' files, makes nothing",
            )
        if name == "evaluate":
            command.add_argument("--model", action="append", default=[], help="another bi-encoder for the table")
        if name == "mine":
            command.add_argument("--queries", help="labelled queries: BEIR folder or file (default: the corpus)")
            command.add_argument(
                "--qrels", help="judgements: file, or folder with qrels/ (default: beside the queries)"
            )
            _add_formats(command, "negminer")
        add_settings(command, name)
        if name == "mine":
            add_labelled(command)


def _add_formats(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--output", type=Path, required=default == "gpl", help="folder to write")
    names = ", ".join(EXPORTED if default == "gpl" else FORMATS)
    command.add_argument("--format", nargs="+", metavar="NAME", help=f"{names} (default {default})")


def _add_corpus(
    command: argparse.ArgumentParser, *, work_help: str, work_required: bool = True, corpus_required: bool = True
) -> None:
    command.add_argument(
        "--corpus",
        required=corpus_required,
        help="BEIR folder, folder of .txt/.md, or .jsonl, .csv, .tsv, .parquet file",
    )
    command.add_argument("--work", type=Path, required=work_required, help=work_help)


def _run(arguments: argparse.Namespace) -> None:
    from gplfast.pipeline import Pipeline
    from gplfast.report import table

    config = read_settings(arguments)
    with Bars(quiet=arguments.quiet) as bars:
        pipeline = Pipeline(arguments.corpus, arguments.work, config, judgements=arguments.judgements, report=bars)
        if arguments.dry_run:
            for item in pipeline.plan(evaluate=arguments.evaluate):
                print(f"{'fresh' if item.fresh else 'stale'}  {item.step}{'' if item.fresh else ': ' + item.reason}")
            return
        pipeline.check(evaluate=arguments.evaluate)
        with pipeline.work.together():
            adapted = pipeline.run(evaluate=arguments.evaluate)
    for path in adapted.models.values():
        print(path)
    if adapted.report is not None:
        print(table(adapted.report))


def _step(arguments: argparse.Namespace) -> None:
    from gplfast.pipeline import Pipeline

    with Bars(quiet=arguments.quiet) as bars:
        pipeline = Pipeline(arguments.corpus, arguments.work, read_settings(arguments), report=bars, alone=True)
        steps = [step for step in pipeline.steps() if step.split()[0] == arguments.name] or [arguments.name]
        pipeline.check(steps)  # before the work directory is made
        with pipeline.work.together():
            for step in steps:
                pipeline.step(step)
                if ranks.first():
                    print(pipeline.describe(step))


def _mine(arguments: argparse.Namespace) -> None:
    """Of generated queries the step, of labelled ones all that `mine_labelled` does."""
    from gplfast.interop import negminer_config

    base = None
    labelled: dict[str, Any] = {}
    if arguments.config is not None and negminer_config.is_negminer(Path(arguments.config)):
        found = negminer_config.read_config(Path(arguments.config))
        for name in ("corpus", "queries", "qrels"):
            setattr(arguments, name, getattr(arguments, name) or getattr(found, name))
        arguments.output = arguments.output or Path(found.output)
        base, labelled = found.run, found.labelled
    needed = ["corpus"]
    if arguments.queries is None and arguments.qrels is None:
        needed.append("work")
        idle = [name for name in ("output", "format") if getattr(arguments, name) is not None]
        if idle := idle + list(given_settings(arguments, "labelled")):
            raise ConfigError(
                f"--{idle[0].replace('_', '-')} has no effect without --queries or --qrels; generated queries are "
                "written by `gplfast export`"
            )
    else:
        needed.append("output")
    if missing := [f"--{name}" for name in needed if getattr(arguments, name) is None]:
        raise ConfigError(f"mine needs {' and '.join(missing)}; see gplfast mine --help")
    if "output" not in needed:
        _step(arguments)
        return
    _mine_labelled(arguments, base, labelled)


def _mine_labelled(arguments: argparse.Namespace, base: Any, labelled: dict[str, Any]) -> None:
    from gplfast.exports import explicit_label, mine_files
    from gplfast.labelled import Sources

    flags_given = given_settings(arguments, "label")
    if "max_seq_length" in flags_given:
        raise ConfigError("--label-max-seq-length has no effect on labelled queries; give --teacher-tokens")
    teacher = base is not None or "model" in {**explicit_label(arguments.config), **flags_given}
    config = read_settings(arguments, base)
    if flags_given and not (teacher or config.filter.by_teacher or config.filter.audit):
        raise ConfigError(
            f"{flag_of('label.' + next(iter(flags_given)))} has no effect without a teacher; add --teacher"
        )
    with Bars(quiet=arguments.quiet) as bars:
        _, files = mine_files(
            Sources(arguments.corpus, arguments.queries, arguments.qrels),
            config,
            read_labelled(arguments, labelled),
            formats=arguments.format or ["negminer"],
            output=arguments.output,
            work=arguments.work,
            teacher=teacher,
            report=bars,
        )
    for path in files:
        print(path)


def _evaluate(arguments: argparse.Namespace) -> None:
    from gplfast.pipeline import Pipeline
    from gplfast.report import table

    config, judgements = read_settings(arguments), arguments.judgements
    with Bars(quiet=arguments.quiet) as bars:
        pipeline = Pipeline(arguments.corpus, arguments.work, config, judgements=judgements, report=bars, alone=True)
        _refuse_another_student(pipeline, arguments)
        pipeline.check([], evaluate=True, extra=arguments.model)
        with pipeline.work:
            report = pipeline.evaluate({name: name for name in arguments.model})
    print(table(report))


def _refuse_another_student(pipeline: Pipeline, arguments: argparse.Namespace) -> None:
    """Zero-shot is what the student was trained from; a flag that says otherwise would be ignored."""
    made = pipeline.origin()
    if made is None:
        return
    for name, value in given_settings(arguments, "train").items():
        found = pipeline.model(value).fingerprint if name == "base" else value
        if found != (made.models["base"] if name == "base" else made.config[name]):
            raise ConfigError(
                f"{flag_of('train.' + name)} is {value} but the student in {pipeline.work.root} was trained with "
                "another; leave the flag out, or show that model with --model"
            )


def _demo(arguments: argparse.Namespace) -> None:
    from gplfast.pipeline import demo
    from gplfast.report import table

    with Bars(quiet=arguments.quiet) as bars:
        adapted = demo(arguments.work, threads=arguments.threads, report=bars)
    for path in adapted.models.values():
        print(path)
    if adapted.report is not None:
        print(table(adapted.report))


def _export(arguments: argparse.Namespace) -> None:
    from gplfast.exports import as_labelled, export
    from gplfast.pipeline import Pipeline

    given = given_settings(arguments, "label")
    config, teacher = as_labelled(read_settings(arguments), arguments.work, given), "model" in given
    with Bars(quiet=arguments.quiet) as bars:
        pipeline = Pipeline(arguments.corpus, arguments.work, config, report=bars, alone=True)
        for path in export(pipeline, arguments.output, arguments.format or ["gpl"], teacher=teacher):
            print(path)


def _ask(arguments: argparse.Namespace) -> None:
    from gplfast.ask import ask, side_by_side
    from gplfast.pipeline import Pipeline

    if arguments.k < 1:
        raise ConfigError(f"-k is {arguments.k} but must be at least 1")
    config, work = read_settings(arguments), arguments.work
    corpus = Pipeline(arguments.corpus, work or Path(), config).corpus
    with Bars(quiet=arguments.quiet) as bars:
        answers = ask(
            arguments.question,
            arguments.model,
            corpus,
            arguments.k,
            work=work,
            threads=config.threads,
            provider=config.provider,
            precision=config.precision,
            report=bars,
        )
    print(side_by_side(answers))


def _bench(arguments: argparse.Namespace) -> None:
    import json

    from gplfast.bench import report, run

    report.check_files(arguments.json, arguments.plot)
    with Bars(quiet=arguments.quiet) as bars:
        result = run.run(arguments, bars)
    print(report.table(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        report.plot(result, arguments.plot)


def _info(_: argparse.Namespace) -> None:
    from gplfast import info

    lines, warnings = info.found()
    print("\n".join(lines))
    sys.stderr.writelines(f"warning: {warning}\n" for warning in warnings)


def _logging(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    level = logging.WARNING if arguments.quiet else logging.INFO
    logging.getLogger("gplfast").setLevel(level if ranks.first() else logging.ERROR)  # all would warn of the same

"""Flags of the command line from the settings' dataclasses, and settings from the flags that were given."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import typing
from typing import Any

from gplfast import config as settings
from gplfast.errors import ConfigError
from gplfast.labelled_settings import LabelledConfig
from gplfast.loss_settings import MARGIN_MSE, MNRL, ignored
from gplfast.positive_settings import read_by
from gplfast.preset_settings import PRESETS
from gplfast.settings import coerce, field_types, value_type

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_ALL: tuple[str, ...] = ()
# Command to sections to the settings of each that the command reads; what it does not read it does not take.
_SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "run": dict.fromkeys(settings.SECTIONS, _ALL),
    "generate": {"input": _ALL, "generate": _ALL},
    "mine": {
        "input": _ALL,
        "mine": _ALL,
        "filter": _ALL,
        "label": ("model", "max_seq_length", "activation", "relevance_label", "nan", "batch_size"),
    },
    "label": {
        "input": _ALL,
        "label": _ALL,
        "train": ("steps", "visits_per_query", "max_steps", "batch_size", "negatives_per_row", "dev_share", "loss"),
    },
    "train": {
        "input": _ALL,
        "train": _ALL,
        "genq": _ALL,
        "refresh": _ALL,
        "label": _ALL,
        "mine": ("exclude_duplicates",),
        "filter": _ALL,
    },
    "evaluate": {
        "input": _ALL,
        "evaluate": _ALL,
        "label": ("model", "max_seq_length", "activation", "relevance_label", "batch_size"),
        "train": ("base", "similarity", "pooling"),
    },
    "ask": {"input": _ALL},
    "export": {"input": _ALL, "label": ("model", "max_seq_length", "activation", "relevance_label", "batch_size")},
}
_SERVED = ("provider", "precision")
_GENERAL = {
    "run": ("seed", "threads", "students", *_SERVED),
    "generate": ("seed", "threads", *_SERVED),
    "mine": ("seed", "threads", *_SERVED),
    "label": ("seed", "threads", *_SERVED),
    "train": ("seed", "threads", "students", "provider"),
    "evaluate": ("seed", "threads", *_SERVED),
    "ask": ("threads", *_SERVED),
    "export": ("threads", *_SERVED),
}
# Flags of a command that name a setting in fewer words.
_ALIASES = {
    "run": {
        "--generator": "generate.model",
        "--retrievers": "mine.retrievers",
        "--teacher": "label.model",
        "--student": "train.base",
        "--similarity": "train.similarity",
    },
    "mine": {"--encoder": "mine.retrievers", "--teacher": "label.model"},
    "export": {"--teacher": "label.model"},
}


def add_settings(command: argparse.ArgumentParser, name: str) -> None:
    """Add the flags of the settings that a command reads."""
    command.add_argument("--config", help="TOML or YAML file with settings over the preset")
    # What ask and export do without a flag is not the preset's: no teacher, and the model that is named.
    presets = {} if name in ("ask", "export") else _presets()
    about = "in brackets: what is taken without the flag" if presets else None
    general = command.add_argument_group("settings", about)
    for item in dataclasses.fields(settings.RunConfig):
        if item.name in _GENERAL[name]:
            default = _default({preset: getattr(config, item.name) for preset, config in presets.items()})
            _add_flag(general, [f"--{item.name}"], item.name, item, settings.RunConfig, default=default)
    taken = set(command._option_string_actions)
    for section, chosen in _SECTIONS[name].items():
        kind = field_types(settings.RunConfig)[section]
        group = command.add_argument_group(f"settings of [{section}]")
        for item in dataclasses.fields(kind):
            if chosen and item.name not in chosen:
                continue
            target, long = f"{section}.{item.name}", item.name.replace("_", "-")
            flags = [f"--{section}-{long}"]
            # A command of one step has its settings without the step's name too.
            if section == name and f"--{long}" not in taken:
                flags.insert(0, f"--{long}")
            flags += [alias for alias, meant in _ALIASES.get(name, {}).items() if meant == target]
            default = _default(
                {preset: getattr(getattr(config, section), item.name) for preset, config in presets.items()}
            )
            _add_flag(group, flags, target, item, kind, default=default)


def add_labelled(command: argparse.ArgumentParser) -> None:
    """Add the flags of `LabelledConfig`."""
    group = command.add_argument_group("settings for labelled queries (--queries or --qrels)")
    defaults = LabelledConfig()
    for item in dataclasses.fields(LabelledConfig):
        flag, default = f"--{item.name.replace('_', '-')}", _default({"": getattr(defaults, item.name)})
        _add_flag(group, [flag], f"labelled.{item.name}", item, LabelledConfig, default=default)


def read_labelled(arguments: argparse.Namespace, base: Mapping[str, Any]) -> LabelledConfig:
    """The settings for labelled queries: `base`, flags.

    Raises:
        ConfigError: A setting that is out of range.
    """
    return LabelledConfig(**{**base, **given_settings(arguments, "labelled")})


def read_settings(
    arguments: argparse.Namespace, base: Mapping[str, Mapping[str, Any]] | None = None
) -> settings.RunConfig:
    """The settings of a command: preset, file, flags.

    Args:
        arguments: What was given.
        base: Settings by section in place of the file's.

    Raises:
        ConfigError: A setting that is unknown or out of range, or one given by flag that would have no effect.
    """
    preset = getattr(arguments, "preset", None)
    given = {
        name.removeprefix("set:"): value
        for name, value in vars(arguments).items()
        if name.startswith("set:") and not name.startswith("set:labelled.")
    }
    overrides: dict[str, Any] = {section: dict(values) for section, values in (base or {}).items()}
    file = arguments.config if base is None else None
    for target, value in given.items():
        section, _, name = target.rpartition(".")
        kind = field_types(settings.RunConfig)[section] if section else settings.RunConfig
        item = next(field for field in dataclasses.fields(kind) if field.name == name)
        checked = coerce(item, field_types(kind)[name], value, flag_of(target))
        (overrides.setdefault(section, {}) if section else overrides)[name] = checked
    config = settings.load_config(file, preset=preset, overrides=overrides)
    if arguments.name == "train" and "genq" in config.students:
        # `gplfast train --steps` means the student that is trained, whatever named it.
        overrides["genq"] = {**overrides.get("train", {}), **overrides.get("genq", {})}
        config = settings.load_config(file, preset=preset, overrides=overrides)
    _refuse_unused(arguments, given, config)
    return config


def flag_of(target: str) -> str:
    """The long flag of a setting such as "train.batch_size"."""
    return "--" + target.replace(".", "-").replace("_", "-")


def _refuse_unused(arguments: argparse.Namespace, given: Iterable[str], config: settings.RunConfig) -> None:
    """A flag for a step that does not run, or for another method, would be ignored silently."""
    method, read = config.generate.method, read_by(config.generate)
    for target in given:
        section, _, name = target.rpartition(".")
        if section == "generate" and name not in read:
            raise ConfigError(f"{flag_of(target)} has no effect: method is {method}, which does not read it")
    _refuse_without_their_mode(given, config)
    if arguments.name not in ("run", "train"):
        return
    unused: dict[str, str] = {}
    students = ", ".join(config.students)
    if "genq" not in config.students:
        unused["genq"] = f"the students are {students}; add genq to --students"
    if "rgpl" not in config.students:
        unused["refresh"] = f"the students are {students}; add rgpl to --students"
        if arguments.name == "train":
            unused["label"] = unused["mine"] = f"{unused['refresh']}, which mines and labels while it trains"
    if arguments.name == "run":
        if config.students == ("genq",):
            unused["mine"] = unused["filter"] = unused["label"] = (
                "genq is the only student, and needs no negatives and no margins"
            )
            unused["train"] = "genq is the only student; give the flag that starts with --genq-"
        if not arguments.evaluate:
            unused["evaluate"] = "nothing is evaluated; add --evaluate"
            if arguments.judgements is not None:
                raise ConfigError(f"--judgements has no effect: {unused['evaluate']}")
        elif "bm25+teacher" in config.evaluate.systems:
            unused.pop("label", None)
    for target in given:
        section, _, name = target.rpartition(".")
        of_both = section == "train" and name in settings.OF_THE_STUDENT
        if section in unused and not of_both:
            raise ConfigError(f"{flag_of(target)} has no effect: {unused[section]}")
    _refuse_other_losses(arguments, given, config)


def _refuse_without_their_mode(given: Iterable[str], config: settings.RunConfig) -> None:
    """A flag that another setting does not make use of, though its step runs."""
    idle: dict[str, str] = {}
    if "rgpl" in config.students and config.refresh.mode != "adaptive":
        why = f"only the mode adaptive reads it, not {config.refresh.mode}"
        idle.update(dict.fromkeys(("refresh.below", "refresh.sample_queries", "refresh.sample_passages"), why))
    if config.mine.search != "faiss-ivf":
        idle["mine.nprobe"] = f"only the search faiss-ivf reads it, not {config.mine.search}"
    if not config.filter.limits_score:
        idle["filter.scored"] = "there is no limit of the score; give one, such as --filter-relative-margin"
    for target in given:
        if target in idle:
            raise ConfigError(f"{flag_of(target)} has no effect: {idle[target]}")


def _refuse_other_losses(arguments: argparse.Namespace, given: Iterable[str], config: settings.RunConfig) -> None:
    """A flag that no trained student's loss reads; a file may hold the settings of several."""
    losses = {}
    if {"gpl", "rgpl"} & set(config.students):
        losses["train"] = config.train.chosen_loss(MARGIN_MSE)
    if "genq" in config.students:
        losses["genq"] = config.genq.chosen_loss(MNRL)
    for target in given:
        section, _, name = target.rpartition(".")
        # `gplfast train --steps` means the student that is trained: [train] then holds for GenQ too.
        read = {
            part: losses[part] for part in losses if part == section or (section, arguments.name) == ("train", "train")
        }
        if read and all(name in ignored(loss, part) for part, loss in read.items()):
            found = " and ".join(f"{loss} of [{part}]" for part, loss in read.items())
            raise ConfigError(f"{flag_of(target)} has no effect: not read by the loss {found}; see docs/losses.md")


def given_settings(arguments: argparse.Namespace, section: str) -> Mapping[str, Any]:
    """The settings of a section that flags were given for."""
    start = f"set:{section}."
    return {name.removeprefix(start): value for name, value in vars(arguments).items() if name.startswith(start)}


@functools.cache
def _presets() -> dict[str, settings.RunConfig]:
    return {name: settings.load_config(preset=name) for name in PRESETS}


def _default(values: Mapping[str, Any]) -> str:
    """The end of a flag's help: its value in each preset, or the one that all have."""
    shown = {preset: _shown(value) for preset, value in values.items()}
    if len(set(shown.values())) > 1:
        each = "; ".join(f"{preset}: {value or 'none'}" for preset, value in shown.items())
        return f" [{each}]"
    value = next(iter(shown.values()), "")
    return f" [{value}]" if value else ""


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(str(item) for item in value)
    return "" if value is None else str(value)


def _add_flag(
    group: Any, flags: list[str], target: str, item: dataclasses.Field[Any], owner: type[Any], *, default: str
) -> None:
    kind = value_type(field_types(owner)[item.name])
    options: dict[str, Any] = {"dest": f"set:{target}", "default": argparse.SUPPRESS}
    options["help"] = (item.metadata["help"] + default).replace("%", "%%")
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

"""What a graph runs on: a provider and a precision. Which of them this machine has, and one way to open a session."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gplfast import ops
from gplfast.errors import ConfigError, MissingExtraError, UnavailableError
from gplfast.models.bound_session import BoundSession
from gplfast.models.cache import cached_folder
from gplfast.models.session import PROVIDERS as ORT_PROVIDERS
from gplfast.models.session import Session, import_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from gplfast.models.states import States

AUTO = "auto"
PROVIDERS = ("cpu", "openvino", "cuda")
# What each provider computes in, the most exact first. int8 is of the weights and what they are multiplied with, and so
# are CUDA's fp16 and bf16 (`export.graph.Graph`): fp16 has three bits more, and its graphs keep within its range.
PRECISIONS: dict[str, tuple[str, ...]] = {
    "cpu": ("fp32", "int8"),
    "openvino": ("fp32", "bf16"),
    "cuda": ("fp32", "fp16", "bf16"),
}


@dataclass(frozen=True)
class Runtime:
    """A provider ("cpu": ONNX Runtime's own, "openvino", "cuda") and what it computes in, of `PRECISIONS`."""

    provider: str
    precision: str

    def __str__(self) -> str:
        """As the calibration and `gplfast info` name it."""
        return f"{self.provider}-{self.precision}"

    @property
    def suffix(self) -> str:
        """What a fingerprint of results gets: results of another precision are others."""
        return "" if self.precision == "fp32" else f"-{self.precision}"

    @property
    def graph(self) -> str:
        """What its graphs are made for: OpenVINO rounds those of float32 itself."""
        return "fp32" if self.provider == "openvino" else self.precision


REFERENCE = Runtime("cpu", "fp32")


class AnySession(Protocol):
    """A loaded graph; see `gplfast.models.session.Session`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    streams: int
    batch_tokens: int
    batch_rows: int

    def output_dim(self, name: str) -> int:
        """Last dimension of an output."""

    def run(
        self, feed: Mapping[str, Any], outputs: Sequence[str] | None = None, kept: Collection[str] = ()
    ) -> list[Any]:
        """Run the graph once; what is `kept` may stay where the graph runs, for `feed` of a later run there."""

    def states(self, n_arrays: int, n_heads: int, head_dim: int) -> States:
        """What a decoder keeps between steps."""


def open_session(
    path: Path, runtime: Runtime, threads: int | None = None, *, streams: bool = False, growing: bool = False
) -> AnySession:
    """Load a graph.

    Args:
        path: an .onnx file, made for `runtime.graph`.
        runtime: what it runs on.
        threads: None takes every CPU this process may use.
        streams: run one batch on each thread, instead of one batch on all of them.
        growing: its arrays grow with every run, as a decoder's do; CUDA's memory is then taken otherwise.

    Raises:
        MissingExtraError, UnavailableError: the provider is not there.
        ModelError: the file is damaged or not an ONNX graph.
    """
    if runtime.provider == "openvino":
        from gplfast.models.openvino_session import OpenVinoSession

        return OpenVinoSession(path, threads=threads, precision=runtime.precision, streams=streams)
    if runtime.provider == "cuda":
        return BoundSession(path, threads=threads, provider="cuda", streams=streams, growing=growing)
    return Session(path, threads=threads, provider=runtime.provider, streams=streams)


def open_exported(
    folder: Path,
    name: str,
    export: Callable[..., None],
    runtime: Runtime,
    threads: int | None,
    *,
    streams: bool = False,
    growing: bool = False,
) -> AnySession:
    """Load a graph of a model's exported ones, exporting them when they are not there.

    Args:
        folder: where those of float32 belong; those of other precisions lie beside it.
        name: of the graph's file in it.
        export: called with (an empty folder, precision=what the graphs are made for), to fill it.
        runtime: what it runs on.
        threads: None takes every CPU this process may use.
        streams: see `open_session`.
        growing: see `open_session`.

    Raises:
        ArtifactError: the cache cannot be written.
        MissingExtraError, ModelError, UnavailableError: see `open_session`.
    """
    target = folder if runtime.graph == "fp32" else folder.with_name(f"{folder.name}-{runtime.graph}")
    path = cached_folder(target, functools.partial(export, precision=runtime.graph)) / name
    return open_session(path, runtime, threads, streams=streams, growing=growing)


def available(provider: str = AUTO) -> list[Runtime]:
    """Every runtime this machine computes in natively, the reference first; OpenVINO is not asked for another provider.

    int8 only with VNNI or AMX: without, ONNX Runtime's 8-bit products saturate. OpenVINO's bf16 only where it says that
    the processor multiplies in it. CUDA's all, where ONNX Runtime has CUDA: whether there is a device, and one that
    multiplies in bf16 (compute capability 8.0), shows when a session is opened, and the trial leaves out what fails.
    """
    found = [REFERENCE]
    if ORT_PROVIDERS["cuda"] in import_onnxruntime().get_available_providers():
        found += [Runtime("cuda", precision) for precision in PRECISIONS["cuda"]]
    if provider in {AUTO, "openvino"} and importlib.util.find_spec("openvino") is not None:
        from gplfast.models.openvino_session import precisions  # loading it takes most of a second

        found += [Runtime("openvino", precision) for precision in precisions()]
    if any("int8" in isa or "vnni" in isa for isa in ops.available_isas()):
        found.append(Runtime("cpu", "int8"))
    return found


def resolved(provider: str, precision: str) -> tuple[str, str]:
    """A choice, what it leaves at "auto" taken from $GPLFAST_PROVIDER and $GPLFAST_PRECISION where they are set."""
    return (
        os.environ.get("GPLFAST_PROVIDER", AUTO) if provider == AUTO else provider,
        os.environ.get("GPLFAST_PRECISION", AUTO) if precision == AUTO else precision,
    )


def is_open(precision: str) -> bool:
    """Whether no precision was asked for by name, in the call or the environment."""
    return resolved(AUTO, precision)[1] == AUTO


def candidates(provider: str = AUTO, precision: str = AUTO) -> list[Runtime]:
    """The runtimes that a choice leaves, the most exact first.

    See `resolved` for what is left at "auto".

    Raises:
        ConfigError: a name that is none.
        MissingExtraError: the provider is not installed.
        UnavailableError: this machine cannot compute in that precision, or the provider cannot.
    """
    provider, precision = resolved(provider, precision)
    known = sorted({name for names in PRECISIONS.values() for name in names})
    for name, value, choices in (("provider", provider, PROVIDERS), ("precision", precision, known)):
        if value != AUTO and value not in choices:
            raise ConfigError(f"models: {name} is {value!r} but must be {AUTO} or one of {', '.join(choices)}")
    if AUTO not in {provider, precision} and precision not in PRECISIONS[provider]:
        raise ConfigError(
            f"models: provider {provider} computes in {' or '.join(PRECISIONS[provider])} but precision is "
            f"{precision!r}; leave one of them at auto"
        )
    here = available(provider)
    left = [
        runtime for runtime in here if provider in {AUTO, runtime.provider} and precision in {AUTO, runtime.precision}
    ]
    if not left:
        raise _missing(provider, precision, here)
    return left


def _missing(provider: str, precision: str, here: list[Runtime]) -> MissingExtraError | UnavailableError:
    by_precision = [name for name, of in PRECISIONS.items() if name != "cpu" and precision in of]
    wanted = [provider] if provider != AUTO else by_precision
    asked = f"provider {provider}" if provider != AUTO else f"precision {precision}"
    if "openvino" in wanted and importlib.util.find_spec("openvino") is None:
        return MissingExtraError(
            f"models: {asked} needs openvino, which is not installed; run: pip install 'gplfast[openvino]'"
        )
    if wanted == ["cuda"]:
        installed = ", ".join(import_onnxruntime().get_available_providers())
        return UnavailableError(
            f"models: {asked} needs {ORT_PROVIDERS['cuda']} but this onnxruntime has {installed}; "
            f"install the matching extra (pip install 'gplfast[gpu]') or use provider cpu{_instead(precision)}"
        )
    return UnavailableError(
        f"models: this machine has {', '.join(map(str, here))} but provider {provider} with precision {precision} was "
        "asked for; choose one of those, or auto"
    )


def _instead(precision: str) -> str:
    return "" if precision in {AUTO, *PRECISIONS["cpu"]} else f" with {' or '.join(PRECISIONS['cpu'])}"

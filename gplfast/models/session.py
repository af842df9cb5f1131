"""The only place that opens ONNX Runtime sessions: threads, providers, and plain words when something is missing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast import ops
from gplfast.errors import MissingExtraError, ModelError, UnavailableError
from gplfast.models.states import HostStates, States

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

log = logging.getLogger(__name__)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# A GPU wants many rows at once; not measured, as none was there.
CUDA_BATCH_TOKENS = 32_768
# Rows of a decoder's batch, likewise: a step of few rows costs what starting its kernels costs.
CUDA_BATCH_ROWS = 512
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime, or say how to get it.

    Raises:
        MissingExtraError: no onnxruntime is installed.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        message = (
            "models: onnxruntime is not installed; run: pip install 'gplfast[cpu]'  "
            "(or 'gplfast[gpu]' for CUDA; never both)"
        )
        raise MissingExtraError(message) from error
    return onnxruntime


def default_threads() -> int:
    """CPUs this process may use, as the extension counts them: affinity and the container's quota.

    ONNX Runtime's own default counts the host's, which over-subscribes containers.
    """
    return ops.available_threads()


class Session:
    """One loaded ONNX graph: named arrays in, arrays out in the order of the graph's outputs.

    Attributes:
        inputs: names.
        outputs: names.
        streams: how many threads should call `run` at a time, each with a batch of its own.
        batch_tokens: tokens of a batch that it wants; 0: what suits one core (`batching.BATCH_TOKENS`).
        batch_rows: rows of a decoder's batch that it wants; 0: what suits one core (`decoding.MAX_ROWS`).
    """

    def __init__(
        self,
        path: Path | bytes,
        *,
        threads: int | None = None,
        provider: str = "cpu",
        streams: bool = False,
        growing: bool = False,
    ) -> None:
        """Load the graph at `path`.

        Args:
            path: an .onnx file, with its external data beside it if it has any; or the content of one.
            threads: None takes every CPU this process may use.
            provider: "cpu" or "cuda".
            streams: run one batch on each thread, instead of one batch on all of them; a CUDA device takes one batch.
            growing: its arrays grow with every run, as caches do; see `cuda_options`.

        Raises:
            MissingExtraError: no onnxruntime is installed.
            UnavailableError: this onnxruntime lacks the provider.
            ModelError: the file is damaged or not an ONNX graph.
        """
        ort = import_onnxruntime()
        if provider not in PROVIDERS:
            message = f"session: provider is {provider!r} but must be one of {', '.join(PROVIDERS)}"
            raise UnavailableError(message)
        available = ort.get_available_providers()
        if PROVIDERS[provider] not in available:
            message = (
                f"session: provider {provider!r} needs {PROVIDERS[provider]} but this onnxruntime has "
                f"{', '.join(available)}; install the matching extra (pip install 'gplfast[gpu]') or use provider 'cpu'"
            )
            raise UnavailableError(message)
        n_threads = threads if threads is not None else default_threads()
        self.streams = n_threads if streams and provider == "cpu" else 1
        self.batch_tokens, self.batch_rows = (CUDA_BATCH_TOKENS, CUDA_BATCH_ROWS) if provider == "cuda" else (0, 0)
        options = ort.SessionOptions()
        options.intra_op_num_threads = n_threads // self.streams
        options.log_severity_level = 3
        # Threads of one graph that spin after its run take the cores of the next: the generator alternates between two.
        # Without, 320 passages took the nano generator 1.3 s in place of 2.0 s on 2 cores (256 rows, integers).
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if provider == "cuda":
            _load_cuda(ort)
        providers = [(PROVIDERS[provider], cuda_options(growing=growing) if provider == "cuda" else {})]
        content = path if isinstance(path, bytes) else str(path)
        try:
            self._session = ort.InferenceSession(content, options, providers=providers)
        except Exception as error:  # onnxruntime has no common base class for load errors
            unknown = "NOT_IMPLEMENTED" in str(error)
            name = "a graph" if isinstance(path, bytes) else path
            message = f"session: {name} cannot be loaded by onnxruntime {ort.__version__}: {first_line(error)}; " + (
                "upgrade it, or use another precision" if unknown else "delete that folder to have it exported again"
            )
            raise ModelError(message) from error
        if PROVIDERS[provider] not in self._session.get_providers():  # onnxruntime falls back without an error
            message = (
                f"session: {PROVIDERS[provider]} could not be started (a missing library, or no device); see what "
                "onnxruntime logged, or use provider 'cpu'"
            )
            raise UnavailableError(message)
        self.inputs: tuple[str, ...] = tuple(node.name for node in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(node.name for node in self._session.get_outputs())

    def output_dim(self, name: str) -> int:
        """Last dimension of an output, where the graph fixes it."""
        (shape,) = (node.shape for node in self._session.get_outputs() if node.name == name)
        return int(shape[-1])

    def run(
        self,
        feed: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        kept: Collection[str] = (),  # noqa: ARG002
    ) -> list[Any]:
        """Run the graph once; inputs that the graph does not take are left out of `feed` by the caller.

        What would be `kept` by a `BoundSession` is an array as well.
        """
        result: list[Any] = self._session.run(list(outputs) if outputs is not None else None, dict(feed))
        return result

    def states(self, n_arrays: int, n_heads: int, head_dim: int) -> States:
        """What a decoder keeps between steps: `n_arrays` arrays, two for each layer."""
        half = any(node.type == "tensor(float16)" for node in self._session.get_inputs())
        return HostStates(n_arrays, n_heads, head_dim, np.float16 if half else np.float32)


def _load_cuda(ort: ModuleType) -> None:
    """Load CUDA's libraries as pip installs them, which are on no path of the loader."""
    if hasattr(ort, "preload_dlls"):
        printed = io.StringIO()  # stdout is for results
        with contextlib.redirect_stdout(printed):
            ort.preload_dlls()
        log.debug("CUDA's libraries: %s", printed.getvalue().strip() or "loaded")


def cuda_options(*, growing: bool) -> dict[str, str]:
    """Of ONNX Runtime's CUDA provider.

    TF32 keeps 10 of float32's 23 bits: with it "fp32" would be as coarse as fp16, and no results would be the
    reference's. Memory is taken as a batch needs it, not in powers of two: batches come in order of length, so what one
    frees fits the next. Not so where arrays grow with every run: each length would leave blocks behind that are too
    small for the next, in all half as many times the cache as it has positions.
    """
    return {"use_tf32": "0", "arena_extend_strategy": "kNextPowerOfTwo" if growing else "kSameAsRequested"}


def info() -> dict[str, Any]:
    """What `gplfast info` shows about ONNX Runtime.

    Returns:
        installed: distribution name to version; providers: those of the importable one (empty without any);
        threads: the default; conflict: a sentence when both distributions are there, else None. They write the same
        folder, so the one installed last wins and CUDA may vanish.
    """
    installed: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            log.debug("%s is not installed", name)
    providers: list[str] = []
    if installed:
        providers = list(import_onnxruntime().get_available_providers())
    conflict = None
    if len(installed) > 1:
        conflict = (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; run: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu  (or onnxruntime)"
        )
    return {"installed": installed, "providers": providers, "threads": default_threads(), "conflict": conflict}


def first_line(error: Exception) -> str:
    """What an error says, without the stack that some libraries put behind it."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""What is said of one system: rates, shares of the peaks, ratio to ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gplfast.bench.hardware import Peaks
    from gplfast.bench.harness import Timing


def described(timing: Timing, work: dict[str, float], peaks: Peaks, ours: float) -> dict[str, Any]:
    """One system's figures."""
    if "query_tokens" in timing.agreement:  # each generator writes queries of its own
        work = {**work, "tokens": work["queries"] * timing.agreement["query_tokens"]}
    rates = {f"{name}_per_second": amount / timing.median for name, amount in work.items()}
    kinds = {"float32": "flop", "int8": "flop", "read": "bytes", "gemm float32": "flop", "gemm bfloat16": "flop"}
    shares = {kind: peaks.share(kind, rates[f"{name}_per_second"]) for kind, name in kinds.items() if name in work}
    return {
        "seconds": timing.seconds,
        "median_seconds": timing.median,
        "spread": timing.spread,
        "time_over_gplfast": timing.median / ours,
        **rates,
        "share_of_peak": {kind: share for kind, share in shares.items() if share is not None},
        "extra_bytes": timing.extra_bytes,
        "setting": timing.setting,
        **timing.agreement,
    }

"""Benchmarks for users: search, dedup and margins on their shapes and their machine, beside what else is installed.

Every peer's result is compared with ours before anything is timed: names that differ by more than float32 rounding
are an error, and what is approximate by design (bfloat16) shows its recall instead. Then all systems take turns,
with the same number of threads, and medians are shown with their spread, the ratio to each peer and the share of
what the machine can do at most, which is measured in the same turns (`gplfast.bench.hardware`).
"""

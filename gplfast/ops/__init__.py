"""The compiled operations: exact search, near-duplicate removal, margins. The only importer of `_core` and `_cuda`.

Canonical score. The score of two rows is the dot product of the float32 or float16 values as stored, accumulated in
float64 in one fixed order and rounded once to float32; for cosine it is divided by the float64 norms before that
rounding. A zero row has cosine 0 with every row; a row with an infinity has none (NaN); a search never returns NaN.
Every function returns the same bits for any instruction set, number of threads and block size. Other libraries' float32
scores differ from these by about 1e-7 of |query| |document|, and so may their order of near ties.

Nothing is copied or converted silently: arrays must be C-contiguous and of the documented type. They may be
memory-mapped and larger than RAM, and are never modified. The GIL is released, and Ctrl-C works, while these run.
"""

from __future__ import annotations

from gplfast.ops.exact_search import Hits, Metric, merge_hits, search
from gplfast.ops.extension import _core, available_isas, available_threads, forced_isa, info, measure_peak
from gplfast.ops.gram_lists import Gram, gram
from gplfast.ops.index import Index
from gplfast.ops.margin_lists import Margins, margins
from gplfast.ops.near_duplicates import Dedup, dedup

__all__ = [
    "Dedup",
    "Gram",
    "Hits",
    "Index",
    "Margins",
    "Metric",
    "_core",
    "available_isas",
    "available_threads",
    "dedup",
    "forced_isa",
    "gram",
    "info",
    "margins",
    "measure_peak",
    "merge_hits",
    "search",
]

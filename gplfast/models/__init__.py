"""Models served by ONNX Runtime: query generator, cross-encoder, bi-encoder."""

from __future__ import annotations

from gplfast.models.bi_encoder import BiEncoder
from gplfast.models.cross_encoder import CrossEncoder
from gplfast.models.query_generator import QueryGenerator
from gplfast.models.resolve import resolve
from gplfast.models.sampling import Sampling

__all__ = ["BiEncoder", "CrossEncoder", "QueryGenerator", "Sampling", "resolve"]

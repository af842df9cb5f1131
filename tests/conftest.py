from __future__ import annotations

import os

import hypothesis
import pytest

from gplfast.ops import _core

hypothesis.settings.register_profile(
    "gplfast", deadline=None, derandomize=True, max_examples=int(os.environ.get("GPLFAST_EXAMPLES", "60"))
)
hypothesis.settings.load_profile("gplfast")

# Tiny models are not worth a trial of every runtime; tests/models/test_runtimes.py makes them.
os.environ["GPLFAST_PROVIDER"], os.environ["GPLFAST_PRECISION"] = "cpu", "fp32"

ISAS = _core.available_isas()


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that this machine has, forced for the test."""
    _core.force_isa(request.param)
    yield request.param
    _core.force_isa("")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Tiny models and a tiny judged corpus."""
    import tiny

    return tiny.world(tmp_path_factory)


@pytest.fixture
def cache(world, monkeypatch):
    """The tiny models' own cache in place of the user's."""
    monkeypatch.setenv("GPLFAST_CACHE", str(world.cache))

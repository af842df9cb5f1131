"""The integer kernels by themselves, AMX by its emulation: what a search cannot show, such as a tile set up wrongly."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from test_architecture import CSRC, ISA_FLAGS

from gplfast.ops import _core

TABLES = ["avx512_vnni", "avx512_vnni_narrow", "amx_int8"]


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    if "avx512_vnni" not in _core.available_isas():
        pytest.skip("needs a CPU with AVX-512 and VNNI")
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("int8_kernels")
    common = ["g++", "-std=c++20", "-O2", "-w", "-ffp-contract=off", "-DGPLFAST_EMULATE_AMX", f"-I{CSRC}"]
    objects = [folder / f"{isa}.o" for isa in TABLES]
    for isa, target in zip(TABLES, objects, strict=True):
        source = CSRC / "cpu" / f"kernels_{isa}.cpp"
        subprocess.run([*common, *ISA_FLAGS[isa], "-c", source, "-o", target], check=True)
    main = Path(__file__).with_name("int8_kernels.cpp")
    subprocess.run([*common, main, *objects, "-o", folder / "int8_kernels"], check=True)
    return folder / "int8_kernels"


@pytest.mark.parametrize("check", ["multiply", "find_candidates"])
@pytest.mark.parametrize("table", TABLES)
def test_kernel(program, table, check):
    assert subprocess.run([program, table, check], check=False).returncode == 0


@pytest.mark.parametrize("check", ["without_begin", "after_end"])
def test_tiles_need_their_configuration(program, check):
    assert subprocess.run([program, "amx_int8", check], check=False).returncode == -signal.SIGILL

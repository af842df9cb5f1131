"""The house rules of the design that a program can check: who imports whom, and what importing costs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gplfast"
CSRC = ROOT / "csrc"

# The design's layers [0] to [5], finer where a layer has an order inside.
ORDER = [
    ("errors",),  # [0]
    ("ranks",),
    ("preset_settings", "settings", "settings_file"),
    ("filter_settings", "loss_settings", "positive_settings"),
    ("config", "labelled_settings"),
    ("store",),  # [1]
    ("ops",),
    ("models", "mining"),  # [2]
    ("stages",),  # [3]
    ("preflight", "serving"),
    ("ask", "bench", "interop", "report"),  # [4]
    ("artifacts",),
    ("systems",),
    ("remining",),
    ("pipeline",),
    ("steps",),
    ("labelled",),
    ("exports",),
    ("flags", "info", "progress", "epilogs"),  # [5]
    ("cli",),
    ("__main__",),
]
LAYERS = {unit: level for level, units in enumerate(ORDER) for unit in units}
ONLY_IMPORTERS = {"gplfast._core": {"ops"}, "gplfast._cuda": {"ops"}, "onnxruntime": {"models"}}
HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "onnxruntime",
    "onnx",
    "pyarrow",
    "bm25s",
    "scipy",
    "datasets",
    "faiss",
    "numba",
    "matplotlib",
    "usearch",
    "ctranslate2",
}
TRAINING_ONLY = {"torch", "transformers", "sentence_transformers", "accelerate", "datasets"}


def modules():
    """(dotted name without the package, path) of every module but gplfast/__init__.py, which only re-exports."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        found.append((".".join(part for part in parts if part != "__init__"), path))
    return found


def imports_of(path):
    """(dotted name, line, whether it runs when the module is imported) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_type_checking(block)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in lazy
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it out"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, id(node) not in lazy


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def is_or_is_in(name, package):
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_lower_layers_only(module, path):
    unit = module.split(".")[0]
    assert unit in LAYERS, f"{module} is in no layer: add it to ORDER and to the design"
    for name, line, _ in imports_of(path):
        where = f"{path.relative_to(ROOT)}:{line}: "
        for package, importers in ONLY_IMPORTERS.items():
            assert not is_or_is_in(name, package) or unit in importers, f"{where}only {importers} may import {package}"
        if not is_or_is_in(name, "gplfast"):
            continue
        target = name.split(".")[1]
        if target not in LAYERS:
            continue  # gplfast's own lazy names
        if target == unit:
            siblings = unit == "stages" and name.split(".")[2] != module.split(".")[-1] and module != "stages"
            assert not siblings, f"{where}stages never import stages"
            continue
        assert LAYERS[target] < LAYERS[unit], (
            f"{where}gplfast.{module} imports gplfast.{target}, which is no lower layer; see ORDER"
        )


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_training_libraries_are_imported_lazily(module, path):
    for name, line, is_eager in imports_of(path):
        root = name.split(".")[0]
        assert not (root in TRAINING_ONLY and is_eager), (
            f"{path}:{line}: import {root} inside the function that needs it"
        )


@pytest.mark.parametrize(
    "code",
    [
        "import gplfast",
        "import gplfast; gplfast.errors, dir(gplfast)",
        "import contextlib, gplfast.cli\nwith contextlib.suppress(SystemExit): gplfast.cli.main(['--help'])",
        "import gplfast; gplfast.search",
    ],
    ids=["import", "dir", "help", "search"],
)
def test_importing_stays_light(code):
    """The design wants `import gplfast` and `gplfast --help` under 0.3 s; what costs more is named here instead."""
    code += f"\nimport sys; print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr.strip().splitlines()[-1] == "[]"


def test_public_names():
    import gplfast

    assert set(gplfast.__all__) <= set(dir(gplfast))
    assert re.fullmatch(r"\d+\.\d+\.\d+", gplfast.__version__)
    with pytest.raises(AttributeError, match="module 'gplfast' has no attribute 'seach'"):
        _ = gplfast.seach


def test_no_modules_without_a_subject():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


CSRC_MAY_INCLUDE = {
    "common": {"common"},
    "cpu": {"cpu", "common"},
    "ops": {"ops", "cpu", "common"},
    "cuda": {"cuda", "common"},
    "bindings": {"bindings", "ops", "cpu", "common", "cuda"},
}
SOURCES = [path for path in sorted(CSRC.rglob("*")) if path.suffix in {".h", ".cpp", ".cu"}]


def includes_of(path):
    return re.findall(r'^#include ([<"][^>"]+[>"])', path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_csrc_includes_lower_layers_only(path):
    layer = path.relative_to(CSRC).parts[0]
    for include in includes_of(path):
        if include.startswith('"'):
            assert include[1:].split("/")[0] in CSRC_MAY_INCLUDE[layer], f"{path}: {include}"
        assert "pybind11" not in include or layer == "bindings", f"{path}: only bindings/ includes pybind11"
        assert "Python.h" not in include, f"{path}: pybind11 includes Python.h"


CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
ISA_FLAGS = {isa: flags.split() for isa, flags in re.findall(r"^\s*gplfast_isa\((\w+) ?([^)]*)\)", CMAKE, re.MULTILINE)}


def test_every_isa_file_is_built():
    assert {path.stem.removeprefix("kernels_") for path in (CSRC / "cpu").glob("kernels_*.cpp")} == set(ISA_FLAGS)


@pytest.mark.parametrize("isa", ISA_FLAGS)
def test_isa_files_include_plain_headers_only(isa):
    plain = {"<immintrin.h>", '"cpu/kernels.h"'}
    shared = {'"cpu/int8_avx512.h"', '"cpu/amx_emulation.h"'}
    assert set(includes_of(CSRC / "cpu" / f"kernels_{isa}.cpp")) <= plain | shared
    for name in shared:
        assert set(includes_of(CSRC / name.strip('"'))) <= plain
    assert set(includes_of(CSRC / "cpu" / "kernels.h")) <= {"<cstddef>", "<cstdint>"}


@pytest.mark.parametrize("isa", ISA_FLAGS)
@pytest.mark.parametrize("optimisation", ["-O0", "-O3", "-O0 -DGPLFAST_EMULATE_AMX"])
def test_isa_objects_export_their_table_only(isa, optimisation, tmp_path):
    """A weak inline function compiled for AVX-512 may be the copy that the linker keeps for every CPU."""
    if not shutil.which("g++") or not shutil.which("nm"):
        pytest.skip("needs g++ and nm")
    target = tmp_path / "kernels.o"
    source = CSRC / "cpu" / f"kernels_{isa}.cpp"
    flags = ["-std=c++20", "-w", "-fPIC", *optimisation.split(), f"-I{CSRC}", *ISA_FLAGS[isa]]
    build = subprocess.run(["g++", *flags, "-c", source, "-o", target], capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    listing = subprocess.run(["nm", "-C", target], capture_output=True, text=True, check=True).stdout
    symbols = [line.split(maxsplit=2)[-2:] for line in listing.splitlines()]
    visible = [(kind, name) for kind, name in symbols if kind not in "tbdrn" and kind != "U"]
    assert [name for _, name in visible] == [f"gplfast::cpu::kernels_{isa}"], visible

"""What holds the code together: one-way imports, short files, notebooks that define nothing, valid parameter files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from places import REPOSITORY

import carblib
from carblib.base.errors import CarbError
from carblib.params import load_params

PACKAGE = REPOSITORY / "carblib"
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
PARAMETERS = sorted((REPOSITORY / "params").glob("*.yaml"))
# A file imports from its own folder and from what stands left of it; "" are the paper's files, right in carblib/.
ORDER = ["base", "", "data", "scenes", "training", "stages", "results", "figures", "explore", "run", "__main__"]


def room(module: str) -> str:
    """The folder of a module of carblib: data of carblib.data.readers, "" of carblib.loss."""
    parts = module.split(".")[1:]
    return parts[0] if parts and ((PACKAGE / parts[0]).is_dir() or parts[0] == "__main__") else ""


def imports(source: str) -> set[str]:
    """The folders of carblib that a source imports from, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used"
            module = node.module or ""
            if module == "carblib":
                found |= {room(f"carblib.{alias.name}") for alias in node.names if not alias.name.startswith("__")}
            elif module.startswith("carblib."):
                found.add(room(module))
        elif isinstance(node, ast.Import):
            found |= {room(alias.name) for alias in node.names if alias.name.startswith("carblib")}
    return found


def sources() -> Iterator[tuple[Path, str]]:
    """All code of the package and of the notebooks."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.read_text("utf-8")
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                yield path, cell.source


def test_every_name_that_is_imported_exists() -> None:
    """Also what a command imports only when it runs."""
    for path, source in sources():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("carblib"):
                for name in (alias.name for alias in node.names):
                    there = hasattr(import_module(node.module), name) or find_spec(f"{node.module}.{name}")
                    assert there, f"{path}:{node.lineno}: {node.module} has no {name}"


def test_imports_go_one_way() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        if module == "carblib.__init__":
            continue  # the public face
        own = room(module)
        wrong = imports(path.read_text("utf-8")) - set(ORDER[: ORDER.index(own) + 1])
        assert not wrong, f"{module} imports from {sorted(wrong)}, right of it"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_take_parameters_and_define_nothing(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0].cell_type == "code"
    for node in ast.parse(tagged[0].source).body:
        assert isinstance(node, ast.Assign | ast.AnnAssign), "literals only"
        ast.literal_eval(node.value)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # A line of IPython's own (%matplotlib) is no Python.
            plain = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
            kinds = [type(node) for node in ast.walk(ast.parse(plain))]
            assert not {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef} & set(kinds)


def test_there_are_notebooks_and_parameters_to_check() -> None:
    assert {"01_dataset_analysis", "05_ablations"} <= {path.stem for path in NOTEBOOKS}
    assert {"demo", "scenes_full", "camvid", "camvid_small", "cityscapes", "wilddash2", "folder"} <= {
        path.stem for path in PARAMETERS
    }


@pytest.mark.parametrize("path", PARAMETERS, ids=lambda path: path.stem)
def test_parameter_files_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"\$\{?(\w+)", path.read_text("utf-8")):
        monkeypatch.setenv(name, "/somewhere")
    params = load_params(path)
    assert len(params.class_set) > 1 and params.data_root.is_absolute()
    for variant in (*params.variants, *params.ablation_variants):
        params.variant(variant)
    with pytest.raises(CarbError, match="did you mean 'iterations'"):
        load_params(path, {"iteratoins": 3})


def test_version_is_the_package_s() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    (version,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    assert version == carblib.__version__


def test_the_map_names_every_file() -> None:
    words = set(re.findall(r"\w+", (PACKAGE / "README.md").read_text("utf-8")))
    stems = {path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__"} - {"__main__"}
    unnamed = {stem for stem in stems if stem not in words and not stem.startswith("pretrain_")}
    assert not unnamed


def test_conda_and_pip_install_the_same() -> None:
    extras = re.search(r"^EXTRAS \?= (.+)$", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)[1]
    assert f"- -e .[{extras}]\n" in (REPOSITORY / "environment.yml").read_text("utf-8")

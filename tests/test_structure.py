"""What holds the code together: one-way imports, short files, notebooks that define nothing, valid parameter files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest

import carblib
from carblib.errors import CarbError
from carblib.params import load_params

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "carblib"
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
PARAMETERS = sorted((REPOSITORY / "params").glob("*.yaml"))
# From low to high, in the reading order of the paper: a module imports only modules that stand before it.
ORDER = """
    errors interrupts progress files classes params
    scene_paint scene_objects scene_street scene_vehicles scene_layout scene_render scenes
    label_maps npy_labels readers labels mask_folders transforms
    clip_models prompts masker_strategies masker views
    network checkpoints loss data infer crf pseudo_masks
    objects evaluate reliability cache monitor training_log training_state train predict ablations analysis
    results style figures_data figures_images figures_scores figures_ablations figures_curves
    figures_run_data figures_run_scores figures_run_images figures_run_training figures_run
    tables_form tables figures mask_quality findings report_checks report notebook headless batch
    explore explore_order explore_widgets explore_views explore_panel
    pretrain_clip pretrain_backbone
""".split()


def imports(source: str, modules: set[str]) -> set[str]:
    """The modules of carblib that a source imports, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "carblib":
            found |= {alias.name for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("carblib."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used"
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("carblib.")}
    return found


def test_imports_go_one_way() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert len(ORDER) == len(set(ORDER))
    assert modules == set(ORDER), "list every module, from low to high"
    for place, module in enumerate(ORDER):
        wrong = imports((PACKAGE / f"{module}.py").read_text("utf-8"), modules) - set(ORDER[:place])
        assert not wrong, f"{module} imports {sorted(wrong)}, which stand above it"


def test_imports_are_found_in_every_form() -> None:
    source = "import carblib.a\nfrom carblib import b, __version__\ndef f():\n    from carblib.c import x\nimport torch"
    assert imports(source, {"a", "b", "c", "d"}) == {"a", "b", "c"}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


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

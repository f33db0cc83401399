"""What notebooks import is public: names of fedreft_lib and fedreft_lib.data, the workbook, and a few named modules."""

import ast
import gc

import nbformat
import pytest

import fedreft_lib
from fedreft_lib import data
from fedreft_lib.batch.jobs import PROJECT

OPEN = ("fedreft_lib", "fedreft_lib.data", "fedreft_lib.workbook", "fedreft_lib.errors", "fedreft_lib.flower")
# What a notebook takes apart before the reader's eyes.
SHOWN = {
    "03_arithmetic": {"fedreft_lib.data.arithmetic_sources"},
    "04_instruction": {"fedreft_lib.model", "fedreft_lib.model.architectures"},
    "05_glue": {"fedreft_lib.workbook.ledger"},
    "06_mixing_ablation": {"fedreft_lib.federation.dealing"},
    "07_methods": {"fedreft_lib.methods"},
    "09_results": {"fedreft_lib.config"},
    "10_beyond_one_machine": {
        "fedreft_lib.batch.jobs", "fedreft_lib.flower.client_files", "fedreft_lib.flower.levels",
        "fedreft_lib.flower.simulation",
    },
    "11_the_field": {"fedreft_lib.methods", "fedreft_lib.methods.kronecker", "fedreft_lib.methods.lora"},
}  # fmt: skip
NOTEBOOKS = sorted((PROJECT / "notebooks").rglob("[!.]*.ipynb"))


@pytest.mark.parametrize("module", [fedreft_lib, data], ids=lambda module: module.__name__)
def test_every_public_name_is_there(module):
    assert module.__all__ == sorted(set(module.__all__), key=module.__all__.index)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize("collecting", [True, False])
def test_an_import_leaves_the_collection_of_garbage_as_it_was(collecting):
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        fedreft_lib.imported("fedreft_lib.core.mixing")
        with pytest.raises(ModuleNotFoundError):
            fedreft_lib.imported("fedreft_lib.no_such_module")
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()


def test_what_is_asked_for_again_keeps_no_garbage():
    assert fedreft_lib.mix is not None
    before, fresh = gc.get_freeze_count(), [[] for _ in range(1000)]  # what was frozen earlier may go at any time
    assert [fedreft_lib.mix for _ in range(3)] and gc.get_freeze_count() <= before
    assert fedreft_lib.imported("fedreft_lib.core.mixing").mix is fedreft_lib.mix and gc.get_freeze_count() <= before
    gc.freeze()
    assert gc.get_freeze_count() >= before + len(fresh) / 2  # which one freeze more would have shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_what_is_public(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    nodes = [node for source in cells for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    found = {node.module for node in nodes if node.module.startswith("fedreft_lib")}
    assert found - {*OPEN} == SHOWN.get(path.stem, set())

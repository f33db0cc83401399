"""A notebook that runs again in its kernel, a parameter changed in between, shows what a fresh kernel shows."""

import re
import shutil
import symtable

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from nbclient import NotebookClient

from fedreft_lib import RunConfig, run
from fedreft_lib.batch.execution import Kernels, ThisPython
from fedreft_lib.batch.jobs import PROJECT, ordered_notebooks
from fedreft_lib.config.notebook_parameters import assignments

NOTEBOOKS = {path.stem: path for path in ordered_notebooks(PROJECT / "notebooks")}
SMALL = {"train_size": 8, "held_out_size": 4, "test_size": 6, "rounds": 1, "local_steps": 1}
TOY = {"backbone": "tiny-llama", "source": "synthetic", "layers": "2-3", "experiment": "02_commonsense", **SMALL}
TINY = {**SMALL, "seeds": [0]}
TRIED = {  # what makes the profile smoke smaller still, and the parameters that a reader changes
    "00_tour": ({"steps": 2, "new_tokens": 4}, {"rank": 3}),
    "01_data_partitioning": ({}, {"seed": 1}),
    "02_commonsense": ({**TINY, "setups": ["distinct"]}, {"lr": 0.01}),
    "03_arithmetic": ({**TINY, "setups": ["distinct"], "max_new_tokens": 4}, {"lr": 0.01}),
    "04_instruction": ({"train_size": 8, "rounds": 1, "local_steps": 1, "seeds": [0]}, {"lr": 0.01}),
    "05_glue": ({"rounds": 1, "local_steps": 1, "glue_tasks": ["sst2"], "per_task": {}}, {"lr": 0.02}),
    "06_mixing_ablation": (
        {"rounds": 1, "seeds": [0], "map_seeds": [0], "ablations": [["rank", {"rank": 1}, {"rank": 4}]]},
        {"layers": "1-2", "map_agreements": [1.0, 0.6]},  # a parameter for each half
    ),
    "07_methods": ({**TINY, "contestants": ["fedreft loreft", "fedit lora"], "tried_lrs": []}, {"rank": 2}),
    "08_robustness": ({"attacks": ["sign_flip"], "rules": ["mean", "geometric_median"]}, {"lr": 0.01}),
    "09_results": ({}, {"output_dir": "other"}),
    "10_beyond_one_machine": ({"methods": ["fedreft"]}, {"rank": 3}),
    "11_the_field": ({"rounds": 1, "methods": ["local", "fedavg"]}, {"lr": 0.02}),
}
DIFFERS = [  # between two fresh kernels, too: ids, and what a clock decides
    r'data-fedreft="[0-9a-f]+"|mount\("[0-9a-f]+"',
    r"\bT_[0-9a-f]{5}",  # pandas' styled tables
    r"\d+ s(?=; orthonormality)",  # 00, the lesson
    r"(?<=the disk holds round )\d",  # 08 kills a run
    r"Not all texts fit into max_length=\d+: .*\n",  # a notice of a kernel that reads the questions
]
WITHOUT_FLOWER = "import sys; sys.modules['flwr'] = None"  # its processes would cost more than all of the rest


class Kernel(NotebookClient):
    """A kernel that runs whole notebooks, one after another, as JupyterLab does."""

    def __init__(self, folder):
        manager = type("OfThisTest", (ThisPython,), {"kernels": Kernels(folder)})
        place = {"metadata": {"path": str(folder)}}
        super().__init__(
            nbformat.v4.new_notebook(),
            kernel_manager_class=manager,
            resources=place,
            iopub_timeout=60,
            coalesce_streams=True,
        )

    def shows(self, notebook, parameters):
        """Runs all cells once these parameters are written in the notebook's cell; returns each cell's outputs."""
        self.nb = nbformat.read(notebook, as_version=4)
        self.reset_execution_trackers()
        for place, cell in enumerate(self.nb.cells):
            if "parameters" in cell.metadata.get("tags", []):
                values = {**assignments(cell.source), **parameters}
                cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
            if cell.cell_type == "code":
                self.execute_cell(cell, place)
        return {place: shown(cell) for place, cell in enumerate(self.nb.cells)}

    def leave(self, source):
        """Runs a cell that is in no notebook."""
        self.nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        self.execute_cell(self.nb.cells[0], 0)


def shown(cell):
    """A cell's outputs, without what differs from one kernel to the next.

    Progress bars and stderr tell of the work: a kernel that has read the questions does not read them again.
    """
    texts = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {"text/plain": output.get("text")})
        text = data.get("text/html", data.get("text/plain"))  # a table's plain text is the same table
        if not (output.get("name") == "stderr" or re.search(r"\d%\|", text)):
            texts.append((re.sub("|".join(DIFFERS), "", without_seconds(text)), data.get("image/png")))
    return [each for each in texts if any(each)]


def without_seconds(text):
    """A table without its columns of seconds. Columns are counted from the right: a row may lack cells on the left."""
    if "seconds" not in text or "<table" not in text:
        return text
    page = BeautifulSoup(text, "html.parser")
    for table in page.find_all("table"):
        names = [cell.text for cell in table.tr.find_all("th")]
        for place in (place for place, name in enumerate(names) if "seconds" in name):
            for row in table.tbody.find_all("tr"):
                row.find_all(["th", "td"])[place - len(names)].clear()
    return str(page)


def prepare(name, folder):
    """What a notebook finds where it runs: notebook 09 reads runs."""
    folder.mkdir()
    if name == "09_results":
        for output_dir, rank in (("out", 2), ("other", 3)):
            for method in ("local", "fedavg", "fedreft"):
                config = RunConfig(**TOY, rank=rank, method=method)
                run(config, folder / output_dir / "runs" / config.run_id, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_that_runs_again_with_a_parameter_changed_shows_what_a_fresh_kernel_shows(name, tmp_path):
    smaller, changes = TRIED[name]
    profile = yaml.safe_load((PROJECT / "params" / "smoke" / f"{name}.yaml").read_text())
    first = {**profile, **smaller, "output_dir": "out"}
    prepare(name, tmp_path / "fresh")
    shutil.copytree(tmp_path / "fresh", tmp_path / "used")
    fresh, used = Kernel(tmp_path / "fresh"), Kernel(tmp_path / "used")
    with fresh.setup_kernel():
        fresh.leave(WITHOUT_FLOWER)
        expected = fresh.shows(NOTEBOOKS[name], {**first, **changes})
    with used.setup_kernel():
        used.leave(WITHOUT_FLOWER)
        before = used.shows(NOTEBOOKS[name], first)
        used.leave("x = 1; seed = 5; setup = 'mixed'; question = 'why?'; lr = 7.0")
        found = used.shows(NOTEBOOKS[name], {**first, **changes})
    assert [place for place in expected if found[place] != expected[place]] == []
    assert found != before


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_later_cell_sets_a_parameter_so_the_cell_after_the_parameters_can_run_again_alone(name):
    cells = [c for c in nbformat.read(NOTEBOOKS[name], as_version=4).cells if c.cell_type == "code"]
    own = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    profiles = [yaml.safe_load(path.read_text()) for path in (PROJECT / "params").glob(f"*/{name}.yaml")]
    parameters = {name for values in (*profiles, assignments(own[0].source)) for name in values}
    for cell in cells:
        symbols = symtable.symtable(cell.source, name, "exec").get_symbols()
        assert cell in own or not {s.get_name() for s in symbols if s.is_assigned()} & parameters, cell.source

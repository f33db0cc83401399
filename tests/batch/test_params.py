"""The profiles' parameter files: every name and value is valid, and the paper's settings have the paper's counts."""

import math

import pytest

from fedreft_lib import RunConfig
from fedreft_lib.batch.jobs import parameters_of, plan, profiles
from fedreft_lib.federation import assembly
from fedreft_lib.federation.rounds import trained_names
from fedreft_lib.model.architectures import ARCHITECTURES

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA3B, LLAMA7B, LLAMA8B = "meta-llama/Llama-3.2-3B", "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B"


def counts(config: RunConfig) -> tuple[int, int]:
    """(numbers that a client trains, numbers of its head), from the architecture alone."""
    layout = assembly.planned(config).layout
    sizes = {name: math.prod(shape) for name, shape in layout.spec.shapes}
    return sum(sizes[name] for name in trained_names(layout, config)), sum(sizes[name] for name in layout.head_names)


def of_profile(profile: str) -> dict[str, RunConfig]:
    """The RunConfig that each notebook of a profile starts from."""
    known, found = RunConfig.model_fields, {}
    for job in plan(profile):
        merged = {**parameters_of(job.notebook), **job.parameters}
        setup = {"setup": merged["setups"][0]} if merged.get("setups") else {}
        fields = {name: value for name, value in merged.items() if name in known}
        found[job.name] = RunConfig(**setup, **fields)
    return found


@pytest.mark.parametrize("profile", profiles())
def test_every_profile_names_parameters_and_values_that_exist(profile):
    assert of_profile(profile)


def test_the_papers_profile_runs_on_hub_backbones_that_are_known():
    with_backbone = {name: config for name, config in of_profile("paper").items() if name != "09_results"}
    assert len(with_backbone) >= 4
    for name, config in with_backbone.items():
        assert config.backbone in ARCHITECTURES and config.source == "hub", name


@pytest.mark.parametrize(
    ("notebook", "trained", "head"),
    [
        ("02_commonsense", 11_011_840, 0),  # printed 11.01 M
        ("03_arithmetic", 4_194_816, 0),  # 4.19 M
        ("06_mixing_ablation", 4_194_816, 0),  # 4.70 M printed, which no integer rank gives
        ("04_instruction", 8 * (2 * 4 * 4096 + 4), 0),  # ReFT: four layers, prefix and suffix untied, rank 4
        ("05_glue", 49_176, 1_051_650),  # 0.053 M printed, see the audit; RoBERTa-large's head with two classes
    ],
)
def test_the_papers_settings_train_as_many_numbers_as_are_printed(notebook, trained, head):
    assert counts(of_profile("paper")[notebook]) == (trained, head)


@pytest.mark.parametrize(
    ("fields", "trained"),
    [
        ({"backbone": LLAMA3B, "rank": 8}, 2_752_960),  # 2.75 M
        ({"backbone": LLAMA7B, "rank": 8, "tied": True}, 2_097_408),
        ({"backbone": LLAMA3B, "rank": 32, "method": "fedit", "targets": SEVEN}, 48_627_712),  # 48.63 M
        ({"backbone": LLAMA3B, "rank": 32, "method": "flora", "targets": SEVEN}, 48_627_712),
        ({"backbone": LLAMA3B, "rank": 120, "method": "fedsb", "targets": SEVEN}, 2_822_400),  # 2.83 M printed
        ({"backbone": LLAMA8B, "rank": 8}, 4_194_816),
    ],
)
def test_other_rows_of_the_papers_tables_have_their_counts(fields, trained):
    lora = {"intervention": "lora"} if "targets" in fields else {}
    assert counts(RunConfig(source="hub", **fields, **lora)) == (trained, 0)


@pytest.mark.parametrize(
    ("fields", "trained"),
    [
        ({"method": "fedreft", "rank": 1, "positions": "f3", "backbone": "FacebookAI/roberta-base"}, 18_444),
        ({"method": "fedsa", "rank": 8, "intervention": "lora"}, 786_432),
        ({"method": "ffa", "rank": 8, "intervention": "lora"}, 393_216),
        ({"method": "feddpa", "rank": 8, "intervention": "lora"}, 1_572_864),
    ],
)
def test_the_rows_of_table_5_have_their_counts_without_the_head(fields, trained):
    config = RunConfig(**{"backbone": "FacebookAI/roberta-large", **fields}, benchmark="glue", source="hub")
    assert counts(config)[0] == trained


def test_what_a_hub_run_needs_is_said_before_anything_is_loaded(monkeypatch, capsys):
    def load(*args, **kwargs):
        raise LookupError("loaded")

    monkeypatch.setattr(assembly, "shared_backbone", load)
    assembly._announce.cache_clear()
    with pytest.raises(LookupError):
        assembly.assemble(RunConfig(backbone=LLAMA3B, dtype="bfloat16", source="hub"))
    assert f"{LLAMA3B} (bfloat16, auto) needs up to" in capsys.readouterr().out

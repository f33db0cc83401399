"""The audit's numbers against arithmetic done by hand here, and its demonstrations against independent ones."""

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedreft_lib.workbook import audit


@pytest.fixture(scope="module")
def found() -> list[audit.Finding]:
    return audit.findings()


@pytest.fixture(scope="module")
def computed(found) -> dict[int, pd.DataFrame]:
    return {finding.number: finding.computed for finding in found}


def test_findings_are_numbered_in_order_and_the_table_has_them_all(found):
    table = audit.table(found)
    assert table["number"].tolist() == list(range(1, 12)) and table["title"].is_unique
    assert (table["verdict"].str.len() > 100).all()


def test_glue_means_are_the_means_of_the_six_cells(computed):
    fedreft = (88.86 + 89.61 + 95.17 + 94.52 + 86.57 + 87.80) / 6
    fedsa = (90.18 + 88.88 + 96.00 + 92.13 + 87.48 + 87.93) / 6
    assert fedreft < fedsa
    assert computed[1].loc["FedReFT+", "recomputed"] == pytest.approx(fedreft)
    assert computed[1].loc["FedSA-LoRA", "recomputed"] == pytest.approx(fedsa)
    assert computed[1]["difference"].abs().round(2).tolist() == [0.0, 0.0, 0.0, 0.04]


def test_parameter_ratios_with_and_without_heads(computed):
    head = 1024 * 1024 + 1024 + 1024 * 2 + 2
    loreft = 24 * (2 * 1024 + 1)
    lora = 24 * 2 * 8 * (1024 + 1024)
    table = computed[2]
    assert table["without head"].to_dict() == {
        "FFA-LoRA": lora // 2, "FedSA-LoRA": lora, "FedDPA-LoRA": 2 * lora, "FedReFT+": loreft,
    }  # fmt: skip
    assert (table["with head"] - table["without head"] == head).all()
    assert table["ratio, printed"].round(1).tolist() == [27.2, 34.5, 49.4, 1.0]
    assert table["ratio, without head"].round(1).tolist() == [8.0, 16.0, 32.0, 1.0]
    assert table["ratio, with head"].round(1).tolist() == [1.3, 1.7, 2.4, 1.0]
    cut = (table["with head"].iloc[:3] // 10_000) / 100  # millions, the third place cut off
    assert cut.tolist() == table["printed (M)"].iloc[:3].tolist()


def test_0_053_million_is_the_share_of_the_base_model_times_the_large_one(computed):
    assert computed[3].iloc[:, 0].tolist() == [18_444, 49_176]
    assert round(0.015e-2 * 355, 3) == 0.053 == round(computed[3].iloc[1, 3], 3)
    assert computed[3]["share (%)"].round(3).tolist() == [0.015, 0.014]


def test_three_equal_clients_make_the_two_rules_one_and_only_they(computed):
    gap = computed[4].iloc[:, 0]
    assert gap["3 clients"] < 1e-12
    assert (gap.drop("3 clients") > 0.01).all()


def test_every_client_must_send(computed):
    table = computed[5]
    assert table.iloc[:, 0].tolist() == [3, 4, 8]
    assert table.loc[3].tolist()[1:] == pytest.approx([3 * 4.70, 2 * 4.70])


def test_shares_of_the_backbones(computed):
    table = computed[6]
    seven = 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
    eight = 2 * 128256 * 4096 + 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 4096
    assert (seven, eight) == (6_738_415_616, 8_030_261_248)
    row = table.loc["FedReFT+"]
    assert row["share of LLaMA-2-7B (%)"] == pytest.approx(419e6 / seven)
    assert row["share of LLaMA-3-8B (%)"] == pytest.approx(419e6 / eight)
    assert [round(row.iloc[3], 4), round(row.iloc[4], 4)] == [0.0622, 0.0522]
    assert table["implied backbone (10^9)"].round(2).tolist() == [8.0, 8.0, 6.74]


def test_4_70_million_is_no_rank_8_count_and_30_40_million_too_large_for_one(computed):
    counts = computed[7]["parameters"].tolist()
    assert counts[2:4] == [32 * 2 * (2 * 8 * 4096 + 8), 32 * 2 * (2 * 9 * 4096 + 9)]
    assert counts[:2] == [counts[2] // 2, counts[3]]
    query_value = 32 * 8 * ((4096 + 4096) + (4096 + 1024))
    rest = 32 * 8 * ((4096 + 1024) + (4096 + 4096) + 3 * (4096 + 14336))
    assert counts[4:] == [query_value, query_value + rest] and query_value + rest < 30.40e6
    assert "41 sites at rank 14" in audit.counts_without_a_configuration().verdict


def test_margins_on_commonsense(computed):
    table = computed[8].round(2)
    assert table.loc[("FLoRA", 32)].tolist()[2:] == [2.61, 22.08, 3.17, 88.42]
    assert table.loc[("Fed-SB", 120)].tolist()[2:] == [-0.56, 0.26, 0.0, 1.03]
    assert f"{28 * 7 * 120**2:,}" in audit.commonsense_margins().verdict


def test_protocols_name_every_system_of_the_tables(computed):
    assert computed[9].shape == (6, 4) and (computed[9] != "").all().all()


def test_ratios_behind_the_abstracts(computed):
    ratios = computed[10]["ratio"]
    assert len(ratios) == 4 * 2 + 3 + 2
    assert [ratios.min(), ratios.max()] == pytest.approx([2.83 / 11.01, 243.15 / 2.75])
    assert sum(0.5 <= ratio <= 49.5 for ratio in ratios) == 11
    assert ratios.round(2).isin([7.26, 8.84]).sum() == 2 == sum(6.5 <= ratio <= 15.5 for ratio in ratios)


def test_the_last_block_answers_to_the_last_prompt_token_alone(computed):
    norms = computed[11]
    assert (norms.iloc[-1, :-1] == 0).all()  # exactly
    assert (norms.iloc[:-1] > 0).all().all() and norms.iloc[-1, -1] > 0


def test_gradients_are_finite_differences_of_the_loss():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    prompt, answer, step = 4, 2, 1e-2  # not smaller: LLaMA's norms compute in float32
    found = audit.prompt_gradients(model, prompt, answer)
    ids = torch.randint(32, (1, prompt + answer), generator=torch.Generator().manual_seed(0))

    def loss(layer: int, position: int, coordinate: int, size: float) -> float:
        def hook(module, args, output):
            (output[0] if isinstance(output, tuple) else output)[0, position, coordinate] += size

        handle = model.model.layers[layer].register_forward_hook(hook)
        try:
            logits = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            return -float(sum(logits[t - 1, ids[0, t]] for t in range(prompt, prompt + answer))) / answer
        finally:
            handle.remove()

    for place in ((0, 0, 3), (0, 3, 5), (1, 1, 2), (1, 3, 7)):
        slope = (loss(*place, step) - loss(*place, -step)) / (2 * step)
        assert float(found[place]) == pytest.approx(slope, rel=1e-2, abs=1e-5)


def test_the_demonstration_leaves_torchs_randomness_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    audit.last_prefix_site()
    audit.three_clients()
    assert torch.equal(torch.get_rng_state(), before)

"""Sizes are exact without a download: parameters and trainable numbers are the published ones, memory is bounded."""

from itertools import combinations

import pytest
import torch
from transformers import GPT2Config

from fedreft_lib.errors import ConfigError, FedReFTError
from fedreft_lib.model import architectures as module
from fedreft_lib.model.architectures import (
    ARCHITECTURES,
    count_parameters,
    empty_model,
    fedsb_params,
    fit,
    free_memory,
    linear_shapes,
    lora_params,
    loreft_params,
    memory_estimate,
    skeleton,
)
from fedreft_lib.model.backbone import load_backbone

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LLAMA_3B, LLAMA_8B = "meta-llama/Llama-3.2-3B", "meta-llama/Meta-Llama-3-8B"
LLAMA_7B, ROBERTA = "meta-llama/Llama-2-7b-hf", "FacebookAI/roberta-large"
CPU = torch.device("cpu")


# Totals of the checkpoints' own tensors, as their hub pages give them: 3.21 B, 8.03 B, 6.74 B, 13.0 B, 125 M, 355 M.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        (LLAMA_3B, 3_212_749_824),
        (LLAMA_8B, 8_030_261_248),
        (LLAMA_7B, 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("yahma/llama-7b-hf", 6_738_415_616),
        ("yahma/llama-13b-hf", 13_015_864_320),
        ("FacebookAI/roberta-base", 124_645_632),
        (ROBERTA, 355_359_744),
    ],
)
def test_a_skeleton_has_the_published_number_of_parameters_and_no_memory(name, published):
    model = skeleton(name)
    assert count_parameters(model) == published
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-roberta"])
def test_an_empty_model_has_the_tensors_of_the_real_one(name):
    real = load_backbone(name, device="cpu").model
    before = real.config.to_dict()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    empty = empty_model(real.config)
    assert torch.equal(torch.rand(3), expected)  # nothing was drawn
    assert real.config.to_dict() == before
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items() if "pooler" not in name}
    assert shapes == {name: tensor.shape for name, tensor in real.state_dict().items()}


def test_a_name_that_is_not_in_the_table_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'meta-llama/Llama-3.2-3b', did you mean 'meta-llama/Llama-3.2-3B'?"):
        skeleton("meta-llama/Llama-3.2-3b")


# --- counts -----------------------------------------------------------------------------------------------------------


def millions(count):
    return f"{count / 1e6:.2f}"


def test_trainable_numbers_of_loreft_are_the_published_ones():
    assert loreft_params(skeleton("FacebookAI/roberta-base"), rank=1, groups=1) == 18_444
    assert loreft_params(skeleton(ROBERTA), rank=1, groups=1) == 49_176
    assert loreft_params(skeleton(LLAMA_7B), rank=8, groups=1) == 2_097_408
    assert loreft_params(skeleton(LLAMA_7B), rank=8, groups=2) == 4_194_816
    assert millions(loreft_params(skeleton(LLAMA_8B), rank=8, groups=2)) == "4.19"
    assert millions(loreft_params(skeleton(LLAMA_3B), rank=8, groups=2)) == "2.75"
    assert millions(loreft_params(skeleton(LLAMA_3B), rank=32, groups=2)) == "11.01"
    # Instruction tuning: four layers, rank 4, untied.
    assert loreft_params(skeleton(LLAMA_7B), rank=4, groups=2, layers=4) == 4 * 2 * (2 * 4 * 4096 + 4)


def test_trainable_numbers_of_the_baselines_are_the_published_ones():
    llama, roberta = skeleton(LLAMA_3B), skeleton(ROBERTA)
    a, b = lora_params(llama, 32, LINEARS)
    assert millions(a + b) == "48.63"  # FedIT
    assert millions(5 * (a + b)) == "243.14"  # FLoRA with 5 clients; printed 243.15, which is 5 * 48.63
    assert fedsb_params(llama, 120, LINEARS) == 2_822_400
    a, b = lora_params(roberta, 8, ("query", "value"))
    assert (a + b, b, 2 * (a + b)) == (786_432, 393_216, 1_572_864)  # FedSA, FFA, FedDPA
    head = 1024 * 1024 + 1024 + 2 * 1024 + 2
    assert [millions(count + head) for count in (a + b, b, 2 * (a + b))] == ["1.84", "1.44", "2.62"]  # printed: 1.83


def test_some_published_counts_follow_from_no_architecture():
    """What the ledger says of them is computed here: see the audit of parameter counts."""
    small, middle, large = skeleton(LLAMA_3B), skeleton(LLAMA_7B), skeleton(LLAMA_8B)
    a, b = lora_params(small, 32, LINEARS)
    assert (millions(a), millions(b), millions((a + b) / 2)) == ("23.86", "24.77", "24.31")  # FFA prints 24.31
    ranks = {millions(loreft_params(middle, rank, groups)) for rank in range(1, 65) for groups in (1, 2)}
    assert "4.70" not in ranks and {"4.19", "4.72"} <= ranks
    ways = [targets for size in range(1, 8) for targets in combinations(LINEARS, size)]
    counts = {millions(sum(lora_params(large, 8, targets))) for targets in ways}
    assert "30.40" not in counts  # FedSA prints 30.40; its published settings (rank 8, peft's own modules) give 3.41
    assert millions(sum(lora_params(large, 8, ("q_proj", "v_proj")))) == "3.41"


@pytest.mark.parametrize(
    ("name", "targets", "ends"),
    [
        ("tiny-llama", LINEARS, 7),
        # attention.output.dense and the block's own output.dense: (64, 64) and (128, 64)
        ("tiny-roberta", ("query", "output.dense"), 3),
        ("tiny-roberta", ("dense",), 3),  # not the pooler's
    ],
)
def test_lora_counts_follow_from_the_weights_themselves(name, targets, ends):
    model = load_backbone(name, device="cpu").model
    names = tuple(f"{target}.weight" for target in targets)
    weights = [w for n, w in model.state_dict().items() if n.endswith(names) and ".layer" in f".{n}"]
    assert len(weights) == 4 * ends
    assert lora_params(model, 3, targets) == (
        3 * sum(w.shape[1] for w in weights),
        3 * sum(w.shape[0] for w in weights),
    )
    assert fedsb_params(model, 3, targets) == 9 * len(weights)


def test_a_target_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="no linear module 'q_porj', did you mean 'q_proj'?"):
        linear_shapes(skeleton(LLAMA_3B), ("q_porj",))


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-roberta"])
def test_the_estimate_bounds_what_weights_and_backpropagation_hold(name, dtype):
    backbone = load_backbone(name, dtype=dtype, device="cpu")
    model, tokens = backbone.model, 4 * 64
    estimate = memory_estimate(model, backbone.dtype, tokens=tokens)
    assert estimate.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert estimate.total == estimate.weights + estimate.batch

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    embedded = model.get_input_embeddings()(torch.arange(tokens).reshape(4, 64) % 200).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.base_model(inputs_embeds=embedded).last_hidden_state
        if backbone.kind == "causal":
            hidden = torch.log_softmax(model.get_output_embeddings()(hidden).float(), -1)
        hidden.sum().backward()
    size = sum(nbytes for _, nbytes in kept.values())
    assert estimate.batch / 4 < size < estimate.batch


def test_states_are_counted_once_a_client_and_the_optimiser_once():
    model = skeleton(ROBERTA)
    estimate = memory_estimate(model, torch.float32, trainable=1000, clients=5)
    assert estimate.states == 4 * 1000 * (3 * 5 + 4) and estimate.batch == 0
    assert str(estimate) == "up to 1.3 GiB of memory (weights 1.3 GiB, states 0.0 GiB, a full batch 0.0 GiB)"


def test_weights_that_do_not_fit_are_one_sentence(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: int(11.2 * 2**30))
    assert fit(LLAMA_3B, skeleton(LLAMA_3B), torch.bfloat16, CPU) == (
        f"{LLAMA_3B}: 3.21 B parameters, about 6.0 GiB in bfloat16; 11.2 GiB are free on cpu"
    )
    with pytest.raises(FedReFTError, match="needs about 15.0 GiB in bfloat16, 11.2 GiB are free on cpu: use a smaller"):
        fit(LLAMA_8B, skeleton(LLAMA_8B), torch.bfloat16, CPU)
    with pytest.raises(
        FedReFTError, match="12.0 GiB in float32.*smaller backbone, dtype='bfloat16' or a larger machine"
    ):
        fit(LLAMA_3B, skeleton(LLAMA_3B), torch.float32, CPU)


def test_the_size_of_any_other_architecture_is_said_too():
    assert fit("gpt2", empty_model(GPT2Config()), torch.float32, CPU).startswith(
        "gpt2: 0.124 B parameters, about 0.5 GiB"
    )


def test_weights_for_a_gpu_must_fit_there_and_on_the_way(monkeypatch):
    gpu = torch.device("cuda")
    for small in (CPU, gpu):
        monkeypatch.setattr(module, "free_memory", lambda device, small=small: 2**30 * (4 if device == small else 20))
        with pytest.raises(FedReFTError, match=f"4.0 GiB are free on {small}:"):
            fit(LLAMA_3B, skeleton(LLAMA_3B), torch.bfloat16, gpu)


def test_a_container_s_limit_counts_where_it_is_less(tmp_path):
    whole = module.psutil.virtual_memory().total
    assert module._left_to_the_container(tmp_path) == whole
    for name, text in {"memory.max": "max", "memory.current": "70", "memory.stat": "anon 5\ninactive_file 20"}.items():
        (tmp_path / name).write_text(text + "\n")
    assert module._left_to_the_container(tmp_path) == whole
    (tmp_path / "memory.max").write_text("100\n")
    assert module._left_to_the_container(tmp_path) == 100 - 70 + 20
    assert 0 < free_memory(CPU) <= whole


def test_every_architecture_can_be_read_by_the_backbone_s_own_rules():
    kinds = {name: module.kind_of(kind(**sizes)) for name, (kind, sizes) in ARCHITECTURES.items()}
    assert kinds == {name: "encoder" if "roberta" in name else "causal" for name in ARCHITECTURES}

"""Same parameters in, same outputs, gradients and training as pyreft."""

import json

import pyreft
import pytest
import torch

from fedreft_lib.config import RunConfig
from fedreft_lib.core.interventions import INTERVENTIONS, LoReFT
from fedreft_lib.core.sites import Sites
from fedreft_lib.core.training import Trainable
from fedreft_lib.errors import FedReFTError
from fedreft_lib.model.pyreft_format import FILES, load_pyreft, save_pyreft
from fedreft_lib.model.tokens import Tokens
from tests.helpers.models import random_backbone, random_state, steered

D = 32


def pyreft_intervention(intervention, phi, d=D, dtype=torch.float32):
    """pyreft's module of one site with our tensors in it; its orthogonal R stays parametrised, and float32."""
    made = getattr(pyreft, intervention.pyreft_class)(
        embed_dim=d, low_rank_dimension=phi["R"].shape[0], dtype=dtype, add_bias=False
    )
    with torch.no_grad():
        if intervention.orthonormal:
            made.rotate_layer.weight = phi["R"].T.clone()
        else:
            made.proj_layer.weight.copy_(phi["R"])
        if intervention.maps:
            made.learned_source.weight.copy_(phi["W"])
            made.learned_source.bias.copy_(phi["b"])
        else:
            made.learned_source.copy_(phi["b"])
    return made


def wrapped(model, state):
    """pyreft's model over the same backbone with the same parameters; ours is left without pyvene's hooks."""
    sites = model.adapter.sites
    made = [
        pyreft_intervention(
            model.adapter.kind,
            {n: t[s] for n, t in state.items()},
            model.backbone.hidden_size,
            model.backbone.dtype,
        )
        for s in range(len(sites))
    ]
    encoder = model.backbone.kind == "encoder"  # pyvene does not know BERT's blocks by name: ReFT names the module
    representations = [
        {
            "layer": layer,
            "component": f"encoder.layer[{layer}].output" if encoder else "block_output",
            "low_rank_dimension": model.adapter.rank,
            "intervention": made[s],
        }
        for s, layer in enumerate(list(sites.layers) * len(sites.groups))
    ]
    return pyreft.get_reft_model(
        model.backbone.model, pyreft.ReftConfig(representations=representations), set_device=False
    )


def locations(model, batch):
    """pyreft's (sites, batch, positions) of a batch whose prompts are long enough to need no padding."""
    places = []
    for group in model.adapter.sites.groups:
        flat = model.adapter.sites.positions(batch.prompt_lengths, batch.starts, tuple(batch.ids.shape)).indices[group]
        rows = [
            sorted(int(i) % batch.ids.shape[1] for i in flat if int(i) // batch.ids.shape[1] == row)
            for row in range(len(batch.ids))
        ]
        places += [rows] * len(model.adapter.sites.layers)
    return places


def theirs(wrapper, model, batch):
    """Loss of pyreft's model on the answers of a batch."""
    labels = torch.where(batch.branches >= 0, batch.ids, -100)
    _, out = wrapper(
        {"input_ids": batch.ids, "attention_mask": batch.mask},
        unit_locations={"sources->base": (None, locations(model, batch))},
        labels=labels,
    )
    return out.loss


def some_sequences(model, n, seed, longest=24):
    generator = torch.Generator().manual_seed(seed)
    vocabulary = len(model.backbone.tokenizer)
    made = []
    for _ in range(n):
        prompt = int(torch.randint(8, longest, (1,), generator=generator))
        ids = torch.randint(5, vocabulary, (prompt + 3,), generator=generator).tolist()
        made.append(Tokens(tuple(ids), prompt, (3,)))
    return made


@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.parametrize("rank", [1, 5])
def test_one_site_has_the_outputs_and_gradients_of_pyreft(name, rank):
    intervention = INTERVENTIONS[name]
    phi = intervention.init(1, rank, D, start="random", generator=torch.Generator().manual_seed(rank))
    reference = pyreft_intervention(intervention, {n: t[0] for n, t in phi.items()})
    h = torch.randn(3, 7, D, requires_grad=True)
    target = torch.randn(3, 7, D)
    expected = reference(h)
    complement = reference.rotate_layer.parametrizations.weight[0].base[:, rank:] if intervention.orthonormal else None
    coordinates = Trainable(
        phi, rotated=intervention.rotated, complement=None if complement is None else complement[None]
    )
    state = coordinates.state()
    found = intervention.edit(h, {n: t[0] for n, t in state.items()})
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    free = [coordinates.free[n] for n in state]
    ours = torch.autograd.grad((found * target).sum(), [h, *free])
    if intervention.orthonormal:
        parameters = [reference.rotate_layer.parametrizations.weight.original]
    else:
        parameters = [reference.proj_layer.weight]
    source = reference.learned_source
    parameters += [source.weight, source.bias] if intervention.maps else [source]
    grads = torch.autograd.grad((expected * target).sum(), [h, *parameters])
    if intervention.orthonormal:  # above the diagonal torch's coordinates have no effect and no gradient of ours
        grads = (grads[0], grads[1].tril(-1), *grads[2:])
    for mine, other in zip(ours, grads, strict=True):
        scale = max(1.0, float(other.abs().max()))  # float32 rounds sums of many products relative to their size
        torch.testing.assert_close(mine.reshape(other.shape) / scale, other / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "bert", "roberta"])
@pytest.mark.parametrize(("layers", "rank", "prefix", "suffix", "tied"), [
    ((0, 1, 2), 4, 2, 3, False),
    ((1,), 1, 3, 3, True),
    ((0, 2), 8, 4, 0, False),
    ((2,), 3, 0, 2, False),
])  # fmt: skip
def test_a_whole_model_has_the_hidden_states_of_pyreft(kind, layers, rank, prefix, suffix, tied, monkeypatch):
    model = steered(random_backbone(kind), LoReFT, layers=layers, prefix=prefix, suffix=suffix, tied=tied, rank=rank)
    state = random_state(model)
    batch = model.batch(some_sequences(model, 3, seed=rank))
    with torch.no_grad():
        ours = model.hidden_states(batch, state)
        places = locations(model, batch)
        widest = max(len(row) for rows in places for row in rows)
        # pyreft wants as many positions at every site; a repeated one is edited twice to the same value.
        places = [[row + row[-1:] * (widest - len(row)) for row in rows] for rows in places]
        reference, seen = wrapped(model, state), []
        base = model.backbone.model.base_model
        forward = base.forward  # pyvene takes hooks off the model, so its output is caught on the way out
        monkeypatch.setattr(base, "forward", lambda *args, **kwargs: seen.append(forward(*args, **kwargs)) or seen[-1])
        reference(
            {"input_ids": batch.ids, "attention_mask": batch.mask},
            unit_locations={"sources->base": (None, places)},
        )
    kept = batch.mask.bool()
    torch.testing.assert_close(ours[kept], seen[-1].last_hidden_state[kept], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "tied"), [("loreft", False), ("loreft", True), ("direft", False)])
def test_ten_steps_of_training_give_the_losses_of_pyreft(name, tied):
    intervention = INTERVENTIONS[name]
    model = steered(random_backbone(), intervention, layers=(0, 2), prefix=2, suffix=2, tied=tied)
    state = random_state(model)
    sequences = some_sequences(model, 40, seed=0)
    batches = [model.batch(sequences[i : i + 4]) for i in range(0, 40, 4)]

    reference = wrapped(model, state)
    modules = list(reference.interventions.values())
    complement = None
    if intervention.orthonormal:
        bases = [m.rotate_layer.parametrizations.weight[0].base for m in modules]
        complement = torch.stack([base[:, model.adapter.rank :] for base in bases]).clone()
    optimiser = torch.optim.AdamW([p for m in modules for p in m.parameters()], lr=5e-3, weight_decay=0.0)
    expected = []
    for batch in batches:
        loss = theirs(reference, model, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        expected.append(float(loss.detach()))

    coordinates = Trainable(state, rotated=intervention.rotated, complement=complement)
    optimiser = torch.optim.AdamW(coordinates.groups(0.0, RunConfig().decayed), lr=5e-3)
    found = []
    for batch in batches:
        loss = -model.answer_logprobs(batch, coordinates.state())[0].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    assert found == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0] - expected[-1]) > 0.05  # the ten steps did something


@pytest.mark.parametrize("tied", [False, True])
def test_what_pyreft_saves_loads_here(tmp_path, tied):
    model = steered(random_backbone(), LoReFT, tied=tied)
    state = random_state(model)
    wrapped(model, state).save(str(tmp_path))
    loaded = load_pyreft(tmp_path, model.adapter.sites, LoReFT)
    for name, tensor in state.items():
        torch.testing.assert_close(loaded[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_what_we_save_loads_in_pyreft(tmp_path, tied):
    model = steered(random_backbone(), LoReFT, tied=tied)
    state = random_state(model)
    save_pyreft(tmp_path, state, model.adapter.sites, LoReFT)
    batch = model.batch(some_sequences(model, 3, seed=5))
    with torch.no_grad():
        ours = model.answer_logprobs(batch, state)[0]
        loaded = pyreft.ReftModel.load(str(tmp_path), model.backbone.model)
        for module in loaded.interventions.values():
            module.float()  # a folder does not say that W was float32, and pyreft then makes it bfloat16
        found = theirs(loaded, model, batch)
    assert float(found) == pytest.approx(-float(ours.mean()), abs=5e-3)


@pytest.mark.parametrize("name", FILES)
def test_saving_and_loading_is_the_identity(tmp_path, name):
    model = steered(random_backbone(), INTERVENTIONS[name])
    state = random_state(model)
    save_pyreft(tmp_path, state, model.adapter.sites, INTERVENTIONS[name])
    loaded = load_pyreft(tmp_path, model.adapter.sites, INTERVENTIONS[name])
    assert all(torch.equal(loaded[n], state[n]) for n in state)


def test_direft_files_load_onto_pyrefts_module(tmp_path):
    direft = INTERVENTIONS["direft"]
    model = steered(random_backbone(), direft)
    state = random_state(model)
    save_pyreft(tmp_path, state, model.adapter.sites, direft)
    module = pyreft_intervention(direft, {n: torch.zeros_like(t[0]) for n, t in state.items()})
    file = tmp_path / "intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin"
    module.load_state_dict(torch.load(file, weights_only=True))
    h = torch.randn(2, 3, D)
    torch.testing.assert_close(module(h), direft.edit(h, {n: t[0] for n, t in state.items()}), atol=1e-5, rtol=1e-5)


# ---- folders that are not what was asked for ------------------------------------------------------------------------


def saved_by_pyreft(folder, name="loreft", **how):
    model = steered(random_backbone(), INTERVENTIONS[name], **how)
    wrapped(model, random_state(model)).save(str(folder), include_model=True)
    return model


@pytest.mark.parametrize(
    "asked",
    [
        Sites((0,), 2, 2), Sites((0, 1, 2), 2, 2), Sites((1, 2), 2, 2), Sites((0, 2), 2, 0), Sites((0, 2), 2, 2, True),
    ],
)  # fmt: skip
def test_other_sites_than_were_saved_are_refused_whoever_saved_them(tmp_path, asked):
    model = saved_by_pyreft(tmp_path / "theirs")
    save_pyreft(tmp_path / "ours", random_state(model), model.adapter.sites, LoReFT)
    for folder in ("theirs", "ours"):
        assert load_pyreft(tmp_path / folder, model.adapter.sites, LoReFT)
        with pytest.raises(FedReFTError, match=r"holds sites at the layers 0 \(2 x\), 2 \(2 x\), and sites"):
            load_pyreft(tmp_path / folder, asked, LoReFT)


def test_another_member_of_the_family_is_refused_even_where_its_tensors_look_alike(tmp_path):
    model = saved_by_pyreft(tmp_path, "noreft")
    with pytest.raises(FedReFTError, match="is of .*NoreftIntervention.*, and direft is .*NodireftIntervention"):
        load_pyreft(tmp_path, model.adapter.sites, INTERVENTIONS["direft"])
    other = saved_by_pyreft(tmp_path / "direft", "direft")
    assert load_pyreft(tmp_path / "direft", other.adapter.sites, INTERVENTIONS["direft"])


def edited(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def site_of(folder, **changes):
    path = sorted(folder.glob("intkey_*.bin"))[0]
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


DAMAGE = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
    "torn config": (lambda folder: (folder / "config.json").write_text('{"repr'), "config.json cannot be read"),
    "a model's config": (lambda folder: (folder / "config.json").write_text('{"hidden_size": 32}'), "is not of pyvene"),
    "missing file": (lambda folder: sorted(folder.glob("intkey_*"))[0].unlink(), "lacks intkey_layer_0"),
    "left over": (lambda folder: (folder / "intkey_layer_9#0.bin").touch(), "has intkey_layer_9#0.bin, which its"),
    "empty file": (lambda folder: sorted(folder.glob("intkey_*"))[1].write_bytes(b""), "cannot be read as a site"),
    "torn file": (lambda folder: sorted(folder.glob("intkey_*"))[1].write_bytes(b"PK\x03\x04to"), "cannot be read as"),
    "no dict": (lambda folder: torch.save(torch.ones(3), sorted(folder.glob("intkey_*"))[0]), "it holds Tensor"),
    "more tensors": (lambda folder: site_of(folder, extra=torch.ones(1)), "it holds .*'extra'"),
    "no numbers": (lambda folder: site_of(folder, bias="text"), "bias has no finite numbers"),
    "not finite": (lambda folder: site_of(folder, bias=torch.tensor([1, 2, 3, float("nan")])), "no finite numbers"),
    "another rank in one": (lambda folder: site_of(folder, bias=torch.ones(3)), "do not have one shape"),
    "another width": (edited(intervention_dimensions=[64] * 4), "says intervention_dimensions 64 .* has 32"),
    "serial": (edited(mode="serial"), "has the mode 'serial'"),
    "somewhere else": (edited(representations=[[0, "mlp_output", "pos", 1, 4]]), "has the site .*'mlp_output'"),
    "another rank": (
        edited(representations=[[layer, "block_output", "pos", 1, 8] for layer in (0, 2, 0, 2)]),
        "says low_rank_dimension 8 .* has 4",
    ),
    "a head beside it": (
        lambda folder: torch.save({"score.weight": torch.ones(2)}, folder / "pytorch_model.bin"), "trained tensors of"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_missing_damaged_or_left_over_is_one_sentence(tmp_path, damage, said):
    model = saved_by_pyreft(tmp_path)
    damage(tmp_path)
    with pytest.raises(FedReFTError, match=said) as refused:
        load_pyreft(tmp_path, model.adapter.sites, LoReFT)
    assert "\n" not in str(refused.value)


def test_a_smaller_state_saved_over_a_larger_one_leaves_nothing_of_it_and_what_is_not_its_own(tmp_path):
    large, small = (steered(random_backbone(), LoReFT, layers=layers) for layers in ((0, 1, 2), (1,)))
    (tmp_path / "notes.txt").write_text("mine")
    for model in (large, small):
        save_pyreft(tmp_path, random_state(model), model.adapter.sites, LoReFT)
    assert len(list(tmp_path.glob("intkey_*"))) == 2 and (tmp_path / "notes.txt").read_text() == "mine"
    loaded = load_pyreft(tmp_path, small.adapter.sites, LoReFT)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in random_state(small).items())
    assert len(pyreft.ReftModel.load(str(tmp_path), small.backbone.model).interventions) == 2


@pytest.mark.parametrize(("name", "content"), [("config.json", '{"hidden_size": 32}'), ("pytorch_model.bin", "x")])
def test_a_folder_that_holds_another_model_is_not_written_to(tmp_path, name, content):
    model = steered(random_backbone(), LoReFT)
    (tmp_path / name).write_text(content)
    with pytest.raises(FedReFTError, match=f"{name} .*: choose another folder"):
        save_pyreft(tmp_path, random_state(model), model.adapter.sites, LoReFT)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, content)]


def test_a_state_of_other_sites_or_with_a_head_is_not_saved_in_part(tmp_path):
    model = steered(random_backbone(), LoReFT)
    state = random_state(model)
    for wrong, sites in (
        (state, Sites((0,), 2, 2)), ({**state, "head.D": torch.ones(2)}, model.adapter.sites), ({}, model.adapter.sites)
    ):  # fmt: skip
        with pytest.raises(FedReFTError, match=r"a state of \['R', 'W', 'b'\] for .* sites can be saved"):
            save_pyreft(tmp_path, wrong, sites, LoReFT)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    model = steered(random_backbone(), LoReFT)
    (tmp_path / "file").touch()
    with pytest.raises(FedReFTError, match="cannot be written to"):
        save_pyreft(tmp_path / "file", random_state(model), model.adapter.sites, LoReFT)

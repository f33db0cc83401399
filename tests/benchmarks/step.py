"""One training step against the matrix products in it, against the bare backbone and against pyreft's model.

Ours is a step of `core.training.train` as it is, collation and AdamW included, timed from the end of one step to the
end of the next. With one thread it is compared with its floor:

    products alone     the matrix products of every linear layer, and of the gradient of what goes into it, for as many
                       tokens as the batch has, and for the head the tokens that predict an answer. (A step of ours ends
                       above block 0, and computes of the last block only what is read: that spares it 4 % of them.)

With as many threads as torch takes, its rivals get a batch that is already there:

    padded backbone    forward and backward of the frozen backbone down to the embedding, loss at the answers' tokens
                       only; no state, no optimiser
    packed backbone    the same, read as we read it: without padding, by the fast ways, of the last block what is read
    padded forward     the padded backbone without gradients
    packed forward
    pyreft             `pyreft.get_reft_model` with the same sites and state, its own forward with unit_locations, the
                       loss by labels as its trainer takes it, clipping and the same AdamW
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fedreft_lib import RunConfig
from fedreft_lib.core.interventions import LoReFT
from fedreft_lib.core.sites import Sites
from fedreft_lib.core.state import State
from fedreft_lib.federation.training import train_client as train
from fedreft_lib.model.adapters import AtSites
from fedreft_lib.model.backbone import Backbone
from fedreft_lib.model.encoding import AnswerSet
from fedreft_lib.model.shared import shared_backbone
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Batch, Tokens
from tests.benchmarks.contest import Contest, Marks, Rival, Side, timed
from tests.benchmarks.sizes import Size
from tests.model.test_pyreft_parity import locations, wrapped

CONFIG = RunConfig(method="local", batch_size=8, rank=8, positions="f7+l7", layers="all")
ANSWER = 3  # tokens


def contests(size: Size) -> Iterator[Contest]:
    for dtype in size.dtypes:
        model = loreft(size, dtype)
        for length in size.lengths:
            name, sequences = f"step, {dtype}, prompts of {length}", examples(model, length)
            yield against_products(model, sequences, f"{name}, one thread")
            yield contest(model, sequences, name)


def loreft(size: Size, dtype: str) -> SteeredModel:
    return loreft_of(shared_backbone(size.backbone, dtype, "cpu"))


def loreft_of(backbone: Backbone) -> SteeredModel:
    """LoReFT at every layer, prefix and suffix of seven positions."""
    sites = Sites(tuple(range(backbone.n_layers)), prefix=7, suffix=7)
    return SteeredModel(backbone, AtSites(LoReFT, sites, CONFIG.rank, backbone.hidden_size))


def examples(model: SteeredModel, length: int) -> list[Tokens]:
    """One batch of made-up prompts, `length` tokens on average and none as long as another, with short answers."""
    generator = torch.Generator().manual_seed(length)
    lengths = [length - CONFIG.batch_size + 1 + 2 * i for i in range(CONFIG.batch_size)]
    made = [torch.randint(5, len(model.backbone.tokenizer), (n + ANSWER,), generator=generator) for n in lengths]
    return [Tokens(tuple(ids.tolist()), n, (ANSWER,)) for ids, n in zip(made, lengths, strict=True)]


def our_training(
    model: SteeredModel, sequences: list[Tokens], state: State, config: RunConfig = CONFIG, steps: int = 2
) -> Side:
    """Seconds of a step of `core.training.train`."""

    def side() -> float:
        marks = Marks()
        train(model, state, AnswerSet(sequences, None), config, steps=steps, seed=0, on_step=marks)
        return marks.per_step

    return side


def against_products(model: SteeredModel, sequences: list[Tokens], name: str) -> Contest:
    batch, state = model.batch(sequences), model.start("random", 0)
    ours, floor = our_training(model, sequences, state), products_alone(model, batch)

    def check() -> str:  # a step's loss is compared with pyreft's, in the other contest
        ours()
        floor()
        return f"{sum(4 * m * weight.numel() for m, weight in products_of(model, batch)) / 1e9:.3g} GFLOP"

    target = 1.2 if model.backbone.dtype == torch.float32 else 1.3
    return Contest(name, one_thread(ours), (Rival("products alone", one_thread(timed(floor)), target, True),), check)


def products_of(model: SteeredModel, batch: Batch) -> list[tuple[int, Tensor]]:
    """The weight (n, d) of every linear layer, and for how many tokens a step multiplies by it."""
    tokens, read = int(batch.mask.sum()), len(batch.targets[:, :2].unique(dim=0))
    head = model.backbone.model.get_output_embeddings()
    inside = [m.weight for m in model.backbone.layers.modules() if isinstance(m, nn.Linear)]
    return [*((tokens, weight) for weight in inside), (read, head.weight)]


def products_alone(model: SteeredModel, batch: Batch) -> Callable[[], None]:
    """Each product with its weight, (m, d) (d, n), in order, then each of its gradients, (m, n) (n, d), in reverse."""
    products = products_of(model, batch)
    widths = {(m, width) for m, weight in products for width in weight.shape}
    x = {shape: torch.randn(shape).to(model.backbone.dtype) for shape in widths}

    @torch.no_grad()
    def work() -> None:
        for m, weight in products:
            nn.functional.linear(x[m, weight.shape[1]], weight)
        for m, weight in reversed(products):
            x[m, weight.shape[0]] @ weight

    return work


def one_thread(side: Side) -> Side:
    def alone() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return side()
        finally:
            torch.set_num_threads(before)

    return alone


def contest(model: SteeredModel, sequences: list[Tokens], name: str) -> Contest:
    state, batch, exact = model.start("random", 0), model.batch(sequences), model.backbone.dtype == torch.float32
    pyrefts = pyrefts_step(model, state, batch)

    @torch.no_grad()
    def forward() -> Tensor:
        return plain_loss(model, batch, model.backbone.model.get_input_embeddings()(batch.ids))

    @torch.no_grad()
    def packed_forward() -> Tensor:
        return -model.answer_logprobs(batch, None)[0].mean()

    def check() -> str:
        ours = train(model, state, AnswerSet(sequences, None), CONFIG, steps=2, seed=0).losses[0]
        theirs, bare = float(pyrefts()), float(forward())
        if exact:
            assert abs(ours - theirs) < 1e-3, f"our loss is {ours}, pyreft's {theirs}"
            for other in (padded_backbone(model, batch), packed_forward()):
                assert abs(float(other) - bare) < 1e-3, f"losses of the bare backbone: {float(other)} and {bare}"
            assert abs(float(packed_backbone(model, batch)) - float(packed_forward())) < 1e-6
        return f"loss {ours:.4f}, pyreft's {theirs:.4f}"

    return Contest(
        name,
        our_training(model, sequences, state),
        (
            Rival("padded backbone", timed(lambda: padded_backbone(model, batch))),
            Rival("packed backbone", timed(lambda: packed_backbone(model, batch))),
            Rival("padded forward", timed(forward), target=None if exact else 2.2),
            Rival("packed forward", timed(packed_forward), target=None if exact else 2.2),
            Rival("pyreft", timed(pyrefts), target=1 / 1.6 if exact else 1 / 2),
        ),
        check,
    )


def padded_backbone(model: SteeredModel, batch: Batch) -> Tensor:
    """Forward and backward pass of the frozen model: its loss, after the backward pass."""
    embedded = model.backbone.model.get_input_embeddings()(batch.ids).detach().requires_grad_()
    loss = plain_loss(model, batch, embedded)
    loss.backward()
    return loss.detach()


def plain_loss(model: SteeredModel, batch: Batch, embedded: Tensor) -> Tensor:
    """Of the answers' tokens, by the model as transformers has it, on embedded ids (B, T, d)."""
    backbone = model.backbone.model
    hidden = backbone.base_model(
        inputs_embeds=embedded, attention_mask=batch.mask, position_ids=batch.places, use_cache=False
    ).last_hidden_state
    row, source, column, _ = batch.targets.unbind(1)
    logits = backbone.get_output_embeddings()(hidden[row, source])
    return nn.functional.cross_entropy(logits.float(), batch.ids[row, column])


def packed_backbone(model: SteeredModel, batch: Batch) -> Tensor:
    """`padded_backbone` of the batch as it is."""
    embeddings = model.backbone.model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
    try:
        loss = -model.answer_logprobs(batch, None)[0].mean()
    finally:
        handle.remove()
    loss.backward()
    return loss.detach()


def pyrefts_step(model: SteeredModel, state: State, batch: Batch) -> Callable[[], Tensor]:
    """A step of pyreft's model from `state`; it gives its loss."""
    reference, labels = wrapped(model, state), torch.where(batch.branches >= 0, batch.ids, -100)
    moving = [p for module in reference.interventions.values() for p in module.parameters()]
    optimiser = torch.optim.AdamW(moving, lr=CONFIG.lr, weight_decay=CONFIG.weight_decay)
    places = {"sources->base": (None, locations(model, batch))}

    def step() -> Tensor:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        loss = reference(inputs, unit_locations=places, labels=labels)[1].loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(moving, CONFIG.clip)
        optimiser.step()
        return loss.detach()

    return step

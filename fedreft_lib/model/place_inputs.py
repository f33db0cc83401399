"""The inputs of a model's places, for methods that look at what their routers read."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from ..core.state import State
from .adapters import AtSites
from .encoding import Encoded
from .steered import SteeredModel


def place_inputs(model: SteeredModel, state: State, data: Encoded, size: int) -> Iterator[tuple[str, int, Tensor]]:
    """What is read at each place, in passes of `size` items.

    Yields how the names of the place's tensors begin ("" for interventions, "q_proj." in a linear module of that name),
    the place, and hidden states (tokens, d_in), without padding.
    """
    caught, adapter, blocks = [], model.adapter, model.backbone.layers
    whole = replace(data, hidden=None)  # the hooks are on the model's own blocks
    if isinstance(adapter, AtSites):  # what a block hands on, before the edit
        at = {("", layer): blocks[layer] for layer in adapter.sites.layers}
    else:
        at = {(f"{n}.", i): m for n, place in adapter.linears.items() for i, m in enumerate(place.modules(blocks))}
    handles = [
        module.register_forward_hook(lambda module, args, output, key=key: caught.append((*key, args[0], output)))
        for key, module in at.items()
    ]
    try:
        for indices in whole.in_passes(size):
            batch = whole.batch(model, indices)
            for rows in batch.rows_alone() if batch.ways.layout == "alone" else [batch]:
                caught.clear()  # a trial of the batch's ways may have left some
                model.hidden_states(rows, state)
                tokens, shape = rows.as_read(rows.mask).bool(), tuple(rows.ids.shape)
                for begin, place, x, output in caught:
                    if not isinstance(adapter, AtSites):
                        # An expert of a mixture reads some tokens, and no padding.
                        yield begin, place, x[tokens] if x.shape[:-1] == tokens.shape else x.flatten(0, -2)
                        continue
                    h = rows.as_grid(output[0] if isinstance(output, tuple) else output).flatten(0, 1)
                    for group, index in adapter.sites.positions(
                        rows.prompt_lengths, rows.starts, shape
                    ).indices.items():
                        yield begin, adapter.sites.index(place, group), h[index]
    finally:
        for handle in handles:
            handle.remove()

"""Greedy generation, against transformers' `generate` with the same hooks; without a state, against it alone.

In bfloat16 a part of the difference is one product: after reading the prompt, `generate` hands the output embedding a
strided slice, for which torch 2.13 on a CPU takes a slow path (about 100 times slower than for a contiguous one).
"""

from collections.abc import Iterator
from contextlib import nullcontext
from unittest import mock

import torch
from transformers import GenerationConfig

from fedreft_lib.core.state import State
from fedreft_lib.model.fast import prepacked
from fedreft_lib.model.steered import SteeredModel
from tests.benchmarks.contest import Contest, Rival, timed
from tests.benchmarks.scoring import questions
from tests.benchmarks.sizes import Size


def contests(size: Size) -> Iterator[Contest]:
    model, tests, _ = questions(size, size.dtypes[0])
    prompts = [sequence.bare for data in tests for sequence in data.sequences[:2]]
    for said, state in (("no state", None), ("a state", model.start("random", 0))):
        yield contest(model, prompts, state, size.new_tokens, f"generation, {size.dtypes[0]}, {said}")


def contest(model: SteeredModel, prompts: list, state: State | None, new_tokens: int, name: str) -> Contest:
    def ours() -> list[str]:
        return model.generate(prompts, state, new_tokens)

    def theirs() -> list[str]:
        return transformers_generate(model, prompts, state, new_tokens)

    def check() -> str:
        found = ours()
        alike = sum(a == b for a, b in zip(found, theirs(), strict=True))
        assert sum(a != b for a, b in zip(found, unpacked(), strict=True)) <= len(prompts) / 8  # by rounding alone
        if model.backbone.dtype == torch.float32:
            assert alike == len(prompts), f"{alike} of {len(prompts)} texts are the same"
        return f"{alike} of {len(prompts)} texts of {new_tokens} tokens are the same"

    def unpacked() -> list[str]:
        with mock.patch.object(prepacked, "LIMIT", 0):
            return ours()

    rivals = Rival("transformers", timed(theirs)), Rival("weights not packed ahead", timed(unpacked))
    return Contest(name, timed(ours), rivals, check)


@torch.no_grad()
def transformers_generate(model: SteeredModel, prompts: list, state: State | None, new_tokens: int) -> list[str]:
    batch, tokenizer = model.batch(prompts, side="left"), model.backbone.tokenizer
    greedy = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    steered = model.adapter.attached(model.backbone.layers, state, batch) if state else nullcontext()
    with steered:
        out = model.backbone.model.generate(input_ids=batch.ids, attention_mask=batch.mask, generation_config=greedy)
    return tokenizer.batch_decode(out[:, batch.ids.shape[1] :], skip_special_tokens=True)

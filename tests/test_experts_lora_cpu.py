"""LoRA on the CPU by groups of tokens, beside vLLM's own arithmetic."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

import torch
from collegium.experts.lora_cpu import GroupedPunicaCPU
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

pytestmark = pytest.mark.slow  # vLLM takes its time to be imported

SLOTS, RANK, READ, SLICES = 3, 4, 6, (5, 3)


def added(kind: type[PunicaWrapperCPU], loaded: list[int | None], tokens: tuple[int, ...]) -> torch.Tensor:
    """What the adapters in `loaded` add for tokens of these adapter ids, 0 for the base."""
    generator = torch.Generator().manual_seed(0)
    a = tuple(torch.randn(SLOTS, 1, RANK, READ, generator=generator) for _ in SLICES)
    b = tuple(torch.randn(SLOTS, 1, width, RANK, generator=generator) for width in SLICES)
    for slot, adapter in enumerate(loaded):
        if adapter is None:
            for weights in (*a, *b):
                weights[slot] = 0
    x = torch.randn(len(tokens), READ, generator=generator)
    y = torch.zeros(len(tokens), sum(SLICES))
    wrapper = kind(max_num_batched_tokens=64, max_batches=8, device="cpu")
    wrapper.update_metadata(LoRAMapping(tokens, tokens, is_prefill=True), loaded, SLOTS, 32)
    wrapper.add_lora_linear(y, x, a, b, 0.5, SLICES)
    return y


@pytest.mark.parametrize("tokens", [(7, 7, 7), (7, 0, 9, 9, 7), (0, 0)])
def test_the_sums_are_vllms(tokens: tuple[int, ...]) -> None:
    grouped, stock = (added(kind, [7, 9, None], tokens) for kind in (GroupedPunicaCPU, PunicaWrapperCPU))
    assert torch.allclose(grouped, stock, atol=1e-6)
    assert bool(grouped.any()) == any(tokens)


def test_tokens_of_the_base_are_left_alone_where_every_slot_is_taken() -> None:
    tokens = (7, 0, 9)
    grouped, stock = (added(kind, [7, 9, 11], tokens) for kind in (GroupedPunicaCPU, PunicaWrapperCPU))
    assert not grouped[1].any()
    assert stock[1].any(), "vLLM no longer adds its last adapter to the base's tokens; the docs say that it does"
    assert torch.allclose(grouped[[0, 2]], stock[[0, 2]], atol=1e-6)

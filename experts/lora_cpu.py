"""A vLLM plugin: LoRA on the CPU by one matrix product an adapter, where vLLM 0.29 copies its weights for every token.

Named in pyproject.toml as a plugin, so that vLLM calls `register` in each of its processes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform

Group = tuple[int, Tensor | None]


class GroupedPunicaCPU(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is not typed for mypy
    """Tokens of one adapter together. Those of the base stay as they are: vLLM reads its last adapter for them.

    (Their index is -1, which takes the last slot; it harms once as many adapters are loaded as there are slots.)
    """

    _groups: list[Group] | None = None

    def update_metadata(self, *arguments: object, **settings: object) -> None:
        """A new batch: its groups are found at its first layer."""
        super().update_metadata(*arguments, **settings)
        self._groups = None

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **settings: object,
    ) -> None:
        """y[:, slice] += scale * x @ A.T @ B.T by the adapter of each token.

        `y` (tokens, out) is changed in place; `x` is (tokens, in), A (slots, 1, rank, in), B (slots, 1, slice, rank).
        """
        if self._groups is None:
            self._groups = groups_of(self.token_lora_indices)
        flat, read = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self._groups:
            tokens = read if rows is None else read[rows]
            start = 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                change = torch.mm(torch.mm(tokens, a[slot, 0].T), b[slot, 0].T).mul_(scale)
                place = flat[:, start : start + width]
                if rows is None:
                    place.add_(change)
                else:
                    place.index_add_(0, rows, change)
                start += width


def groups_of(indices: Tensor) -> list[Group]:
    """Slots in a batch with the rows of their tokens, None for all of them; -1, the base, is left out."""
    slots = [int(slot) for slot in indices.unique()]
    if len(slots) == 1:
        return [(slots[0], None)] if slots[0] >= 0 else []
    return [(slot, (indices == slot).nonzero().flatten()) for slot in slots if slot >= 0]


def register() -> None:
    """Make vLLM's CPU platform use the class above."""
    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: f"{__name__}.{GroupedPunicaCPU.__qualname__}")

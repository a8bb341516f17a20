"""Packs: samples beside each other score exactly as they do alone, and the loss falls on responses only."""

from __future__ import annotations

import math

import pytest
import torch
from collegium.training.specialize_data import Row, SpecializeError
from collegium.training.specialize_tokens import Format, branch_logprobs, choice_loss, collate, encode, pack
from specialize_tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM

ROWS = (
    Row("What is one?", "It is one."),
    Row("", "Plain text of a domain."),
    Row("Which is wet?", "water", ("sand", "water", "dry stone")),
    Row("Say yes.", "Yes."),
    Row("Which is two?", "1 + 1", ("1 + 1", "3")),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    folder = tiny_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def alone(model: LlamaForCausalLM, prefix: tuple[int, ...], branch: tuple[int, ...]) -> float:
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([prefix + branch])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[len(prefix) + n - 1, token]) for n, token in enumerate(branch))


def test_a_pack_scores_every_branch_as_if_it_were_alone(model: LlamaForCausalLM) -> None:
    samples = encode(ROWS, Format(tiny_tokenizer()), 512).samples
    with torch.no_grad():
        found = branch_logprobs(model, collate([samples]))
    wanted = [alone(model, sample.prefix, branch) for sample in samples for branch in sample.branches]
    assert found.tolist() == pytest.approx(wanted, abs=1e-3)


def test_choice_loss_is_the_share_of_the_right_choice(model: LlamaForCausalLM) -> None:
    samples = encode(ROWS, Format(tiny_tokenizer()), 512).samples
    inputs = collate([samples])
    with torch.no_grad():
        logprobs = branch_logprobs(model, inputs)
    wanted, scores = 0.0, iter(logprobs.tolist())
    for sample in samples:
        branches = [math.exp(next(scores)) for _ in sample.branches]
        wanted -= math.log(branches[sample.right] / sum(branches))
    assert float(choice_loss(logprobs, inputs)) == pytest.approx(wanted, rel=1e-4)


def test_only_the_right_response_counts_as_labels() -> None:
    form = Format(tiny_tokenizer())
    inputs = collate([encode(ROWS, form, 512).samples])
    learned = form.tokenizer.decode(inputs["labels"][inputs["labels"] >= 0])
    assert learned == "It is one.<|im_end|>lain text of a domain.<|im_end|> waterYes.<|im_end|> 1 + 1"


def test_a_turn_is_what_the_template_makes_it() -> None:
    read, write = Format(tiny_tokenizer()).turn("Say yes.", "Yes.")
    assert read == "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    assert write == "Yes.<|im_end|>"
    assert Format(tiny_tokenizer(template=None)).turn("Say yes.", "Yes.") == ("Say yes.\n\n", "Yes.<|im_end|>")


def test_a_template_that_rewrites_turns_is_refused() -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}go{% endif %}"
    with pytest.raises(SpecializeError, match="template"):
        Format(tiny_tokenizer(template))


def test_long_responses_are_cut_and_long_prompts_dropped() -> None:
    form = Format(tiny_tokenizer())
    encoded = encode([Row("Say it.", "word " * 200), Row("word " * 200, "Yes."), Row("Say yes.", "Yes.")], form, 100)
    assert (encoded.cut, encoded.dropped, len(encoded.samples)) == (1, 1, 2)
    assert max(map(len, encoded.samples)) == 100


def test_packs_hold_every_sample_once_within_their_size() -> None:
    rows = [Row(f"Say {n}.", "word " * (n % 7 + 1)) for n in range(50)]
    samples = encode(rows, Format(tiny_tokenizer()), 128).samples
    packs = pack(samples, 128, seed=3)
    assert sorted(sample.prefix for group in packs for sample in group) == sorted(sample.prefix for sample in samples)
    assert all(sum(map(len, group)) <= 128 for group in packs)
    assert packs == pack(samples, 128, seed=3) != pack(samples, 128, seed=4)


def test_a_batch_of_two_packs_is_refused() -> None:
    with pytest.raises(ValueError, match="one pack"):
        collate([[], []])

"""The count of operations against torch's own counter, over a forward and a backward pass with full logits."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from raysft.config import LoraConfig, TrainingConfig
from raysft.training.flops import Flops, peak
from raysft.training.model import trainable_model

LLAMA = LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, attn_implementation="eager",
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, attn_implementation="eager")


@pytest.mark.parametrize(("architecture", "shape"), [(LlamaForCausalLM, LLAMA), (GPT2LMHeadModel, GPT2)])
def test_operations_are_those_that_torch_counts(architecture: type[PreTrainedModel], shape: Any) -> None:
    """Eager attention computes both halves of Q K^T, of which a causal model needs one; embeddings cost nothing."""
    model = architecture(shape)
    samples, length = 3, 17
    tokens = torch.randint(0, 50, (samples, length))
    with FlopCounterMode(display=False) as counter:
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        model(inputs_embeds=embedded, use_cache=False).logits.sum().backward()
    flops = Flops(model)
    other_half = 3 * samples * length**2 * flops.attention
    found = flops.step([length] * samples, samples * length) + other_half
    assert found == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_frozen_weights_need_no_gradients() -> None:
    base = LlamaForCausalLM(LLAMA)
    whole = Flops(base)
    lora = Flops(trainable_model(base, TrainingConfig(precision="fp32", lora=LoraConfig(rank=1))))
    ranks = lora.forward - whole.forward  # the adapters' own products
    assert 0 < ranks < 0.3 * whole.forward
    assert lora.gradients == ranks
    assert lora.head == whole.head * 2 / 3


def test_a_processor_has_no_peak() -> None:
    assert torch.cuda.is_available() or peak() is None

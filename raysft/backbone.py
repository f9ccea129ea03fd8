"""A Hugging Face causal language model: loading, its hidden states and output weight, log p of its targets.

The loss head needs hidden states and the output layer, never the model's own logits; `load_model` therefore proves on
a few tokens that the two give exactly the logits that the model computes itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from raysft import attention
from raysft.config import BackboneConfig
from raysft.data.batch import Batch, Collate
from raysft.errors import InputError
from raysft.objectives import IGNORE_INDEX, Power, linear_objective
from raysft.store import fetched

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROUND_OFF = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-4, torch.float64: 1e-9}
LAYERS = {"full_attention", "sliding_attention"}  # of a configuration's layer_types
KNOWN = "Use another architecture (Llama, Qwen, Mistral, GPT-2, Gemma, Cohere, Granite, ...)."
PROOF = (0, 5, 12, 15)  # borders of the samples on which `pack` is proved
OWN_CODE = "Read that code; to run it, set trust_remote_code, and revision to the commit that you have read."
LOUD = 1000.0  # times the logits: a soft cap leaves small ones nearly alone


def _from_pretrained(loader: Any, config: BackboneConfig, **kwargs: Any) -> Any:
    try:
        return loader.from_pretrained(
            fetched(config.path),
            revision=config.revision,
            code_revision=config.revision,  # code that lies in another repository has no such commit, and is refused
            trust_remote_code=config.trust_remote_code,
            **kwargs,
        )
    except InputError:
        raise
    except UnpicklingError as error:
        reason = "has weights in a pickle, which could run any program."
        raise InputError(_place(config), reason, "Save it again with save_pretrained, as safetensors.") from error
    except Exception as error:  # the library raises many kinds; the user needs one sentence
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        fix = OWN_CODE if "custom code" in reason else "Check path, revision and access."
        raise InputError(_place(config), f"cannot be loaded: {reason}", fix) from error


def _place(config: BackboneConfig) -> str:
    return f"backbone '{config.name}' ({config.path})"


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer, with a pad token (the end token where it has none; padding is always masked).

    Raises InputError where it cannot be loaded or has no end token.
    """
    tokenizer = _from_pretrained(AutoTokenizer, config)
    if tokenizer.eos_token_id is None:
        raise InputError(
            _place(config),
            "the tokenizer has no end token, so a response could not be ended.",
            "Set eos_token in its tokenizer_config.json.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: BackboneConfig, precision: str = "fp32") -> PreTrainedModel:
    """The backbone in eval mode on the CPU, weights in `precision` ("bf16" or "fp32"), from safetensors only.

    Raises InputError where it cannot be loaded whole, or where its logits are not hidden states times output weight.
    """
    _from_pretrained(AutoConfig, config)
    model, info = _from_pretrained(
        AutoModelForCausalLM, config, dtype=DTYPES[precision], use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):  # which the library would fill with random numbers
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        reason = f"weights of a {type(model).__name__} are missing: {listed}."
        raise InputError(_place(config), reason, "Use a whole causal language model, saved with save_pretrained.")
    model.config.use_cache = False
    _check_head(model, config)
    return model.eval()


def decoder(model: PreTrainedModel) -> nn.Module:
    """The model without its output layer."""
    return getattr(model, model.base_model_prefix)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, after which every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def hidden_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Last hidden states [B, T, H] of a batch's tokens [B, T]."""
    with attention.within_samples(batch) as asked:
        return decoder(model)(input_ids=batch.input_ids, use_cache=False, **asked).last_hidden_state


def collate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Collate:
    """Makes the batches that the model can take."""
    return Collate(int(tokenizer.pad_token_id), attention.packs(model))


@torch.no_grad()
def pack(model: PreTrainedModel) -> str | None:
    """Let the model take packed rows, or say why it cannot: then it is as before, and `collate` pads.

    Proved on two rows that differ in their first sample: the hidden states of the others must not notice, and must be
    those of the samples alone.
    """
    before = model.config._attn_implementation
    vocabulary = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    tokens = torch.arange(PROOF[-1], device=model.device).remainder(vocabulary)
    samples = [tokens[start:end] for start, end in pairwise(PROOF)]
    alone = torch.cat([hidden_states(model, _row([sample]))[0] for sample in samples])
    model.set_attn_implementation(attention.NAME)
    reason = _why_not_packed(model, samples, alone)
    if reason is not None:
        model.set_attn_implementation(before)
    return reason


def other_layers(model: PreTrainedModel) -> str | None:
    """The model's attention layers of a kind that is not known here, such as Llama 4's, which see a chunk of the row:
    a few tokens cannot tell them from the known ones."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or LAYERS)
    return f"it has layers of another kind ({', '.join(sorted(kinds - LAYERS))})" if kinds - LAYERS else None


def _why_not_packed(model: PreTrainedModel, samples: list[torch.Tensor], alone: torch.Tensor) -> str | None:
    """alone [T, H]: the samples' hidden states, one by one."""
    if not attention.packs(model):
        return "its code does not let the attention be chosen"
    try:
        packed = hidden_states(model, _row(samples))[0]
        others = hidden_states(model, _row([samples[0].flip(0), *samples[1:]]))[0]
    except Exception as error:  # an architecture refuses what it does not know in its own way, and rows can be padded
        return (str(error).strip() or repr(error)).splitlines()[0]
    first = len(samples[0])
    if not torch.equal(packed[first:], others[first:]):
        return "its tokens see the sample before theirs in a row"
    close = ROUND_OFF[alone.dtype] * float(alone.abs().max())
    if not torch.allclose(packed, alone, rtol=0, atol=close):
        return "its hidden states in a row are not those of the samples alone"
    return other_layers(model)


def _row(samples: list[torch.Tensor]) -> Batch:
    tokens = torch.cat(samples)[None]
    return Batch(tokens, tokens, tuple(map(len, samples)), packed=len(samples) > 1)


def shifted(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that predict and what they predict: [B, T, H], [B, T] -> [B(T-1), H], [B(T-1)]."""
    return hidden[:, :-1].reshape(-1, hidden.shape[-1]), labels[:, 1:].reshape(-1)


@torch.no_grad()
def token_logp(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """fp32 log p of every supervised token, in order: [supervised]."""
    rows, targets = shifted(hidden_states(model, batch), batch.labels)
    output = model.get_output_embeddings()
    nll = Power()
    logp = linear_objective(rows, output.weight, targets, nll, bias=output.bias, **output_transform(model))[3]
    return logp[targets != IGNORE_INDEX]


def output_transform(model: PreTrainedModel) -> dict[str, Any]:
    """What the model does to its output layer's logits: `scale` and `softcap` of the loss head.

    By the names that transformers' configurations have for it: logit_scale (Cohere), logits_scaling (Granite),
    final_logit_softcapping (Gemma 2).
    """
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return {"scale": scale / divisor, "softcap": getattr(config, "final_logit_softcapping", None)}


def logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The model's own logits of hidden states: [..., H] -> [..., V], in its dtype."""
    transform = output_transform(model)
    z = cast(nn.Linear, model.get_output_embeddings())(hidden)
    if transform["scale"] != 1:
        z = z * transform["scale"]
    softcap = transform["softcap"]
    return z if softcap is None else torch.tanh(z / softcap) * softcap


@torch.no_grad()
def _check_head(model: PreTrainedModel, config: BackboneConfig) -> None:
    """Compares on 8 tokens, quietly and so loudly that no soft cap goes unseen."""
    place = _place(config)
    output = model.get_output_embeddings()
    if not hasattr(model, model.base_model_prefix):
        raise InputError(place, f"{type(model).__name__} has no part '{model.base_model_prefix}'.", KNOWN)
    if not isinstance(output, nn.Linear):
        raise InputError(place, "has no linear output layer over the vocabulary.", "Use a causal language model.")
    tokens = torch.arange(8).remainder(output.weight.shape[0]).unsqueeze(0)
    mask = torch.ones_like(tokens)
    hidden = decoder(model)(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    for loudness in (1.0, LOUD):
        loud = output.register_forward_hook(lambda *call, by=loudness: by * call[-1])
        try:
            own = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.float()
            ours = logits(model, hidden).float()
        finally:
            loud.remove()
        if not torch.allclose(own, ours, rtol=1e-3, atol=1e-3 * float(own.abs().max())):
            raise InputError(
                place,
                f"{type(model).__name__} changes its logits after the output layer in a way that is not known here, "
                "and the loss head would train something else.",
                KNOWN,
            )

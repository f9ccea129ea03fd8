"""Backbones that cannot be used are refused by name; those that can give the log p that their own logits give."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from raysft import attention
from raysft.backbone import decoder, hidden_states, load_model, load_tokenizer, pack, shifted, token_logp
from raysft.config import BackboneConfig
from raysft.data.batch import Batch, Collate
from raysft.errors import InputError
from raysft.quiet import libraries_quiet

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 46,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GEMMA = {**SHAPE, "head_dim": 8}
SIGLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
BERT = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
GPT2 = {"vocab_size": 46, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
T5 = {"vocab_size": 46, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}


# A window of 4 is shorter than most samples of the tests.
PACKED = [
    (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    (Qwen3ForCausalLM, Qwen3Config(**GEMMA)),
    (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=4)),
    (GPT2LMHeadModel, GPT2Config(**GPT2, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0)),
    (PhiForCausalLM, PhiConfig(**SHAPE)),
    (Gemma2ForCausalLM, Gemma2Config(**GEMMA, sliding_window=4, attn_logit_softcapping=0.5)),
    (Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA, sliding_window=4)),
    (SmolLM3ForCausalLM, SmolLM3Config(**SHAPE)),
    (
        Gemma3ForConditionalGeneration,  # its larger ones read images too
        Gemma3Config(
            text_config=Gemma3TextConfig(**GEMMA, sliding_window=4), vision_config=SiglipVisionConfig(**SIGLIP)
        ),
    ),
]


def name_of(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else ""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    libraries_quiet()


@pytest.fixture
def copy(tiny_backbone: Path, tmp_path: Path) -> Path:
    """The tiny backbone in a folder that may be damaged."""
    return Path(shutil.copytree(tiny_backbone, tmp_path / "copy"))


def named(folder: Path | str) -> BackboneConfig:
    return BackboneConfig(name="mine", path=str(folder))


def refusal(read: Callable[[BackboneConfig], Any], folder: Path | str) -> InputError:
    with pytest.raises(InputError) as caught:
        read(named(folder))
    assert caught.value.place == f"backbone 'mine' ({folder})"
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    return caught.value


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


# --- tokenizers -----------------------------------------------------------------------------------------------------


def test_missing_tokenizer_is_refused(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert "cannot be loaded" in refusal(load_tokenizer, copy).reason


def test_damaged_tokenizer_is_refused(copy: Path) -> None:
    file = copy / "tokenizer.json"
    file.write_text(file.read_text()[:100])
    assert "cannot be loaded" in refusal(load_tokenizer, copy).reason


def test_tokenizer_without_end_token_is_refused(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", lambda values: values.pop("eos_token"))
    assert "no end token" in refusal(load_tokenizer, copy).reason


def test_tokenizer_without_pad_token_pads_with_the_end_token(copy: Path) -> None:
    assert load_tokenizer(named(copy)).pad_token == "<pad>"
    edit(copy / "tokenizer_config.json", lambda values: values.pop("pad_token"))
    tokenizer = load_tokenizer(named(copy))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


# --- models ---------------------------------------------------------------------------------------------------------


def test_missing_folder_and_hub_id_out_of_reach_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", "nobody-at-all/no-such-model"):
        for read in (load_model, load_tokenizer):
            assert "cannot be loaded" in refusal(read, path).reason


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
        lambda folder: edit(folder / "config.json", lambda values: values.update(vocab_size=20)),
        lambda folder: edit(folder / "config.json", lambda values: values.update(model_type="no-such-type")),
        lambda folder: edit_weights(folder, lambda w: w.update({"model.norm.weight": torch.zeros(3)})),
    ],
    ids=["no config", "bad config", "no weights", "bad weights", "other vocabulary", "unknown type", "other shape"],
)
def test_damaged_model_is_refused(copy: Path, damage: Callable[[Path], object]) -> None:
    damage(copy)
    assert "cannot be loaded" in refusal(load_model, copy).reason


def test_truncated_weights_are_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "cannot be loaded" in refusal(load_model, copy).reason


def test_pickled_weights_are_not_read(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert "safetensors" in refusal(load_model, copy).reason


def test_missing_weights_are_refused_and_not_drawn_at_random(copy: Path) -> None:
    edit_weights(copy, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    assert "are missing: model.layers.1.mlp.up_proj.weight." in refusal(load_model, copy).reason


def test_weights_of_no_use_are_left_alone(copy: Path) -> None:
    edit_weights(copy, lambda weights: weights.update({"something.else": torch.zeros(3)}))
    assert load_model(named(copy)).num_parameters() > 0


def test_classifier_and_translator_are_refused(tmp_path: Path) -> None:
    classifier = saved(LlamaForSequenceClassification(LlamaConfig(**SHAPE)), tmp_path / "classifier")
    assert "are missing: lm_head.weight" in refusal(load_model, classifier).reason
    translator = saved(T5ForConditionalGeneration(T5Config(**T5)), tmp_path / "translator")
    assert "cannot be loaded" in refusal(load_model, translator).reason


def test_a_decoder_that_is_not_found_is_refused(tmp_path: Path) -> None:
    config = Llama4TextConfig(**SHAPE, head_dim=8, intermediate_size_mlp=64, num_local_experts=2)
    error = refusal(load_model, saved(Llama4ForCausalLM(config), tmp_path / "model"))
    assert error.reason == "Llama4ForCausalLM has no part 'language_model'."


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("model", "config"),
    [
        (BertLMHeadModel, BertConfig(**BERT, is_decoder=True)),
        (Gemma2ForCausalLM, Gemma2Config(**GEMMA, final_logit_softcapping=30.0)),
        (Gemma2ForCausalLM, Gemma2Config(**GEMMA, final_logit_softcapping=0.5)),
        (GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=8.0)),
        (CohereForCausalLM, CohereConfig(**SHAPE, logit_scale=0.0625)),
    ],
    ids=["transformed", "soft cap", "hard cap", "divided", "multiplied"],
)
def test_logits_that_are_made_in_an_unknown_way_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: type[PreTrainedModel], config: Any, precision: str
) -> None:
    """Also a cap that the small logits of an untrained model hardly feel. (The caps and scales are made unknown.)"""
    monkeypatch.setattr("raysft.backbone.output_transform", lambda model: {"scale": 1.0, "softcap": None})
    torch.manual_seed(0)
    folder = saved(model(config), tmp_path / "model")
    error = refusal(lambda c: load_model(c, precision), folder)
    assert error.reason.startswith(f"{model.__name__} changes its logits")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("model", "config"),
    [
        (Gemma2ForCausalLM, Gemma2Config(**GEMMA, final_logit_softcapping=None)),
        (Gemma2ForCausalLM, Gemma2Config(**GEMMA, final_logit_softcapping=30.0)),
        (Gemma2ForCausalLM, Gemma2Config(**GEMMA, final_logit_softcapping=0.5)),
        (GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=8.0)),
        (CohereForCausalLM, CohereConfig(**SHAPE, logit_scale=0.0625)),
        (Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA)),
        (GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=1.0)),
        (GPT2LMHeadModel, GPT2Config(**GPT2)),
        (PhiForCausalLM, PhiConfig(**SHAPE)),
        (Qwen3ForCausalLM, Qwen3Config(**GEMMA)),
    ],
    ids=name_of,
)
def test_other_architectures_load_and_give_their_own_log_p(
    tmp_path: Path, model: type[PreTrainedModel], config: Any, precision: str
) -> None:
    """Phi has a bias in its output layer, GPT-2 calls its decoder by another name, the Gemmas tie, scale and cap."""
    torch.manual_seed(0)
    loaded = load_model(named(saved(model(config), tmp_path / "model")), precision)
    assert loaded.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert not loaded.training
    if loaded.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(loaded.get_output_embeddings().bias)
    compare_with_naive(loaded, tolerance=1e-5 if precision == "fp32" else 0.03)


# --- log p ----------------------------------------------------------------------------------------------------------


def compare_with_naive(model: PreTrainedModel, tolerance: float) -> None:
    """token_logp against a softmax of the model's own logits in float64, one sample at a time and without padding."""
    torch.manual_seed(1)
    tokens = torch.randint(2, 46, (3, 9))
    labels = torch.full_like(tokens, -100)
    lengths = (9, 5, 2)
    expected = []
    exact = deepcopy(model).double() if model.dtype == torch.float32 else model
    for row, (length, start) in enumerate(zip(lengths, (4, 1, 1), strict=True)):
        labels[row, start:length] = tokens[row, start:length]
        with torch.no_grad():
            logits = exact(input_ids=tokens[row : row + 1, :length]).logits[0].double()
        logp = torch.log_softmax(logits, dim=-1)
        expected += [logp[at - 1, tokens[row, at]] for at in range(start, length)]
    found = token_logp(model, Batch(tokens, labels, lengths, packed=False))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=tolerance, atol=tolerance)


# --- packed rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("model", "config"), PACKED, ids=name_of)
def test_packed_samples_have_the_log_p_that_they_have_alone(
    tmp_path: Path, model: type[PreTrainedModel], config: Any, precision: str
) -> None:
    """Log p and the gradient of its sum; windows shorter than a sample among them."""
    torch.manual_seed(0)
    loaded = load_model(named(saved(model(config), tmp_path / "model")), precision)
    lengths = (13, 5, 70, 2, 9)  # 70: in bf16 on a CPU long enough for products of another kind
    tokens = [torch.randint(2, 46, (n,)) for n in lengths]
    alone = deepcopy(loaded)
    assert pack(loaded) is None
    assert attention.packs(loaded)
    packed = Collate(0, packed=True)([(t.numpy(), t.numpy()) for t in tokens])
    found, gradient = logp_and_gradient(loaded, packed)
    parts = [logp_and_gradient(alone, Batch(t[None], t[None], (len(t),), packed=False)) for t in tokens]
    expected, expected_gradient = torch.cat([logp for logp, _ in parts]), sum(g for _, g in parts)
    tolerance = 1e-5 if precision == "fp32" else 0.05
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance * scale)


def logp_and_gradient(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p of every label, and the gradient of their sum by the embeddings."""
    rows, targets = shifted(hidden_states(model, batch), batch.labels)
    logits = model.get_output_embeddings()(rows)[targets != -100].float()
    logp = logits.log_softmax(-1).gather(1, targets[targets != -100, None])[:, 0]
    embedding = model.get_input_embeddings().weight
    (gradient,) = torch.autograd.grad(logp.sum(), embedding)
    return logp.detach(), gradient.float()


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "config"), PACKED, ids=name_of)
def test_flash_attention_gives_packed_samples_the_log_p_that_they_have_alone(
    tmp_path: Path, model: type[PreTrainedModel], config: Any
) -> None:
    """bf16 on a GPU: torch's variable-length kernel, but for soft caps."""
    torch.manual_seed(0)
    loaded = load_model(named(saved(model(config), tmp_path / "model")), "bf16").cuda()
    alone = deepcopy(loaded)
    tokens = [torch.randint(2, 46, (n,)) for n in (13, 5, 70, 2, 9)]
    assert pack(loaded) is None
    packed = Collate(0, packed=True)([(t.numpy(), t.numpy()) for t in tokens])
    found, gradient = logp_and_gradient(loaded, packed.to("cuda"))
    batches = [Batch(t[None], t[None], (len(t),), packed=False).to("cuda") for t in tokens]
    parts = [logp_and_gradient(alone, batch) for batch in batches]
    expected, expected_gradient = torch.cat([logp for logp, _ in parts]), sum(g for _, g in parts)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient, rtol=0.05, atol=0.05 * scale)


@pytest.mark.parametrize(("model", "config"), PACKED, ids=name_of)
def test_a_model_that_packs_gives_other_callers_what_it_gave_before(
    tmp_path: Path, model: type[PreTrainedModel], config: Any
) -> None:
    """Padded batches, positions that restart without our packing, and generation with a cache."""
    torch.manual_seed(0)
    before = load_model(named(saved(model(config), tmp_path / "model")))
    loaded = deepcopy(before)
    assert pack(loaded) is None
    tokens = torch.randint(2, 46, (2, 9))
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with torch.no_grad():
        for call in (
            {"input_ids": tokens, "attention_mask": mask},
            {"input_ids": tokens[:1], "position_ids": positions},
        ):
            found, expected = (m(**call).logits for m in (loaded, before))
            torch.testing.assert_close(found[mask[: len(found)] == 1], expected[mask[: len(found)] == 1])
        written = [
            m.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=True)
            for m in (loaded, before)
        ]
    assert torch.equal(*written)
    loaded.save_pretrained(tmp_path / "again")
    assert attention.NAME not in (tmp_path / "again" / "config.json").read_text()


@pytest.mark.parametrize(
    ("model", "config", "reason"),
    [
        (MambaForCausalLM, MambaConfig(vocab_size=46, hidden_size=32, num_hidden_layers=2), "see the sample before"),
        (BloomForCausalLM, BloomConfig(vocab_size=46, hidden_size=32, n_layer=2, n_head=4), "attention be chosen"),
    ],
)
def test_a_model_that_cannot_keep_samples_apart_pads(
    tmp_path: Path, model: type[PreTrainedModel], config: Any, reason: str
) -> None:
    torch.manual_seed(0)
    loaded = load_model(named(saved(model(config), tmp_path / "model")))
    assert reason in str(pack(loaded))
    assert not attention.packs(loaded)
    compare_with_naive(loaded, tolerance=1e-4)


def test_layers_that_few_tokens_cannot_tell_from_the_known_ones_pad(tiny_backbone: Path) -> None:
    loaded = load_model(named(tiny_backbone))
    loaded.config.layer_types = ["full_attention", "chunked_attention"]
    assert pack(loaded) == "it has layers of another kind (chunked_attention)"
    assert not attention.packs(loaded)


@pytest.mark.parametrize(
    ("leak", "reason"),
    [
        (lambda batch: {"position_ids": attention.Packing(batch.lengths, CPU).positions}, "see the sample before"),
        (lambda batch: {"packing": attention.Packing(batch.lengths, CPU)}, "not those of the samples alone"),
    ],
    ids=["attention", "positions"],
)
def test_a_leak_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leak: Callable[[Batch], dict[str, Any]], reason: str
) -> None:
    """As an architecture would leak that does not hand on the packing, or (learned) positions."""
    torch.manual_seed(0)
    loaded = load_model(named(saved(GPT2LMHeadModel(GPT2Config(**GPT2)), tmp_path / "model")))
    whole = attention.within_samples

    @contextmanager
    def leaking(batch: Batch) -> Iterator[dict[str, Any]]:
        with whole(batch) as asked:
            yield leak(batch) if batch.packed else asked

    monkeypatch.setattr(attention, "within_samples", leaking)
    assert reason in str(pack(loaded))
    assert not attention.packs(loaded)


def test_log_p_is_that_of_the_logits(tiny_backbone: Path) -> None:
    model = load_model(named(tiny_backbone))
    compare_with_naive(model, 1e-5)
    assert decoder(model) is model.model
    tokens = torch.randint(0, 46, (2, 5))
    assert hidden_states(model, Batch(tokens, tokens, (5, 5), packed=False)).shape == (2, 5, 32)

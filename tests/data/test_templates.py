from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from raysft.data.sources import Example
from raysft.data.templates import FIXED, check_tokens, segments
from raysft.errors import InputError

SYSTEM = "You are a helpful assistant."
QWEN = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA3 = f"<|begin_of_text|>{HEADER.format('system')}{SYSTEM}<|eot_id|>{HEADER.format('user')}What?<|eot_id|>"


@pytest.mark.parametrize(
    ("name", "prompt", "response"),
    [
        ("qwen", QWEN, "{4}<|im_end|>"),
        ("llama3", LLAMA3 + HEADER.format("assistant"), "{4}<|eot_id|>"),
        ("deepseek", "<s>User: What?\n\nAssistant:", " {4}</s>"),
        ("plain", "What?", "{4}</s>"),
    ],
)
def test_the_paper_s_strings(
    tokenizer: PreTrainedTokenizerFast, make_example: Callable[..., Example], name: str, prompt: str, response: str
) -> None:
    check_tokens(tokenizer, name)
    assert segments(make_example("What?", "{4}"), tokenizer, name) == [(prompt, False), (response, True)]


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (
            "qwen",
            [
                "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
                "b<|im_end|>",
                "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
                "d<|im_end|>",
            ],
        ),
        ("deepseek", ["<s>s\n\nUser: a\n\nAssistant:", " b</s>", "User: c\n\nAssistant:", " d</s>"]),
    ],
)
def test_several_turns_and_an_own_system_message(
    tokenizer: PreTrainedTokenizerFast, make_example: Callable[..., Example], name: str, texts: list[str]
) -> None:
    parts = segments(make_example("a", "b", "c", "d", system="s"), tokenizer, name)
    assert [text for text, _ in parts] == texts
    assert [supervised for _, supervised in parts] == [False, True, False, True]


@pytest.mark.parametrize(("contents", "system"), [(("a", "b"), "s"), (("a", "b", "c", "d"), None)])
def test_plain_takes_a_single_turn(
    tokenizer: PreTrainedTokenizerFast,
    make_example: Callable[..., Example],
    contents: tuple[str, ...],
    system: str | None,
) -> None:
    example = make_example(*contents, system=system, origin="train.jsonl line 7")
    with pytest.raises(InputError, match=r"train\.jsonl line 7: the template plain takes one prompt and one response"):
        segments(example, tokenizer, "plain")


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("qwen", "<|im_start|>"),
        ("llama3", "<|begin_of_text|>"),
        ("deepseek", "bos_token"),
        ("plain", "eos_token"),
    ],
)
def test_a_tokenizer_without_the_template_s_tokens_is_refused(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], name: str, token: str
) -> None:
    bare = make_tokenizer(special=[], bos=None, eos=None)
    with pytest.raises(InputError, match="has no single token") as error:
        check_tokens(bare, name)
    assert error.value.place == f"data.template {name}"
    assert f"'{token}'" in error.value.reason


def test_every_configured_template_exists() -> None:
    assert set(FIXED) == {"qwen", "llama3", "deepseek", "plain"}

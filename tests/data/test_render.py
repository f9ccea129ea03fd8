from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from raysft.data.render import end_token_ids, render, render_all, render_prompt
from raysft.data.sources import Example
from raysft.errors import InputError

TEMPLATES = ["chat", "qwen", "llama3", "deepseek", "plain"]
CONVERSATION = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
MakeExample = Callable[..., Example]
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20).map(lambda text: f"x{text}y")


def decoded(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def runs(supervised: list[bool]) -> list[tuple[int, int]]:
    """Start and end of every run of supervised tokens."""
    edges = [i for i, (a, b) in enumerate(pairwise([False, *supervised, False])) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_response_and_its_end_are_supervised_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast, make_example: MakeExample, template: str
) -> None:
    tokens, supervised = render(make_example("What is two plus two?", "It is four."), tokenizer, template)
    assert len(tokens) == len(supervised)
    ((start, end),) = runs(supervised)
    assert start > 0
    assert end == len(tokens)
    assert tokens[-1] in end_token_ids(tokenizer, template)
    assert decoded(tokenizer, tokens[start : end - 1]).lstrip() == "It is four."


@pytest.mark.parametrize("template", ["chat", "qwen", "llama3", "deepseek"])
def test_every_assistant_turn_is_supervised(
    tokenizer: PreTrainedTokenizerFast, make_example: MakeExample, template: str
) -> None:
    tokens, supervised = render(make_example("a", "two", "b", "four", "c", "six"), tokenizer, template)
    spans = runs(supervised)
    assert [decoded(tokenizer, tokens[s : e - 1]).strip() for s, e in spans] == ["two", "four", "six"]
    assert len({tokens[e - 1] for _, e in spans}) == 1
    assert tokens[spans[0][1] - 1] in end_token_ids(tokenizer, template)


@given(contents=st.lists(texts, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0), system=st.none() | texts)
@pytest.mark.parametrize("template", ["chat", "qwen", "llama3", "deepseek"])
def test_a_model_generates_from_what_it_was_trained_on(
    tokenizer: PreTrainedTokenizerFast,
    make_example: MakeExample,
    template: str,
    contents: list[str],
    system: str | None,
) -> None:
    example = make_example(*contents, system=system)
    tokens, supervised = render(example, tokenizer, template)
    prompt = render_prompt(example, tokenizer, template)
    assert tokens[: len(prompt)] == prompt
    assert all(supervised[len(prompt) :])
    assert len(runs(supervised)) == len(contents) // 2
    without_response = make_example(*contents[:-1], "xanother responsey", system=system)
    assert render_prompt(without_response, tokenizer, template) == prompt  # nothing of the response is in it
    assert decoded(tokenizer, tokens[len(prompt) : -1]).lstrip(" ") == contents[-1].lstrip(" ")


@given(contents=st.lists(texts, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0))
def test_the_chat_template_s_own_tokens_are_kept(
    tokenizer: PreTrainedTokenizerFast, make_example: MakeExample, contents: list[str]
) -> None:
    example = make_example(*contents)
    own = tokenizer.apply_chat_template(example.messages)["input_ids"]
    tokens, _ = render(example, tokenizer, "chat")
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert tokens + newline == own
    prompt = tokenizer.apply_chat_template(example.prompt_messages, add_generation_prompt=True)["input_ids"]
    assert render_prompt(example, tokenizer, "chat") == prompt


@pytest.mark.parametrize("template", TEMPLATES)
def test_many_samples_are_rendered_as_each_alone(
    tokenizer: PreTrainedTokenizerFast, make_example: MakeExample, template: str
) -> None:
    examples = [make_example("word " * n, "four " * (5 - n) + ".") for n in range(1, 5)]
    assert render_all(examples, tokenizer, template) == [render(e, tokenizer, template) for e in examples]
    assert render_all([], tokenizer, template) == []


def test_plain_adds_nothing_but_the_end(tokenizer: PreTrainedTokenizerFast, make_example: MakeExample) -> None:
    tokens, supervised = render(make_example("two", "four"), tokenizer, "plain")
    prompt, response = (tokenizer.encode(text, add_special_tokens=False) for text in ("two", "four"))
    assert tokens == [*prompt, *response, tokenizer.eos_token_id]
    assert supervised == [False] * len(prompt) + [True] * (len(response) + 1)


def test_prompt_and_response_do_not_merge(tokenizer: PreTrainedTokenizerFast, make_example: MakeExample) -> None:
    whole = tokenizer.encode("What", add_special_tokens=False)
    tokens, _ = render(make_example("Wh", "at"), tokenizer, "plain")
    assert len(whole) == 1
    assert tokens[0] not in whole
    assert decoded(tokenizer, tokens[:-1]) == "What"


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("chat", ["</s>", "<|im_end|>"]),
        ("qwen", ["</s>", "<|im_end|>"]),
        ("llama3", ["</s>", "<|eot_id|>"]),
        ("deepseek", ["</s>"]),
        ("plain", ["</s>"]),
    ],
)
def test_end_tokens(tokenizer: PreTrainedTokenizerFast, template: str, ends: list[str]) -> None:
    assert end_token_ids(tokenizer, template) == sorted(tokenizer.convert_tokens_to_ids(ends))


def test_what_follows_the_end_token_is_not_supervised(make_tokenizer: MakeTokenizer, make_example: MakeExample) -> None:
    """A template that writes an end of the turn and, after the last turn, an end of the text."""
    tokenizer = make_tokenizer(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% else %}</s>{% endif %}"
    )
    example = make_example("a", "two", "b", "four")
    tokens, supervised = render(example, tokenizer, "chat")
    first = "user: a<|im_end|>\nassistant: two<|im_end|>"
    assert decoded(tokenizer, tokens) == first + "\nuser: b<|im_end|>\nassistant: four<|im_end|>"
    assert [decoded(tokenizer, tokens[s:e]) for s, e in runs(supervised)] == [" two<|im_end|>", " four<|im_end|>"]


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (None, r"has no chat template\. Set data\.template to a fixed one: qwen, llama3, deepseek or plain"),
        ("{{ messages[-1].content }}", "ends a response with no special token"),
        ("{{ messages[-1].content + 1 }}", "chat template refuses: can only concatenate str"),
        ("{{ messages[9].content }}", "chat template refuses: .* has no element 9"),
        # drops what an assistant wrote before the last turn
        (
            "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.role }}: {{ m.content }}</s>"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
            r"line 3: the tokenizer's chat template rewrites earlier turns.*Set data\.template",
        ),
    ],
)
def test_chat_templates_that_cannot_be_trained_on_are_refused(
    make_tokenizer: MakeTokenizer, make_example: MakeExample, chat_template: str | None, message: str
) -> None:
    example = make_example("a", "two", "b", "thought|four", origin="train.jsonl line 3")
    with pytest.raises(InputError, match=message):
        render(example, make_tokenizer(chat_template), "chat")


def test_a_chat_template_that_shortens_responses_is_refused(
    make_tokenizer: MakeTokenizer, make_example: MakeExample
) -> None:
    tokenizer = make_tokenizer(
        CONVERSATION.replace("m.content", "m.content.split('|')[-1] if m.role == 'assistant' else m.content")
    )
    render(make_example("two", "four"), tokenizer, "chat")
    for prompt in ("two", "Say thought|four"):
        with pytest.raises(InputError, match="line 3: the tokenizer's chat template leaves out a part of the response"):
            render(make_example(prompt, "thought|four", origin="train.jsonl line 3"), tokenizer, "chat")


def test_a_chat_template_that_does_not_go_on_from_its_prompt_is_refused(
    make_tokenizer: MakeTokenizer, make_example: MakeExample
) -> None:
    tokenizer = make_tokenizer(CONVERSATION + "{% if add_generation_prompt %} Let me think.{% endif %}")
    for response in ("four", "It is four. " * 9):
        with pytest.raises(InputError, match="line 3: the tokenizer's chat template rewrites earlier turns"):
            render(make_example("a", response, origin="train.jsonl line 3"), tokenizer, "chat")


def test_a_template_s_date_is_fixed(make_tokenizer: MakeTokenizer, make_example: MakeExample) -> None:
    tokenizer = make_tokenizer(
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    )
    prompt = render_prompt(make_example("a", "b"), tokenizer, "chat")
    assert decoded(tokenizer, prompt) == "26 Jul 2024a</s>"


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_an_empty_prompt_is_refused(make_tokenizer: MakeTokenizer, make_example: MakeExample, template: str) -> None:
    bare = make_tokenizer(
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    with pytest.raises(InputError, match=r"line 4: the prompt has no tokens"):
        render(make_example("", "b", origin="train.jsonl line 4"), bare, template)

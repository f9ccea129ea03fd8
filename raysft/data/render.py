"""A sample as tokens: what a model reads, and which of it is supervised (every response and its end token)."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from raysft.data.sources import Example, Message
from raysft.data.templates import FIXED, Segment, check_tokens, segments
from raysft.errors import InputError

Rendered = tuple[list[int], list[bool]]
USE_FIXED = "Set data.template to a fixed one: qwen, llama3, deepseek or plain."
CHAT_DATE = "26 Jul 2024"  # Llama 3 writes the date into its prompts: a fixed one, so that runs can be repeated


def render(example: Example, tokenizer: PreTrainedTokenizerBase, template: str) -> Rendered:
    """Tokens [T] of the sample and whether each is supervised [T]; template as in data.template.

    Raises InputError where the template does not fit the tokenizer or the sample.
    """
    return render_all([example], tokenizer, template)[0]


def render_all(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, template: str) -> list[Rendered]:
    """`render` of each sample, tokenised together."""
    if template == "chat":
        end = _turn_end(tokenizer)
        texts = [_chat_texts(example, tokenizer) for example in examples]
        encoded = _encode_groups(texts, tokenizer)
        return [_chat(example, ids, end) for example, ids in zip(examples, encoded, strict=True)]
    check_tokens(tokenizer, template)
    parts = [segments(example, tokenizer, template) for example in examples]
    encoded = _encode_groups([[text for text, _ in sample] for sample in parts], tokenizer)
    return [_fixed(e, p, ids) for e, p, ids in zip(examples, parts, encoded, strict=True)]


def render_prompt(example: Example, tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """The tokens that a model generates the last response from: exactly those that precede it in `render`."""
    tokens, supervised = render(example, tokenizer, template)
    last = len(tokens) - 1
    while supervised[last]:
        last -= 1
    return tokens[: last + 1]


def end_token_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """The ids that end a generated response: the template's end of a turn and the tokenizer's eos, sorted."""
    if template == "chat":
        end = _turn_end(tokenizer)
    else:
        check_tokens(tokenizer, template)
        own = {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
        end = _encode([FIXED[template].response.format(content="", **own)], tokenizer)[0][-1]
    ends = {end, tokenizer.eos_token_id} - {None}
    return sorted(ends)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _encode_groups(groups: list[list[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[list[int]]]:
    """The ids of every text, in the groups they came in: one call, because that uses all cores."""
    ids = iter(_encode([text for group in groups for text in group], tokenizer))
    return [[next(ids) for _ in group] for group in groups]


def _fixed(example: Example, parts: list[Segment], ids: list[list[int]]) -> Rendered:
    _check_prompt(example, ids[0])
    tokens = [token for segment in ids for token in segment]
    supervised = [is_response for (_, is_response), segment in zip(parts, ids, strict=True) for _ in segment]
    return tokens, supervised


def _check_prompt(example: Example, prompt: list[int]) -> None:
    if not prompt:
        raise InputError(
            example.origin, "the prompt has no tokens, so there is nothing to respond to.", "Remove the sample."
        )


# --- the tokenizer's own chat template ------------------------------------------------------------------------------


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[Message], place: str, prompt: bool) -> str:
    """The conversation as the chat template writes it; prompt: up to where the assistant's next turn begins."""
    if tokenizer.chat_template is None:
        raise InputError(
            "data.template chat", f"the tokenizer '{tokenizer.name_or_path}' has no chat template.", USE_FIXED
        )
    options: dict[str, Any] = {"date_string": CHAT_DATE}
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False, **options))
    except Exception as error:  # a template is a program: it refuses with errors of its own
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        raise InputError(place, f"the tokenizer's chat template refuses: {reason}.", USE_FIXED) from error


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The first special token that the chat template puts after a response."""
    place, response = f"tokenizer '{tokenizer.name_or_path}'", "A response."
    turns = [{"role": "user", "content": "A prompt."}, {"role": "assistant", "content": response}]
    after = _apply(tokenizer, turns, place, prompt=False).rpartition(response)[2]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for token in _encode([after], tokenizer)[0]:
        if token in special:
            return token
    raise InputError(
        place, "its chat template ends a response with no special token, so a model would not learn to stop.", USE_FIXED
    )


def _chat_texts(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """For each assistant turn: the conversation before it, as a prompt, and the conversation up to its end."""
    texts = []
    for turn, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        prompt = _apply(tokenizer, example.messages[:turn], example.origin, prompt=True)
        whole = _apply(tokenizer, example.messages[: turn + 1], example.origin, prompt=False)
        if "".join(message["content"].split()) not in "".join(whole.removeprefix(prompt).split()):
            raise InputError(
                example.origin, "the tokenizer's chat template leaves out a part of the response.", USE_FIXED
            )
        texts += [prompt, whole]
    return texts


def _chat(example: Example, ids: list[list[int]], end: int) -> Rendered:
    """ids: of `_chat_texts`. Each turn must go on from the tokens of the turns before it."""
    tokens: list[int] = []
    supervised: list[bool] = []
    for prompt, whole in zip(ids[::2], ids[1::2], strict=True):
        _check_prompt(example, prompt)
        response = whole[len(prompt) :]
        if prompt[: len(tokens)] != tokens or whole[: len(prompt)] != prompt or end not in response:
            raise InputError(
                example.origin,
                "the tokenizer's chat template rewrites earlier turns: its tokens for a conversation do not go on "
                "from its tokens for the conversation's beginning.",
                USE_FIXED,
            )
        while response[-1] != end:  # what follows the end token is never generated
            response.pop()
        supervised += [False] * (len(prompt) - len(tokens)) + [True] * len(response)
        tokens = prompt + response
    return tokens, supervised

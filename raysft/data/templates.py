"""The fixed templates: the paper's strings per backbone family (arXiv 2510.00526), and plain text.

A sample becomes segments that are tokenised one by one, so that what a model generates from is exactly what it was
trained on, whatever the tokenizer would merge across the border.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from raysft.data.sources import Example
from raysft.errors import InputError

Segment = tuple[str, bool]  # text, and whether it is supervised
SYSTEM = "You are a helpful assistant."  # the paper's, where a sample has none


@dataclass(frozen=True)
class FixedTemplate:
    """prompts: what a message of each role becomes; header opens a response, gap follows one.

    {bos} and {eos} are the tokenizer's own tokens; special: the other tokens that it must have.
    """

    prompts: dict[str, str]
    response: str
    start: str = ""
    header: str = ""
    gap: str = ""
    system: str | None = None
    special: tuple[str, ...] = ()
    single_turn: bool = False


_QWEN = "<|im_start|>{role}\n{content}<|im_end|>\n"
_LLAMA3 = "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"

FIXED = {
    "qwen": FixedTemplate(
        prompts={"system": _QWEN, "user": _QWEN},
        header="<|im_start|>assistant\n",
        response="{content}<|im_end|>",
        gap="\n",
        system=SYSTEM,
        special=("<|im_start|>", "<|im_end|>"),
    ),
    "llama3": FixedTemplate(
        start="<|begin_of_text|>",
        prompts={"system": _LLAMA3, "user": _LLAMA3},
        header="<|start_header_id|>assistant<|end_header_id|>\n\n",
        response="{content}<|eot_id|>",
        system=SYSTEM,
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "deepseek": FixedTemplate(
        start="{bos}",
        prompts={"system": "{content}\n\n", "user": "User: {content}\n\n"},
        header="Assistant:",
        response=" {content}{eos}",  # the space belongs to the first word's token
    ),
    "plain": FixedTemplate(prompts={"user": "{content}"}, response="{content}{eos}", single_turn=True),
}


def check_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises InputError where a token that the template `name` writes is not one token of the tokenizer."""
    template = FIXED[name]
    tokens: dict[str, str | None] = {token: token for token in template.special}
    if "{bos}" in template.start:
        tokens["bos_token"] = tokenizer.bos_token
    if "{eos}" in template.response:
        tokens["eos_token"] = tokenizer.eos_token
    for wanted, token in tokens.items():
        ids = tokenizer.encode(token, add_special_tokens=False) if token else []
        if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != token:
            raise InputError(
                f"data.template {name}",
                f"the tokenizer '{tokenizer.name_or_path}' has no single token '{wanted}'.",
                "Use a template that fits the backbone: chat is the tokenizer's own, plain needs an eos_token only.",
            )


def segments(example: Example, tokenizer: PreTrainedTokenizerBase, name: str) -> list[Segment]:
    """The sample as prompt and response in turn, ending in a response. Raises InputError where it has other turns."""
    template, messages = FIXED[name], example.messages
    if template.single_turn and [m["role"] for m in messages] != ["user", "assistant"]:
        roles = ", ".join(m["role"] for m in messages)
        raise InputError(
            example.origin,
            f"the template {name} takes one prompt and one response, and the sample has {roles}.",
            "Set data.template to another one, or leave out data.system.",
        )
    if template.system and all(m["role"] != "system" for m in messages):
        messages = [{"role": "system", "content": template.system}, *messages]
    own = {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
    parts: list[Segment] = []
    prompt = template.start.format(**own)
    for message in messages:
        if message["role"] == "assistant":
            parts += [(prompt + template.header, False), (template.response.format(**message, **own), True)]
            prompt = template.gap
        else:
            prompt += template.prompts[message["role"]].format(**message)
    return parts

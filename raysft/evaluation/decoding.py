"""Our own decoding: prompts packed without padding and read once for all of their samples, rows dropped as they end.

The batch is filled up again once half of it has ended. Fits every decoder that takes our attention; `why_not` proves
it on a few tokens, and what does not fit is written by transformers itself (raysft.evaluation.stock).
"""

from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from raysft import attention
from raysft.attention import from_memory, within_samples
from raysft.backbone import ROUND_OFF, decoder, evaluating, logits, other_layers
from raysft.data.batch import Batch
from raysft.evaluation.keyvalues import KeyValues
from raysft.evaluation.prepacked import prepacked
from raysft.evaluation.writing import Asked, Completion, Row, Writing, write_next

PROMPT_TOKENS = 8192  # of a forward pass over prompts
DROPPED = 8  # rows that have ended leave the batch once they are an eighth of it: leaving copies what the others hold
PROOF = ((0, 1, 2, 3, 4, 5), (6, 7, 8))  # prompts on which an architecture is tried
PROOF_TOKENS = (9, 10)  # written behind each


@torch.no_grad()
def decode(model: PreTrainedModel, asked: Asked) -> list[Completion]:
    """An Engine, for models of which `why_not` has nothing to say."""
    written: dict[Row, Writing] = {}
    queue = deque(asked.rows)
    live: list[Writing] = []
    memory: KeyValues | None = None
    tokens = torch.empty(0, dtype=torch.long, device=asked.device)
    with evaluating(model), attention.chosen(model), prepacked(model, asked.config.batch_size):
        while queue or live:
            if queue and len(live) <= asked.config.batch_size // 2:
                rows = _next_rows(queue, asked.config.batch_size - len(live))
                fresh = asked.begin(rows)
                written |= {writing.row: writing for writing in fresh}
                scores, memory = _read(model, asked, rows, memory)
                tokens = torch.cat([tokens, write_next(fresh, scores)])
                live += fresh
            going = [at for at, writing in enumerate(live) if writing.end is None]
            drop = len(live) - len(going) >= max(1, len(live) // DROPPED)
            if drop:
                asked.progress(sum(w.end is not None for w in written.values()), len(asked.rows))
            if not going:
                live, memory, tokens = [], None, tokens[:0]
                continue
            assert memory is not None
            if drop:
                live, memory = [live[at] for at in going], memory.keep(going)
                tokens = tokens[torch.tensor(going, device=tokens.device)]
            tokens = write_next(live, _step(model, tokens, memory))
    return [written[row].completion() for row in asked.rows]


def _next_rows(queue: deque[Row], room: int) -> list[Row]:
    """As many as there is room for. A problem whose samples do not all fit waits, unless it is the first."""
    rows = [queue.popleft() for _ in range(min(room, len(queue)))]
    if queue and rows[0].problem != rows[-1].problem:
        while rows[-1].problem == queue[0].problem:
            queue.appendleft(rows.pop())
    return rows


def _read(
    model: PreTrainedModel, asked: Asked, rows: list[Row], memory: KeyValues | None
) -> tuple[torch.Tensor, KeyValues]:
    """Scores [rows, V] of the rows' first tokens, and the memory with theirs behind it."""
    scores, prompts, samples = [], [], []
    for problem, of_problem in groupby(rows, key=lambda row: row.problem):
        prompts.append(asked.prompts[problem])
        samples.append(len(list(of_problem)))
    for part in _parts(prompts):
        read, held = read_prompts(model, prompts[part], samples[part], asked.device)
        scores.append(read)
        memory = held if memory is None else memory.followed_by(held)
    assert memory is not None
    return torch.cat(scores), memory


def _parts(prompts: list[list[int]]) -> list[slice]:
    """Slices of at most PROMPT_TOKENS, or of a single prompt."""
    borders, tokens = [0], 0
    for at, prompt in enumerate(prompts):
        tokens += len(prompt)
        if tokens > PROMPT_TOKENS and at > borders[-1]:
            borders.append(at)
            tokens = len(prompt)
    return [slice(start, end) for start, end in zip(borders, [*borders[1:], len(prompts)], strict=True)]


def read_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, KeyValues]:
    """Scores [rows, V] of the token behind each prompt, once for each of its samples, and what the prompts left."""
    lengths = [len(prompt) for prompt in prompts]
    prompt_of = [prompt for prompt, count in enumerate(samples) for _ in range(count)]
    memory = KeyValues(lengths, prompt_of, [0] * len(prompt_of), device)
    tokens = torch.tensor([token for prompt in prompts for token in prompt], device=device)[None]
    with within_samples(Batch(tokens, tokens, tuple(lengths), packed=True)) as given:
        hidden = decoder(model)(input_ids=tokens, use_cache=False, memory=memory, **given).last_hidden_state
    last = torch.tensor(lengths).cumsum(0) - 1
    return logits(model, hidden[0, last])[prompt_of], memory


def _step(model: PreTrainedModel, tokens: torch.Tensor, memory: KeyValues) -> torch.Tensor:
    """tokens [rows], the last of each -> scores [rows, V] of the next."""
    with from_memory(memory, memory.positions) as given:
        hidden = decoder(model)(input_ids=tokens[:, None], use_cache=False, **given).last_hidden_state
    memory.advance()
    return logits(model, hidden[:, 0])


# --- which models it fits ---------------------------------------------------------------------------------------------


@torch.no_grad()
def why_not(model: PreTrainedModel) -> str | None:
    """Why `decode` would not write what the model's own forward pass gives; None: it does."""
    if (reason := other_layers(model)) is not None:
        return reason
    if model.config.is_encoder_decoder:
        return "it has an encoder"
    with evaluating(model):
        own = _proof_by_itself(model)
        with attention.chosen(model) as possible:
            if not possible:
                return "its code does not let the attention be chosen"
            try:
                ours = _proof(model)
            except Exception as error:  # an architecture refuses what it does not know in its own way
                return (str(error).strip() or repr(error)).splitlines()[0]
    close = ROUND_OFF[own.dtype] * float(own.abs().max())
    if not torch.allclose(ours, own, rtol=0, atol=close):
        return "its scores by remembered keys and values are not those of the whole sequence"
    return None


def _proof_tokens(model: PreTrainedModel) -> tuple[list[list[int]], list[int]]:
    vocabulary = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    return [[token % vocabulary for token in prompt] for prompt in PROOF], [t % vocabulary for t in PROOF_TOKENS]


def _proof_by_itself(model: PreTrainedModel) -> torch.Tensor:
    """Scores of each prompt's last token and of those behind it, by whole sequences: [prompts, 1 + written, V]."""
    prompts, written = _proof_tokens(model)
    found = []
    for prompt in prompts:
        whole = torch.tensor([prompt + written], device=model.device)
        found.append(model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 :])
    return torch.stack(found)


def _proof(model: PreTrainedModel) -> torch.Tensor:
    """The same by our own decoding, with two samples of the first prompt, of which the first ends early."""
    prompts, written = _proof_tokens(model)
    scores, memory = read_prompts(model, prompts, [2, 1], model.device)
    found = [scores[1:]]
    for step, token in enumerate(written):
        tokens = torch.full((len(memory.counts),), token, device=model.device)
        found.append(_step(model, tokens, memory)[-2:])
        if step == 0:
            memory = memory.keep([1, 2])
    return torch.stack(found, dim=1)

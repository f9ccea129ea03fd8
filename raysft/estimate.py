"""The memory that a trial would need, by arithmetic, and what would make it fit. Needs neither torch nor ray.

Weights, gradients and the optimizer's state are counted as DeepSpeed keeps them (raysft.training.zero), the loss head
as raysft.objectives.head does. Activations are what autograd keeps of a layer, for each token, in transformers' code:

    norms             (4 + 2b) h each: an fp32 copy, normalised, times its weight
    attention         b (2q + 2k) + 4 heads: queries, keys, values and output, by flash attention; no T x T scores
    gated MLP         4 b i: gate, its activation, up, their product

with h, q, k, i the widths of hidden states, queries, keys and MLP, and b the bytes of a weight. Under gradient
checkpointing it is b h a layer, and all of that for one layer at a time. All numbers are for the fullest step: every
sample as long as data.max_length, every completion as long as max_new_tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import ceil, prod
from typing import Any, Literal

from raysft.architecture import Architecture
from raysft.config import GenerationConfig, SweepConfig
from raysft.objectives import known

BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size: numbers in its buffer for gradients on their way
PERSISTENT = 100_000  # its stage3_param_persistence_threshold: numbers of a matrix that stays whole
LIVE = 1_000_000_000  # its stage3_max_live_parameters, and the numbers that stage 3 updates at once
CONTEXT = 1_500_000_000  # bytes that CUDA, its libraries and torch's allocator take besides: assumed, not measured
HEAD_ROWS = {"cuda": {2: 1024, 4: 512}, "cpu": {2: 256, 4: 112}}  # of raysft.objectives.head, by bytes of an operand
HEAD_TILE = {"cuda": 32768, "cpu": 4096}  # of raysft.objectives.projection

When = Literal["always", "start", "training", "passes", "update", "evaluation"]


@dataclass(frozen=True)
class Part:
    """Bytes of a worker. when: they are held; training is passes, forward and backward, and the optimizer's update."""

    name: str
    bytes: int
    when: When = "always"
    on_host: bool = False


@dataclass(frozen=True)
class Memory:
    """Of one worker. A worker without a GPU has all of it on the host."""

    parts: tuple[Part, ...]
    on_gpu: bool

    @property
    def device(self) -> int:
        """Bytes at the fullest moment. What completions need while they are written is not in it: see `writing`."""
        return self._fullest(on_host=False) if self.on_gpu else 0

    @property
    def evaluating(self) -> int:
        """Bytes on the device while a trial is evaluated, what completions need left out."""
        return self._held(False, "always", "evaluation") if self.on_gpu else 0

    @property
    def host(self) -> int:
        host = self._fullest(on_host=True)
        return host if self.on_gpu else host + self._fullest(on_host=False)

    def _fullest(self, on_host: bool) -> int:
        training = max(self._held(on_host, "passes"), self._held(on_host, "update")) + self._held(on_host, "training")
        others = max(self._held(on_host, "start"), self._held(on_host, "evaluation"))
        return self._held(on_host, "always") + max(training, others)

    def _held(self, on_host: bool, *when: When) -> int:
        return sum(part.bytes for part in self.parts if part.on_host == on_host and part.when in when)


# --- memory ---------------------------------------------------------------------------------------------------------


def memory(study: SweepConfig, architecture: Architecture) -> Memory:
    """study: of one backbone (made by for_backbone)."""
    on_gpu = _on_gpu(study)
    parts = [*_state(study, architecture), *_of_a_pass(study, architecture)]
    if on_gpu:
        parts.append(Part("CUDA and libraries", CONTEXT))
    return Memory(tuple(part for part in parts if part.bytes), on_gpu)


def _state(study: SweepConfig, architecture: Architecture) -> Iterator[Part]:
    training, zero = study.training, study.zero
    number = weight_bytes(study)
    whole, lanes = architecture.parameters * number, study.workers.lanes
    trained = trained_parameters(study, architecture) * lanes
    adapters = trained * number if training.lora else 0
    shards = study.workers.count if lanes == 1 else 1
    stage = zero.stage if lanes == 1 else 0
    mine = ceil(trained / shards) if stage > 0 else trained
    offloaded, held = zero.offload != "none", zero.offload == "all"

    yield Part("weights", ceil((whole + adapters) / (shards if stage == 3 else 1)), on_host=held)
    if stage == 3:
        small = sum(size for size in map(prod, architecture.shapes.values()) if size < PERSISTENT) * (not training.lora)
        yield Part("weights too small to be sharded", small * number)
        yield Part("weights gathered for the layers at work", min(architecture.parameters, LIVE) * number, "passes")
        yield Part("whole model, to evaluate", whole + adapters, "evaluation")
    yield Part("base model, kept for the next trial", 0 if lanes > 1 else whole, on_host=True)
    if lanes == 1 and _on_gpu(study):
        yield Part("its copy, on its way to the device", whole, "start", on_host=True)
    if not _on_gpu(study) and written(study, architecture):
        yield Part("weights laid out for decoding", whole, "evaluation")
    if not training.lora and _needs_base(study):
        yield Part("base model of asft", whole)

    yield from _gradients(study, trained, mine, number)
    master = 4 * mine if number == 2 or stage > 0 or lanes > 1 else 0
    yield Part("optimizer: fp32 copy of the weights", master, on_host=offloaded)
    yield Part("optimizer: AdamW's two moments", 8 * mine, on_host=offloaded)
    if stage > 0:
        # Two at stage 3, where communication overlaps; with offload, one for the largest weight besides.
        bucket = BUCKET if _on_gpu(study) else min(BUCKET, trained)  # a CPU has only what is written to
        buffers = bucket * (2 if stage == 3 else 1) * (4 if stage == 1 else number)
        largest = architecture.vocabulary * architecture.hidden * number if offloaded and not training.lora else 0
        yield Part("gradients on their way", buffers + largest, "passes")
    # AdamW's own intermediate result; fp32 gradients made for it where they are not kept in fp32, and at stage 3.
    at_once = min(mine, LIVE) if stage == 3 else mine
    copied = (stage == 3 and not offloaded) or (stage == 0 and number == 2 and lanes == 1)
    yield Part("update", 4 * at_once * (2 if copied else 1), "update", on_host=offloaded)


def _gradients(study: SweepConfig, trained: int, mine: int, number: int) -> Iterator[Part]:
    """trained: parameters; mine: those that this worker updates, whose gradients ZeRO sums in fp32.

    Lanes sum theirs in fp32, too. Up to stage 1, a worker holds the others' as well until they are exchanged.
    """
    lanes, stage = study.workers.lanes > 1, study.zero.stage
    if lanes or stage == 0:
        yield Part("gradients", trained * (4 if lanes else number), "training")
        return
    if study.zero.offload != "none":  # one set that is added to, one for the optimizer, and the weights to be sent back
        yield Part("gradients", (8 + number) * mine, on_host=True)
        yield Part("gradients, until they are exchanged", 4 * trained if stage == 1 else 0, "passes")
        return
    if stage == 1 and number == 2:  # DeepSpeed's optimizer for bf16 has a buffer for all of them
        yield Part("gradients", 4 * trained)
        yield Part("gradients, until they are summed", number * trained, "passes")
        return
    yield Part("gradients", 4 * mine, "always" if stage == 3 else "training")
    yield Part("gradients, until they are exchanged", 4 * (trained - mine) if stage == 1 else 0, "passes")


def _of_a_pass(study: SweepConfig, architecture: Architecture) -> Iterator[Part]:
    number, tokens = weight_bytes(study), tokens_of_a_pass(study)
    kept = kept_activations(architecture, number, study.training.gradient_checkpointing, _rank(study))
    yield Part("activations", tokens * kept, "passes")
    yield Part(
        "gradients of activations",
        tokens * number * (3 * architecture.intermediate + 2 * architecture.hidden),
        "passes",
    )
    learns, device = study.training.lora is None, "cuda" if _on_gpu(study) else "cpu"
    yield Part("loss head", head_bytes(architecture, number, tokens, learns, device), "passes")


def kept_activations(architecture: Architecture, number: int, checkpointing: bool, rank: int = 0) -> int:
    """Bytes that autograd keeps for each token of a pass through all layers. number: bytes of a weight."""
    a = architecture
    norm = (8 if a.family.wide_norm else 4 + number) * a.hidden
    if a.type == "gpt2":
        norm, mlp = number * a.hidden, 5 * number * a.intermediate
    else:
        mlp = 4 * number * a.intermediate
    attention = number * (2 * a.queries + 2 * a.keys) + 4 * a.heads
    if a.family.qk_norm:
        attention += (8 if a.family.wide_norm else 4 + number) * (a.queries + a.keys)
    layer = len(a.family.norms) * norm + 2 * number * a.hidden + attention + mlp
    layer += number * rank * len(a.matrices) // a.layers
    if checkpointing:
        return a.layers * number * a.hidden + layer + norm
    return a.layers * layer + norm


def head_bytes(architecture: Architecture, number: int, tokens: int, learns: bool, device: str) -> int:
    """What the loss head adds to hidden states and weights. learns: the output weight is trained.

    The weight's gradient, summed in fp32, and once more in its own dtype; the rows' gradient, twice; of a chunk of rows
    the softmax, and a tile of its logits in fp32, with what is computed of them.
    """
    matrix = architecture.vocabulary * architecture.hidden
    rows = min(HEAD_ROWS[device][number], tokens)
    chunk = rows * architecture.vocabulary * number + 3 * 4 * rows * min(HEAD_TILE[device], architecture.vocabulary)
    weight = matrix * (4 + (number if number < 4 else 0)) if learns else 0
    return weight + 2 * tokens * architecture.hidden * number + chunk


def tokens_of_a_pass(study: SweepConfig) -> int:
    """The most that one forward pass of a worker holds; a sample that is longer than the micro-batch goes alone."""
    training, longest = study.training, study.data.max_length
    samples = ceil(training.global_batch_size / study.workers.count)
    return min(max(training.micro_batch_tokens, longest), samples * longest) * study.workers.lanes


def trained_parameters(study: SweepConfig, architecture: Architecture) -> int:
    """Of one trial: all of them, or its adapters'."""
    lora = study.training.lora
    if lora is None:
        return architecture.parameters
    targets = lora.target_modules
    chosen = [
        shape
        for name, shape in architecture.matrices.items()
        if targets == "all-linear" or name.removesuffix(".weight").endswith(tuple(f".{target}" for target in targets))
    ]
    return sum(lora.rank * sum(shape) for shape in chosen)


def _on_gpu(study: SweepConfig) -> bool:
    return study.workers.resources.get("GPU", 0) > 0


def weight_bytes(study: SweepConfig) -> int:
    """Of one number of the weights."""
    return 2 if study.training.precision == "bf16" else 4


def _rank(study: SweepConfig) -> int:
    return study.training.lora.rank if study.training.lora else 0


def _needs_base(study: SweepConfig) -> bool:
    objectives = known()
    types = {o.type for o in study.all_baselines()} | {family.type for family in study.space.objectives}
    return any(objectives[name].needs_reference for name in types)


# --- what completions need --------------------------------------------------------------------------------------------


def written(study: SweepConfig, architecture: Architecture) -> list[GenerationConfig]:
    """The sections of a study that let a model write, with no more new tokens than it has positions."""
    evaluation = study.evaluation
    sections = [*([evaluation.generation] if evaluation.generation else []), *evaluation.tasks.values()]
    return [
        section.model_copy(update={"max_new_tokens": min(section.max_new_tokens, architecture.positions)})
        for section in sections
        if section.scorer != "loglikelihood"
    ]


def writing(study: SweepConfig, architecture: Architecture) -> int:
    """Bytes of the keys and values of a full batch of completions, all of them at their limit; prompts not counted."""
    of_token = token_bytes(study, architecture)
    return max((s.batch_size * s.max_new_tokens * of_token for s in written(study, architecture)), default=0)


def rows_that_fit(study: SweepConfig, architecture: Architecture, room: float) -> int:
    """Completions that can be written at once in so many bytes, all of them at their limit."""
    longest = max((section.max_new_tokens for section in written(study, architecture)), default=1)
    return max(1, int(room // (longest * token_bytes(study, architecture))))


def token_bytes(study: SweepConfig, architecture: Architecture) -> int:
    """Of the keys and values that a written token leaves."""
    return 2 * architecture.layers * architecture.keys * weight_bytes(study)


# --- what would fit -----------------------------------------------------------------------------------------------


def fits(study: SweepConfig, architecture: Architecture, available: float) -> bool:
    """Whether a worker fits its part of a device with so many bytes: workers of half a GPU share one."""
    part = min(1.0, study.workers.resources.get("GPU", 1.0) or 1.0)
    return memory(study, architecture).device <= available * part


def changes_that_fit(study: SweepConfig, architecture: Architecture, available: float) -> list[str]:
    """Settings with which it would fit, each computed: of the fewest changes at once that are enough, at most three.

    Of a key's values the first that is enough.
    """
    for count in (1, 2, 3):
        found: dict[Keys, str] = {}
        for chosen in combinations(_changes(study), count):
            keys = tuple((section, key) for _, change in chosen for section, values in change.items() for key in values)
            if keys in found or len(set(keys)) < len(keys):
                continue
            changed = _changed(study, [change for _, change in chosen])
            if changed and fits(changed, architecture, available):
                found[keys] = " with ".join(text for text, _ in chosen)
        if found:
            return list(found.values())
    return []


Change = dict[str, dict[str, Any]]
Keys = tuple[tuple[str, str], ...]


def _changes(study: SweepConfig) -> list[tuple[str, Change]]:
    training, workers = study.training, study.workers
    found: list[tuple[str, Change]] = []
    if not training.gradient_checkpointing:
        found.append(("training.gradient_checkpointing=true", {"training": {"gradient_checkpointing": True}}))
    if training.micro_batch_tokens > (least := min(training.micro_batch_tokens, study.data.max_length)):
        found.append((f"training.micro_batch_tokens={least}", {"training": {"micro_batch_tokens": least}}))
    if workers.lanes > 1:
        return [*found, ("workers.lanes=1", {"workers": {"lanes": 1}})]
    found += [(f"zero.stage={stage}", {"zero": {"stage": stage}}) for stage in range(study.zero.stage + 1, 4)]
    for factor in (2, 4, 8):
        if training.global_batch_size % (count := workers.count * factor) == 0:
            found.append((f"workers.count={count}", {"workers": {"count": count}}))
    if study.zero.offload == "none":
        found.append(("zero.offload=optimizer", {"zero": {"offload": "optimizer"}}))
    if training.lora is None:
        found.append(("training.lora={}", {"training": {"lora": {}}}))
    return found


def _changed(study: SweepConfig, changes: list[Change]) -> SweepConfig | None:
    """None where the settings do not go together."""
    values = study.model_dump(mode="json")
    for change in changes:
        for section, new in change.items():
            values[section] = values[section] | new
    try:
        return SweepConfig.model_validate(values)
    except ValueError:
        return None

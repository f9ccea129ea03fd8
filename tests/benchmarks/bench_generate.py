"""Tokens per second of generation: raysft beside a plain `model.generate` loop over padded batches.

Both write the same number of completions of the same prompts with the same weights in one process, in turn, the one
that begins changing from round to round. Tokens behind a completion's end do not count. `stock` is raysft's way for
models that its own decoding does not fit: the same draws as raysft, by transformers' generate. First, all write a few
prompts greedily, and what they write is compared.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from telling import MIB, machine, reset_peak, resident, table, told, write
from train_inputs import Shape, make_backbone, synthetic_rows
from transformers import GenerationConfig as Decoding
from transformers import PreTrainedModel

from raysft.backbone import load_model, load_tokenizer, pack
from raysft.config import BackboneConfig, DataConfig, FileSource, GenerationConfig
from raysft.data.problems import spread
from raysft.data.render import end_token_ids, render_prompt
from raysft.data.sources import load_examples
from raysft.evaluation.decoding import decode, why_not
from raysft.evaluation.generation import complete
from raysft.evaluation.stock import stock_decode
from raysft.quiet import libraries_quiet

NAMES = ("plain", "stock", "raysft")
Written = list[list[list[int]]]  # [problem][sample] -> new tokens


@dataclass(frozen=True)
class Case:
    model: PreTrainedModel
    prompts: list[list[int]]
    ends: list[int]
    pad: int
    device: torch.device

    def write(self, name: str, settings: GenerationConfig, seed: int) -> Written:
        if name == "plain":
            return self._plain(settings, seed)
        engine = decode if name == "raysft" else stock_decode
        found = complete(self.model, self.prompts, settings, self.ends, self.pad, seed, self.device, engine=engine)
        return [[completion.tokens for completion in completions] for completions in found]

    @torch.no_grad()
    def _plain(self, settings: GenerationConfig, seed: int) -> Written:
        """As one would write it: prompts as they come, padded on the left, each expanded to its samples."""
        sampled = {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
        decoding = Decoding(
            max_new_tokens=settings.max_new_tokens, use_cache=True, eos_token_id=self.ends, pad_token_id=self.pad,
            num_return_sequences=settings.samples, **(sampled if settings.temperature else {"do_sample": False}),
        )  # fmt: skip
        torch.manual_seed(seed)
        at_once, written = max(1, settings.batch_size // settings.samples), []
        for start in range(0, len(self.prompts), at_once):
            prompts = self.prompts[start : start + at_once]
            width = max(map(len, prompts))
            ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
            output = self.model.generate(ids, attention_mask=mask, generation_config=decoding)  # type: ignore[operator]
            rows = [self._to_end(row) for row in output[:, width:].tolist()]
            written += [rows[i : i + settings.samples] for i in range(0, len(rows), settings.samples)]
        return written

    def _to_end(self, tokens: list[int]) -> list[int]:
        end = next((at for at, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[: end + 1]


def main() -> None:
    args = _arguments()
    libraries_quiet()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = machine(args.threads, device.type, ("transformers",))
    print(told("; ".join(f"{key} {value}" for key, value in facts.items())))
    case = make_case(args, device)
    lengths = sorted(map(len, case.prompts))
    batch = {"prompts": len(lengths), "shortest": lengths[0], "median": median(lengths), "longest": lengths[-1]}
    print(told("; ".join(f"{key} {value}" for key, value in batch.items())), flush=True)
    if (reason := why_not(case.model)) is not None:
        sys.exit(f"raysft's own decoding does not fit {type(case.model).__name__}: {reason}")
    same = compare_greedy(case, args)
    settings = GenerationConfig(
        samples=args.samples, temperature=args.temperature, max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
    )  # fmt: skip
    runs = measure({name: lambda seed, name=name: case.write(name, settings, seed) for name in args.variants}, args)
    report = {"machine": facts, "settings": {k: str(v) for k, v in vars(args).items()}, "batch": batch}
    report |= {"greedy": same, "variants": summary(runs)}
    write(args.json, report)
    print(tell(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbone", help="folder or hub id; without it, random weights of --shape, which never end")
    parser.add_argument("--data", type=Path, help="JSONL of problems, with --backbone")
    parser.add_argument("--prompt", default="question", help="field of --data")
    parser.add_argument("--response", default="answer", help="field of --data")
    parser.add_argument("--template", default="chat", help="of --data: chat, qwen, llama3, deepseek or plain")
    shape = ",".join(map(str, Shape()))
    parser.add_argument("--shape", default=shape, help=f"of random weights: {', '.join(Shape._fields)}")
    parser.add_argument("--problems", type=int, default=32, help="at an even stride over the data")
    parser.add_argument("--samples", type=int, default=4, help="of each problem")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling; 0 is greedy")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of a completion")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences at once")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="of weights and products")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=["plain", "raysft"], help="any of", metavar="V")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each")
    parser.add_argument("--json", type=Path, default=Path("build/bench-generate.json"), help="where all is written")
    args = parser.parse_args()
    if (args.backbone is None) != (args.data is None):
        parser.error("--backbone and --data come together: synthetic prompts are for random weights")
    if min(args.problems, args.samples, args.repeats) < 1:
        parser.error("--problems, --samples and --repeats must be at least 1")
    if args.temperature == 0 and args.samples > 1:
        parser.error("greedy samples of a problem are all the same: --samples 1")
    return args


def make_case(args: argparse.Namespace, device: torch.device) -> Case:
    with tempfile.TemporaryDirectory(prefix="bench-generate-") as folder:
        if args.backbone is None:
            shape = Shape(*map(int, args.shape.split(",")))
            path = str(make_backbone(Path(folder) / "backbone", shape, longest=2048))
        backbone = BackboneConfig(name="backbone", path=args.backbone or path)
        model, tokenizer = load_model(backbone, args.precision), load_tokenizer(backbone)
    model = model.to(device)  # type: ignore[arg-type]
    pack(model)  # as a sweep does
    if args.data is None:
        texts = [row["prompt"] for row in synthetic_rows(args.problems, 800, shape.vocabulary)]
        return Case(model, tokenizer(texts)["input_ids"], [tokenizer.eos_token_id], tokenizer.pad_token_id, device)
    source = FileSource(path=args.data)
    data = DataConfig(train=source, prompt=args.prompt, response=args.response, template=args.template)
    examples = load_examples(source, data)[0]
    prompts = [render_prompt(examples[i], tokenizer, args.template) for i in spread(len(examples), args.problems)]
    return Case(model, prompts, end_token_ids(tokenizer, args.template), int(tokenizer.pad_token_id), device)


def compare_greedy(case: Case, args: argparse.Namespace) -> str:
    """How many tokens of a few greedy completions agree with the plain loop's, from the first; bf16 has near ties."""
    few = Case(case.model, case.prompts[:4], case.ends, case.pad, case.device)
    settings = GenerationConfig(temperature=0, max_new_tokens=min(64, args.max_new_tokens))
    ours, theirs = ([tokens for (tokens,) in few.write(name, settings, 0)] for name in ("raysft", "plain"))
    agreed = [
        next((at for at, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return f"{agreed} of {list(map(len, theirs))} first tokens of greedy completions are the plain loop's"


def measure(variants: dict[str, Callable[[int], Written]], args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Each once a round; `compare_greedy` has warmed them up."""
    names, runs = list(variants), {name: [] for name in variants}
    for turn in range(args.repeats):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            reset_peak()
            before, started = resident("VmRSS"), time.perf_counter()
            written = variants[name](turn)
            seconds = time.perf_counter() - started
            lengths = [len(tokens) for completions in written for tokens in completions]
            run = {"seconds": seconds, "tokens": sum(lengths), "completions": len(lengths)}
            run |= {"longest": max(lengths), "memory": resident("VmHWM") - before}
            runs[name].append(run)
            print(told(f"{name}: {run['tokens']} tokens in {seconds:.1f} s"), flush=True)
    return runs


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, own in runs.items():
        speeds = [run["tokens"] / run["seconds"] for run in own]
        found[name] = {"runs": own, "tokens_per_second": median(speeds), "speeds": speeds}
    for variant in found.values():
        other = found.get("plain")
        variant["vs_plain"] = variant["tokens_per_second"] / other["tokens_per_second"] if other else None
    return found


def tell(report: dict[str, Any]) -> str:
    lines = [told(report["greedy"]), "\nMedians; x: how many times the tokens per second of the plain loop\n"]
    rows = []
    for name, v in report["variants"].items():
        runs = v["runs"]
        spread_ = f"{min(v['speeds']):.4g} - {max(v['speeds']):.4g}"
        ratio = "-" if v["vs_plain"] is None else f"{v['vs_plain']:.2f}"
        cells = [f"{median(run['seconds'] for run in runs):.3g}", f"{v['tokens_per_second']:.4g}", spread_, ratio]
        cells += [f"{median(run['tokens'] / run['completions'] for run in runs):.0f}"]
        cells += [f"{median(run['memory'] for run in runs) / MIB:.0f}"]
        rows.append([name, *cells])
    head = ["variant", "s", "tokens/s", "min - max", "x plain", "tokens a completion", "peak MiB beyond the weights"]
    return "\n".join([*lines, table(head, rows)])


if __name__ == "__main__":
    main()

"""The math scorer beside lm-evaluation-harness's rule and the paper's published one, on recorded completions.

    python tests/benchmarks/compare_math.py completions.jsonl.gz [--lm-eval PYTHON] [--paper PYTHON FOLDER FOLDER]

PYTHON is an interpreter that has lm-eval[math], or what the paper's grader needs; the folders are its evaluations/math
(github.com/GaotangLi/Beyond-Log-Likelihood) and the latex2sympy of github.com/QwenLM/Qwen2.5-Math, evaluation/. Neither
is part of this project. lm-eval's rule is math_verify of minerva_math500, and for GSM8K flexible-extract of
gsm8k_cot_zeroshot. Prints a table of agreement and every disagreement.
"""

import argparse
import gzip
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysft.data.sources import Example
from raysft.evaluation import build_scorer
from raysft.sweepfile import load_tasks

LM_EVAL = r"""
import json, logging, re, sys
from math_verify import parse, verify
from lm_eval.filters.extraction import RegexFilter
logging.disable(logging.CRITICAL)
flexible = RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
def plain(text):
    for pattern in (",", r"\$", "(?s).*#### ", r"\.$"):
        text = re.sub(pattern, "", text)
    return text.lower()
for line in sys.stdin:
    row = json.loads(line)
    if row["task"] == "gsm8k":
        ((found,),) = flexible.apply([[row["completion"]]], [{}])
        verdict = plain(found) == plain(row["reference"])
    else:
        gold = parse("$" + row["reference"] + "$")
        verdict = bool(verify(gold=gold, target=parse(row["completion"])))
    print(json.dumps(verdict), flush=True)
"""
PAPER = r"""
import json, signal, sys
sys.path[:0] = sys.argv[1:3]
from grader import math_equal
from parser import extract_answer, strip_string
for line in sys.stdin:
    row = json.loads(line)
    name = {"math500": "math_oai"}.get(row["task"], row["task"])
    found = strip_string(extract_answer(row["completion"], name))
    signal.alarm(60)  # ends the run: theirs kills a comparison after 3 s, which a slow machine cannot tell from a hang
    print(json.dumps(bool(math_equal(found, strip_string(row["reference"])))), flush=True)
    signal.alarm(0)
"""


def ours(rows: Sequence[dict[str, Any]]) -> list[bool]:
    verdicts = {}
    for name in dict.fromkeys(row["task"] for row in rows):
        (task,) = load_tasks([name]).values()
        part = [(i, row) for i, row in enumerate(rows) if row["task"] == name]
        examples = [Example([{"role": "assistant", "content": row["reference"]}], "", i) for i, row in part]
        scored = build_scorer(task, task.source).score_all([row["completion"] for _, row in part], examples)
        verdicts |= {i: s.score == 1 for (i, _), s in zip(part, scored, strict=True)}
    return [verdicts[i] for i in range(len(rows))]


def theirs(rows: Sequence[dict[str, Any]], command: Sequence[str]) -> list[bool]:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    verdicts = [json.loads(line) for line in done.stdout.splitlines() if line in ("true", "false")]
    if len(verdicts) != len(rows):
        raise SystemExit(f"{command[0]} gave {len(verdicts)} verdicts of {len(rows)}:\n{done.stderr[-2000:]}")
    return verdicts


def read(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    lines = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in lines.decode().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="records of the tasks gsm8k and math500")
    parser.add_argument("--lm-eval", metavar="PYTHON")
    parser.add_argument("--paper", nargs=3, metavar=("PYTHON", "FOLDER", "FOLDER"))
    arguments = parser.parse_args()
    rows = read(arguments.records)
    verdicts = {"raysft": ours(rows)}
    if arguments.lm_eval:
        verdicts["lm-eval"] = theirs(rows, [arguments.lm_eval, "-c", LM_EVAL])
    if arguments.paper:
        python, *folders = arguments.paper
        verdicts["paper"] = theirs(rows, [python, "-c", PAPER, *folders])
    for task in dict.fromkeys(row["task"] for row in rows):
        at = [i for i, row in enumerate(rows) if row["task"] == task]
        for name, found in verdicts.items():
            same = sum(found[i] == verdicts["raysft"][i] for i in at)
            right = sum(found[i] for i in at)
            print(f"{task:12} {name:8} right {right:5} of {len(at)}; as raysft {same:5} ({same / len(at):.2%})")
    for i, row in enumerate(rows):
        said = {name: found[i] for name, found in verdicts.items()}
        if len(set(said.values())) > 1:
            print(json.dumps(said), row["task"], repr(row["reference"]), "...", repr(row["completion"][-160:]))


if __name__ == "__main__":
    main()

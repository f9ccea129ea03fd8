"""Scores of lm-evaluation-harness under our names, and what is said without it. The harness itself is an extra."""

import subprocess
import sys

from raysft.lmeval import flat


def test_results_become_metrics() -> None:
    results = {
        "arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 1},
        "gsm8k": {"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A"},
    }
    assert flat(results) == {
        "eval/lm-eval/arc/acc": 0.5,
        "eval/lm-eval/arc/acc_stderr": 0.1,
        "eval/lm-eval/arc/acc_norm": 1.0,
        "eval/lm-eval/gsm8k/exact_match-strict-match": 0.25,
    }


def test_without_the_harness_the_extra_is_named() -> None:
    program = """
import sys
sys.modules["lm_eval"] = None  # as where it is not installed
from raysft.config import BackboneConfig
from raysft.lmeval import lm_eval_scores
lm_eval_scores(BackboneConfig(name="m", path="m"), ["arc"], "fp32", 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "--lm-eval: needs lm-eval, which cannot be imported" in done.stderr
    assert "pip install 'raysft[lm-eval]'" in done.stderr

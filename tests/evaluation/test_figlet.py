"""The three scores of a word that was read from a picture."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.config import FileSource, GenerationConfig
from raysft.data.sources import Example
from raysft.evaluation import build_scorer
from raysft.evaluation.figlet import similarities

FILE = FileSource(path="x.jsonl")  # type: ignore[arg-type]
WORD = Example([{"role": "assistant", "content": "MARTHA"}], "x.jsonl line 1", 0)


@pytest.mark.parametrize(
    ("answer", "exact", "case_insensitive", "jaro_winkler"),
    [
        ("MARTHA", 1, 1, 1),
        (" martha\n", 0, 1, 1),
        ("MARHTA", 0, 0, 0.9611),  # the example of Winkler's paper
        ("", 0, 0, 0),
        ("XYZ", 0, 0, 0),
    ],
)
def test_scores(answer: str, exact: float, case_insensitive: float, jaro_winkler: float) -> None:
    scored = build_scorer(GenerationConfig(scorer="figlet"), FILE).score(answer, WORD)
    assert (scored.score, scored.others["case_insensitive"]) == (exact, case_insensitive)
    assert scored.others["jaro_winkler"] == pytest.approx(jaro_winkler, abs=1e-4)


def test_any_of_them_may_be_the_main_one() -> None:
    config = GenerationConfig(scorer="figlet", main_score="jaro_winkler")
    scored = build_scorer(config, FILE).score("MARHTA", WORD)
    assert scored.score == pytest.approx(0.9611, abs=1e-4)
    assert scored.others == {"exact": 0.0, "case_insensitive": 0.0}


@given(st.text(), st.text(min_size=1))
def test_an_exact_word_has_all_scores_and_all_lie_between_0_and_1(answer: str, word: str) -> None:
    assert set(similarities(word, word).values()) == {1.0}
    scores = similarities(answer, word)
    assert all(0 <= score <= 1 for score in scores.values())
    assert scores["exact"] <= scores["case_insensitive"] <= scores["jaro_winkler"]

"""Recorded extractions, good and bad, with their verdicts; and what the proof rests on."""

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import pytest

from bi_ray.reasoning.extract import CONSTANTS, PROMPT, SCHEMA, ExtractionFault, prove, source_row

RECORDED = Path(__file__).parent / "extractions"
GOOD, BAD = (json.loads((RECORDED / f"{name}.json").read_text()) for name in ("good", "bad"))
NATALIA = {
    "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as "
    "many clips in May. "
    "How many clips did Natalia sell altogether in April and May?",
    "chain_of_thought": "Natalia sold 48/2 = 24 clips in May. "
    "Natalia sold 48+24 = 72 clips altogether in April and May.",
    "answer": "72",
}


def written(extraction) -> str:
    return extraction if isinstance(extraction, str) else json.dumps(extraction)


def extracted(case):
    return prove(source_row(3, case["row"]), written(case["extraction"]))


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=[case["case"] for case in cases])


@named(GOOD)
def test_good_extractions_are_used(case):
    row = extracted(case)
    assert row.number == 3
    assert row.question == case["row"]["question"]
    assert str(row.graph.answer) == case["value"]
    assert row.answer == case["row"]["answer"].rpartition("####")[2].strip()
    assert [step.node for step in row.steps] == list(row.graph.nodes)
    if "order" in case:
        assert list(row.graph.nodes) == case["order"]
    if "own" in case:
        assert sum(bool(step.text) for step in row.steps) == case["own"]
    assert sorted(set(row.graph.nodes) - row.graph.needed) == sorted(case.get("redundant", []))


@named(BAD)
def test_bad_extractions_are_refused_with_the_reason(case):
    with pytest.raises(ExtractionFault) as caught:
        extracted(case)
    assert str(caught.value).startswith(case["reason"])
    assert "\n" not in str(caught.value)


@named([case for case in GOOD if isinstance(case["extraction"], dict)])
def test_any_value_made_wrong_is_noticed(case):
    """Whatever the model may have miscounted: no single wrong value gets through."""
    for place, node in enumerate(case["extraction"]["nodes"]):
        changed = json.loads(json.dumps(case["extraction"]))
        changed["nodes"][place]["value"] = "987654"
        with pytest.raises(ExtractionFault, match=f"{node['name']} is given as 987654"):
            prove(source_row(0, case["row"]), json.dumps(changed))


@named(GOOD)
def test_another_answer_is_noticed(case):
    row = source_row(0, case["row"])
    other = {**case["row"], "answer": "31337", "chain_of_thought": row.chain_of_thought}
    with pytest.raises(ExtractionFault, match="the answer is 31337"):
        prove(source_row(0, other), written(case["extraction"]))


def test_the_example_of_the_prompt_is_right():
    row = prove(source_row(0, NATALIA), PROMPT[PROMPT.index('{"nodes"') :])
    assert row.graph.answer == 72
    assert [bool(step.text) for step in row.steps] == [False, True, True]


def test_a_given_number_keeps_its_own_sentence_and_a_wrong_one_is_left_out():
    extraction = json.loads(PROMPT[PROMPT.index('{"nodes"') :])
    # hers, but it does not say 72
    extraction["nodes"][2]["step"] = "Natalia sold 48/2 = 24 clips in May."
    row = prove(source_row(0, NATALIA), json.dumps(extraction))
    assert [bool(step.text) for step in row.steps] == [False, True, False]


def test_constants_stand_alone_without_the_question():
    """Every constant can be used with words that call for it, and none but 1 without."""
    for value, words in CONSTANTS.items():
        word = words.partition("|")[0].replace(r"\b", "").replace("(?:er", "er").replace("?", "")
        for called in (True, False):
            question = (
                f"He has 7 of them. {word if called else ''} What is it times "
                f"{'' if called else 'xyz'}?"
            )
            row = source_row(
                0, {"question": question, "chain_of_thought": ".", "answer": str(7 * value)}
            )
            node = {"step": "", "description": "", "parents": []}
            nodes = [{**node, "name": "it", "expression": f"7 * {value}", "value": str(7 * value)}]
            content = json.dumps({"nodes": nodes, "answer": "it"})
            if called or value in (1, 7):
                assert prove(row, content).graph.answer == 7 * Fraction(value)
            else:
                with pytest.raises(ExtractionFault, match="neither in the question"):
                    prove(row, content)


def test_the_schema_is_what_structured_output_asks_for():
    node = SCHEMA["$defs"]["ExtractedNode"]
    for part in (SCHEMA, node):
        assert part["additionalProperties"] is False
        assert part["required"] == list(part["properties"])


def test_the_words_that_name_cached_answers_have_not_changed():
    """Where they have to change, every row of every user is asked about again."""
    descriptions = [SCHEMA["description"], SCHEMA["$defs"]["ExtractedNode"]["description"]]
    words = "\n".join([PROMPT, *descriptions])
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == "f494b5f38962203b"

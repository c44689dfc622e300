r"""Where a response has its answer.

In the last ``<answer>...</answer>``, in the last ``\boxed{...}``, after the last ``####``, or it is
the whole response.
"""

from __future__ import annotations

import re

from bi_ray.answers.forms import readings, without_prefix, without_special_tokens
from bi_ray.config.tasks import Extract

SYSTEM_PROMPTS: dict[Extract, str] = {
    "tag": (
        "Think step by step inside <think> and </think>, then write <answer> The final answer is "
        "... </answer>."
    ),
    "boxed": r"Think step by step, then put the final answer into \boxed{...}.",
    "hashes": "Think step by step, then write the final answer on a line of its own, after ####.",
    "response": "Answer with the answer alone.",
}

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

_TAGGED = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)

# a box that opens, a number or letter after \boxed without braces, and braces that are not escaped
_OPENS = r"\\(?:boxed|fbox)(?![A-Za-z])"

_WORD = r"(?P<word>[^\s{}$\\]*[0-9][^\s{}$\\]*|[A-Za-z](?![^\s{}$\\.,]))"

_BOX = rf"(?P<box>{_OPENS}[ \t]*\{{)|{_OPENS}[ \t]*{_WORD}"

_BOXES = re.compile(rf"{_BOX}|\\(?!{_OPENS}).|(?P<brace>[{{}}])", re.DOTALL)

_FIRST_BOX = re.compile(_BOX)


def find_answer(response: str, extract: Extract) -> str | None:
    """The answer of a response, without surrounding spaces; None where there is none.

    It is as it was written but for a sentence around it: "The final answer is 5." gives 5.
    """
    answer = without_special_tokens(find_content(response, extract))
    rest = without_prefix(answer)
    if rest != answer:
        answer = rest.removeprefix(":").removesuffix(".").strip()
    return answer or None


def find_readings(response: str, extract: Extract) -> list[str]:
    """The answer of a response, in every form in which it can be taken (``forms.readings``)."""
    return readings(find_content(response, extract))


def find_content(response: str, extract: Extract) -> str:
    """The text at the place of the answer, "" where there is none.

    Takes time proportional to the length, whatever the response contains.
    """
    if extract == "tag":
        return _last_tagged(response)
    if extract == "boxed":
        return _last_boxed(response)
    if extract == "hashes":
        _, hashes, rest = response.rpartition("####")
        if not hashes:
            return ""
        return rest.partition("\n")[0]
    return response


def _last_tagged(response: str) -> str:
    """Content of the last <answer>...</answer>."""
    end = response.rfind("</answer>")
    start = response.rfind("<answer>", 0, max(0, end))
    if start < 0:
        return ""
    start += len("<answer>")
    return response[start : response.find("</answer>", start)]


def _last_boxed(response: str) -> str:
    r"""Content of the last \boxed{...} or \fbox{...} that is closed.

    If it comes later, it is the word after a \boxed without braces.
    """
    first = _FIRST_BOX.search(response)
    if first is None:
        return ""
    last = (0, 0)  # start and end of the content
    opened: list[int] = []  # of each open brace: start of the content of its box, -1: not a box
    for match in _BOXES.finditer(response, first.start()):
        if match["box"]:
            opened.append(match.end())
        elif match["word"]:
            last = max(last, match.span("word"))
        elif match["brace"] == "{":
            opened.append(-1)
        elif match["brace"] and opened:
            last = max(last, (opened.pop(), match.start()))
    return response[slice(*last)]


def write_response(chain_of_thought: str, answer: str, extract: Extract) -> str:
    """A demonstration: the chain of thought, then the answer where ``find_answer`` looks for it."""
    thought = chain_of_thought.strip()
    if extract == "tag":
        return f"<think>\n{thought}\n</think>\n<answer> The final answer is {answer} </answer>"
    if extract == "boxed":
        return f"{thought}\nThe answer is \\boxed{{{answer}}}."
    if extract == "hashes":
        return f"{thought}\n#### {answer}"
    return f"{thought}\n{answer}"


def format_is_right(response: str, extract: Extract) -> bool:
    """Whether a response has one answer, at its place.

    With tags, one chain of thought has to come before it, and nothing else.
    """
    if find_answer(response, extract) is None:
        return False
    if extract == "tag":
        return has_each_tag_once(response) and _TAGGED.fullmatch(response) is not None
    if extract == "boxed":
        return len(_FIRST_BOX.findall(response)) == 1
    if extract == "hashes":
        return response.count("####") == 1
    return True


def has_each_tag_once(response: str) -> bool:
    """Whether <think> and <answer> open and close once each.

    Call it before matching a pattern with these tags: that would try all pairs of them.
    """
    return all(response.count(tag) == 1 for tag in _TAGS)

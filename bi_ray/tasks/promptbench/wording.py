"""The parts of PromptBench's texts: signs, fixed sentences, names."""

from __future__ import annotations

from itertools import cycle, islice, product
from string import ascii_lowercase

from bi_ray.config.tasks import LogicName
from bi_ray.reasoning.expression import Notation, Operator
from bi_ray.tasks.traces import ANSWER, SYSTEM_PROMPT, THINK_END, THINK_START

# of the traces, whatever the logic: "aac = IF (aaa AND aab)" is a deduction, and
# "aaa = OR BEHIND aac" an abduction
NOTATION = Notation(
    {
        Operator.ADD: "+",
        Operator.SUBTRACT: "-",
        Operator.MULTIPLY: "*",
        Operator.SQUARE: "^2",
        Operator.AND: "AND",
        Operator.OR: "OR",
        Operator.NOT: "NOT",
        Operator.IF: "IF",
        Operator.CAUSE_AND: "AND BEHIND",
        Operator.CAUSE_OR: "OR BEHIND",
        Operator.CAUSE_NOT: "NOT BEHIND",
    }
)

CAUSES = {
    Operator.AND: Operator.CAUSE_AND,
    Operator.OR: Operator.CAUSE_OR,
    Operator.NOT: Operator.CAUSE_NOT,
}

# of the premises of deductive and abductive rules, as upstream writes them
RULES = Notation(
    {
        Operator.AND: "and",
        Operator.OR: "or",
        Operator.NOT: "NOT",
    }
)

_RULE = "A rule (premise) -> conclusion makes the conclusion True where the premise is True"
SYSTEM_PROMPTS: dict[LogicName, str] = {
    "arithmetic": SYSTEM_PROMPT,
    "boolean": f"{SYSTEM_PROMPT} The answer is True or False.",
    "deductive": (
        f"{SYSTEM_PROMPT} {_RULE}, and leaves it N/A elsewhere. The answer is True, False or N/A."
    ),
    "abductive": (
        f"{SYSTEM_PROMPT} {_RULE}: where a conclusion is False, its premise is False. "
        "The answer is True, False, or N/A where it cannot be known."
    ),
}

INTEGER = r"-?[0-9]{1,30}"  # as a pattern
TRUTH = r"True|False|N/A"

PREMISES = {
    None: "The value of {node} is {value}.",
    Operator.ADD: "{node} gets its value by adding together the value of {a} and {b}.",
    Operator.SUBTRACT: (
        "{node} gets its value by subtracting the value of {b} from the value of {a}."
    ),
    Operator.MULTIPLY: "{node} gets its value by multiplying together the value of {a} and {b}.",
    Operator.SQUARE: "{node} gets its value by squaring the value that {a} has.",
}
FACT = "{node} is {value}."  # of boolean and deductive problems
EQUALS = "The value of {node} equals to ({premise})."  # boolean
RULE = "({premise}) -> {node}."  # deductive and abductive
QUESTION = "What is the value of {node}?"
ABDUCTIVE_QUESTION = "Given {given} is {value}, what is the value of {node}?"


def node_names(pool: int) -> list[str]:
    """The first ``pool`` three-letter names: aaa, aab, ... aaz, aba, ..."""
    names = map("".join, product(ascii_lowercase, repeat=3))
    return list(islice(cycle(names), pool))


def phrases() -> list[str]:
    """The fixed parts of the arithmetic task's texts, for a tokenizer that gives each one token."""
    return [
        SYSTEM_PROMPT,
        THINK_START,
        THINK_END,
        *ANSWER.split("{answer}"),
        "The value of ",
        " is ",
        " gets its value by adding together the value of ",
        " gets its value by subtracting the value of ",
        " gets its value by multiplying together the value of ",
        " gets its value by squaring the value that ",
        " from the value of ",
        " has.",
        " and ",
        "What is the value of ",
        ".\n",
        ".\nThe value of ",
        ".\nWhat is the value of ",
        " has.\n",
        " has.\nThe value of ",
        " has.\nWhat is the value of ",
        "Let's solve ",
        "\nLet's solve ",
        "<think>\nLet's solve ",
        "\n</think>\n<answer> The final answer is ",
        ", ",
        " = ",
        " + ",
        " - ",
        " * ",
        "^2",
        "(-",
        ", since ",
        " is not known yet, wait, ",
        " are not known yet, wait, ",
        " seems to be not solvable yet, let's get back",
    ]

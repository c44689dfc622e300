"""Reward functions that misbehave on the response that says so, and give 0.5 otherwise."""

import contextlib
import itertools
import os
import time


def raises(question: str, answer: str, response: str) -> float:
    if "guilty" in response:
        raise ValueError("cannot score this")
    return 0.5


def sleeps(question: str, answer: str, response: str) -> float:
    while "guilty" in response:
        with contextlib.suppress(Exception):  # a careless loop that swallows what it can
            time.sleep(0.01)
    return 0.5


def hangs_in_c(question: str, answer: str, response: str) -> float:
    if "guilty" in response:
        all(itertools.repeat(True))  # for ever, without a bytecode in between (re and pow do look for signals)
    return 0.5


def ends_the_process(question: str, answer: str, response: str) -> float:
    if "guilty" in response:
        os._exit(1)
    return 0.5


def even(question: str, answer: str, response: str) -> float:
    """Something that a model without any skill gets right half of the time."""
    return float(len(response) % 2 == 0)

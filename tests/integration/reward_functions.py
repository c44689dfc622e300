"""Reward functions that misbehave if the response asks for it, and else return 1.

They also serve as checkers of answers. ``hostile`` does whatever a response asks for with "guilty
NAME".
"""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction

import numpy as np

MIB = 2**20


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Unreadable:
    def __repr__(self):
        raise RuntimeError("no text")


def raises():
    raise ValueError("cannot score this")


def raises_unprintable():
    raise Unprintable


def raises_base():
    raise BaseException("no Exception")


def interrupts():
    raise KeyboardInterrupt


def exits():
    sys.exit(3)


def exits_at_once():
    os._exit(7)


def crashes():
    ctypes.string_at(0)


def aborts():
    os.abort()


def kills_its_group():
    os.killpg(0, signal.SIGKILL)


def sleeps():
    time.sleep(1000)


def swallows_everything():
    while True:
        with suppress(BaseException):
            time.sleep(0.01)


def hangs_in_c():
    all(itertools.repeat(True))  # forever, without a bytecode in between


def has_its_own_alarm():
    """Takes over all alarms, as math libraries do for their own limits."""
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    while True:
        pass


def waits_for_a_thread():
    thread = threading.Thread(target=time.sleep, args=(1000,))
    thread.start()
    thread.join()


def waits_for_a_process():
    subprocess.run(["sleep", "1000"], check=True)


def asks():
    return input("reward? ")


def closes_everything():
    os.closerange(3, 1024)


def eats_memory():
    eaten = []
    while True:
        eaten.append(b"x" * (64 * MIB))


def asks_for_too_much_memory():
    return bytearray(2**60)


def recurses():
    return recurses()


HOSTILE = {  # with what the reason must contain
    raises: "raised ValueError: cannot score this",
    raises_unprintable: "raised Unprintable: (its message cannot be read)",
    raises_base: "raised BaseException: no Exception",
    interrupts: "raised KeyboardInterrupt",
    exits: "raised SystemExit: 3",
    exits_at_once: "ended its process with exit code 7 (2 times)",
    crashes: "ended its process by SIGSEGV (2 times)",
    aborts: "ended its process by SIGABRT (2 times)",
    kills_its_group: "ended its process by SIGKILL (2 times)",
    sleeps: "took longer than",
    swallows_everything: "took longer than",
    hangs_in_c: "took longer than",
    has_its_own_alarm: "took longer than",
    waits_for_a_thread: "took longer than",
    waits_for_a_process: "took longer than",
    asks: "raised EOFError",
    closes_everything: "ended its process",
    eats_memory: "took more memory than 320 MiB (verifier.memory_mib) (2 times)",
    asks_for_too_much_memory: "raised MemoryError",
    recurses: "raised RecursionError",
}


def leaves_an_alarm():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    return 1.0


def leaves_threads():
    for _ in range(4):
        threading.Thread(target=time.sleep, args=(1000,)).start()
    return 1.0


def forks():
    os.fork()  # both return
    return 1.0


def prints_a_lot():
    for _ in range(2000):
        print("x" * 1000)
        print("x" * 1000, file=sys.stderr)
    return 1.0


def goes_elsewhere():
    os.chdir("/")
    sys.path.clear()
    os.environ.clear()
    return 1.0


def closes_its_output():
    sys.stdout.close()
    os.close(1)
    return 1.0


async def returns_later():
    return 1.0


SELFISH = [  # their own reward is right, and later samples must not suffer
    leaves_an_alarm,
    leaves_threads,
    forks,
    prints_a_lot,
    goes_elsewhere,
    closes_its_output,
    returns_later,
]


def hostile(question: str, answer: str, response: str):
    _, _, name = response.partition("guilty ")
    return globals()[name]() if name else 1.0


VALUES = {  # accepted return values, and the reward that each means
    "bool": (True, 1.0),
    "integer": (3, 3.0),
    "numpy bool": (np.bool_(False), 0.0),
    "numpy float32": (np.float32(0.25), 0.25),
    "numpy float16": (np.float16(0.5), 0.5),
    "numpy int64": (np.int64(-2), -2.0),
    "array without dimensions": (np.array(0.5), 0.5),
    "bool array without dimensions": (np.array(True), 1.0),
    "fraction": (Fraction(1, 4), 0.25),
    "decimal": (Decimal("0.1"), 0.1),
}

BAD_VALUES = {  # rejected return values, and what the reason calls each
    "nan": (float("nan"), "nan (float), which is not a finite number"),
    "infinity": (-float("inf"), "-inf (float), which is not a finite number"),
    "numpy nan": (np.float32("nan"), "nan (float), which is not a finite number"),
    "decimal nan": (Decimal("sNaN"), "Decimal('sNaN') (Decimal), which is not a finite number"),
    "beyond floats": (10**400, "which is not a finite number"),
    "none": (None, "None (NoneType), which is not a number"),
    "text": ("1.0", "'1.0' (str), which is not a number"),
    "list": ([1.0], "[1.0] (list), which is not a number"),
    "array": (np.ones(2), "array([1., 1.]) (ndarray), which is not a number"),
    "complex": (1j, "1j (complex), which is not a number"),
    "unreadable": (
        Unreadable(),
        "a value that cannot be printed (Unreadable), which is not a number",
    ),
}


def value(question: str, answer: str, response: str):
    _, _, name = response.partition("value ")
    return (VALUES | BAD_VALUES)[name][0] if name else 1.0


def loads_first(question: str, answer: str, response: str):
    """The first call in a process takes longer than a call may."""
    if "loaded" not in globals():
        time.sleep(2.0)
        globals()["loaded"] = True
    return hostile(question, answer, response)


def even(question: str, answer: str, response: str) -> float:
    """A reward that a model without any skill gets half of the time."""
    return float(len(response) % 2 == 0)

"""The findings of a run in sentences, the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

from bi_ray.intervals import Interval
from bi_ray.report.number_format import percent_range, points, small, small_interval
from bi_ray.report.scores import TableRow
from bi_ray.report.summary import GainDifference, Summary

# cosine between two halves of the targets: below it, less than a fifth of the squared length of
# their sum is signal
SIGNAL_COSINE = 0.1
_FEW_INFORMATIVE = 0.2
_VERDICTS = {1: "a gain beyond chance", -1: "a loss beyond chance", 0: "not more than chance"}


def findings(summary: Summary) -> list[str]:
    """The answer, and what accuracy would be without RL."""
    return answer(summary) + controls(summary)


def answer(summary: Summary) -> list[str]:
    """The answer of a run in plain sentences, the most important first."""
    lines = [_difference(row) for row in summary.difference_of_gains]
    if not lines:
        lines = [_gain(row, row.gain) for row in summary.table if row.gain]
    if not lines:
        nothing = "No answer yet: no arm has been evaluated before and after RL."
        return [nothing, *_informative(summary)]
    lines += _informative(summary)
    lines += _forecast(summary)
    if summary.seeds == 1:
        lines.append(
            "This is one seed: the intervals cover the choice of problems, not the luck of one "
            "training; `bi-ray study CONFIG --run DIR` repeats it with three seeds."
        )
    return lines


def _difference(row: GainDifference) -> str:
    comparison = "more" if row.difference.value >= 0 else "less"
    points_more = f"{points(abs(row.difference.value))} points {comparison}"
    gained = (
        f"RL gained {points_more} with {row.arm} than with {row.against}, "
        f"{percent_range(row.difference, signed=True)} at 95 %"
    )
    if row.difference.sign == 0:
        return f"On {row.set}, no difference beyond chance: {gained}."
    return f"On {row.set}, {gained}: beyond chance."


def _gain(row: TableRow, gain: Interval) -> str:
    change = f"{points(gain.value, signed=True)} points ({percent_range(gain, signed=True)})"
    return (
        f"On {row.set}, RL changed the accuracy of {row.arm} by {change}: {_VERDICTS[gain.sign]}."
    )


def _informative(summary: Summary) -> list[str]:
    """How many queries can teach anything, by arm; no sentence without a measurement."""
    shares = []
    for arm, measured in summary.readiness.items():
        share = measured.accuracy.informative
        if share is not None:
            shares.append(f"{points(share.value)} % ({percent_range(share)}) with {arm}")
    if not shares:
        return []
    return [f"Before RL, the share of queries that teach anything was {' and '.join(shares)}."]


def _forecast(summary: Summary) -> list[str]:
    """Whether the arm with the larger influence before RL gained more; nothing if not measured."""
    if not summary.difference_of_gains:
        return []
    outcome = summary.difference_of_gains[0]
    second = summary.readiness.get(outcome.arm)
    first = summary.readiness.get(outcome.against)
    if first is None or second is None:
        return []
    scale = next(iter(first.influence))
    if scale not in second.influence:
        return []
    first_dj = first.influence[scale].all.dj
    second_dj = second.influence[scale].all.dj
    if first_dj is None or second_dj is None:
        return []
    noise = _noise(second.halves_cosine.get(scale), first.halves_cosine.get(scale))
    predicted = (
        f"Before RL, the predicted influence dJ was {small_interval(second_dj)} with {outcome.arm} "
        f"and {small_interval(first_dj)} with {outcome.against}{noise}"
    )
    return [f"{predicted}: {_forecast_verdict(outcome, first_dj, second_dj)}."]


def _noise(*cosines: float | None) -> str:
    """A warning if the target's gradient is mostly noise, from the cosines between its halves."""
    known = [cosine for cosine in cosines if cosine is not None]
    if min(known, default=1.0) >= SIGNAL_COSINE:
        return ""
    return (
        " (the target's gradient is mostly sampling noise, the cosines between its halves are "
        f"{' and '.join(map(small, known))}: raise readiness.target_queries)"
    )


def _forecast_verdict(outcome: GainDifference, first: Interval, second: Interval) -> str:
    """Whether the forecast came true; ``second`` is the influence of the outcome's arm."""
    if second.low <= first.high and first.low <= second.high:
        return "too close to call, the intervals overlap"
    named = outcome.arm if second.value > first.value else outcome.against
    if outcome.difference.sign == 0:
        return f"it named {named}, and the gains do not differ beyond chance"
    gained_more = outcome.arm if outcome.difference.value > 0 else outcome.against
    return f"it named {named}, {'rightly' if named == gained_more else 'wrongly'}"


def controls(summary: Summary) -> list[str]:
    """What accuracy would be without RL."""
    lines = []
    for row in summary.base_model:
        lines.append(_control(f"{row.arm} before SFT", row.accuracy, row.set))
    for row in summary.sft_twice_the_budget:
        name = f"{row.arm} after twice the SFT budget, without RL"
        lines.append(_control(name, row.accuracy, row.set))
    for name, accuracy in summary.constant_answers().items():
        lines.append(f"Always giving the same answer would score {points(accuracy)} % on {name}.")
    return lines


def _control(name: str, accuracy: Interval, set_name: str) -> str:
    return f"{name}: {points(accuracy.value)} % ({percent_range(accuracy)}) on {set_name}."


def advice(summary: Summary) -> list[str]:
    """What to do next."""
    lines = []
    for row in summary.table:
        informative = row.sft.informative
        if informative is None or row.set != summary.table[0].set:
            continue
        if informative < _FEW_INFORMATIVE:
            lines.append(
                f"Next: after SFT only {informative:.0%} of the queries of {row.arm} were "
                "informative, so RL had little to learn from; make task.sets.rl easier, or train "
                "SFT longer"
            )
    lines.append(
        "Next: `bi-ray show CONFIG` prints what the arms were taught, `bi-ray options` what can be "
        "changed"
    )
    return lines

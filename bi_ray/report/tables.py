"""The result as tables, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from bi_ray.intervals import Interval
from bi_ray.report.scores import StageSummary, TableRow

# fields of `scores.StageSummary`; those of the trace are too many for a terminal
_SHARES = ("informative", "trace_valid", "format_right")
_TRACE = ("progress", "right_reflections")
_STYLES = {1: "green", 0: "default", -1: "red"}  # by the sign of a gain


def render_table(table: Sequence[TableRow], title: str = "Greedy accuracy, %") -> Table:
    """The table for a terminal, with intervals in parentheses.

    A gain whose interval is above 0 is green, below 0 red.
    """
    rendered = Table(
        title=title,
        caption="95 % intervals: Wilson, or bootstrap over seeds and problems; gains paired",
    )
    rendered.add_column("arm", no_wrap=True)
    rendered.add_column("set", no_wrap=True)
    for name in ("SFT", "RL", "gain"):
        rendered.add_column(name, justify="right", no_wrap=True)
    for row in table:
        gain = "-"
        if row.gain:
            style = _STYLES[row.gain.sign]
            gain = f"[{style}]{_percent(row.gain, signed=True)}[/{style}]"
        rl = _short(row.rl.accuracy) if row.rl else "-"
        rendered.add_row(row.arm, row.set, _short(row.sft.accuracy), rl, gain)
    return rendered


def render_samples(table: Sequence[TableRow]) -> Table:
    """What the sampled responses and the greedy traces show, before RL and after it."""
    rendered = Table(
        title="Before → after RL, %", caption="pass@k, informative: sampled; trace, format: greedy"
    )
    ks = extreme_ks(table)
    rendered.add_column("arm", no_wrap=True)
    rendered.add_column("set", no_wrap=True)
    names = [f"pass@{k}" for k in ks]
    for name in (*names, "informative", "trace", "format"):
        rendered.add_column(name, justify="right", no_wrap=True)
    for row in table:
        rendered.add_row(row.arm, row.set, *_before_after(row, ks, _SHARES))
    return rendered


def extreme_ks(table: Sequence[TableRow]) -> list[int]:
    """The smallest and the largest k for which any row has pass@k."""
    ks: set[int] = set()
    for row in table:
        ks |= row.sft.pass_at.keys()
    return sorted({min(ks), max(ks)}) if ks else []


def markdown_table(table: Sequence[TableRow]) -> str:
    """Both tables in one, as Markdown."""
    lines = [
        "| arm | set | SFT | RL | gain | pass@1 | informative | valid trace | right format "
        "| progress | right reflections |",
        f"|{'---|' * 11}",
    ]
    for row in table:
        cells = [
            row.arm,
            row.set,
            _percent(row.sft.accuracy),
            _percent(row.rl.accuracy) if row.rl else "-",
            _percent(row.gain, signed=True) if row.gain else "-",
            *_before_after(row, [1], (*_SHARES, *_TRACE)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _before_after(row: TableRow, ks: Sequence[int], names: Sequence[str]) -> list[str]:
    """Cells "before → after": pass@k for every k, and the named fields, in percent."""
    before = _figures(row.sft, ks, names)
    after = _figures(row.rl, ks, names) if row.rl else ["-"] * len(before)
    return list(map("{} → {}".format, before, after))


def _figures(stage: StageSummary, ks: Sequence[int], names: Sequence[str]) -> list[str]:
    values = [stage.pass_at.get(k) for k in ks]
    values += [getattr(stage, name) for name in names]
    return ["-" if value is None else f"{100 * value:.0f}" for value in values]


def _short(interval: Interval) -> str:
    """For example "41.5 (38–45)": the table fits a terminal of 80 columns."""
    return f"{100 * interval.value:.1f} ({100 * interval.low:.0f}–{100 * interval.high:.0f})"


def _percent(interval: Interval, signed: bool = False) -> str:
    """For example "41.5 (38.5 to 44.6)"; parentheses, since rich reads brackets as markup."""
    sign = "+" if signed else ""
    value, low, high = 100 * interval.value, 100 * interval.low, 100 * interval.high
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"

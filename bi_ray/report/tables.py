"""The result as tables, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from bi_ray.intervals import Interval
from bi_ray.report.scores import StageSummary, TableRow


def render_table(table: Sequence[TableRow], title: str = "Greedy accuracy, %") -> Table:
    """The table for a terminal, intervals in brackets; a gain whose interval is above 0 is green,
    below 0 red.
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
            style = "green" if row.gain.above_zero else "red" if row.gain.high < 0 else "default"
            gain = f"[{style}]{_percent(row.gain, signed=True)}[/{style}]"
        rl = _short(row.rl.accuracy) if row.rl else "-"
        rendered.add_row(row.arm, row.set, _short(row.sft.accuracy), rl, gain)
    return rendered


def render_samples(table: Sequence[TableRow]) -> Table:
    """What the sampled responses and the greedy traces say, before RL and after it."""
    rendered = Table(
        title="Before → after RL, %", caption="pass@k, informative: sampled; trace, format: greedy"
    )
    every = {k for row in table for k in row.sft.pass_at}
    ks = sorted({min(every), max(every)}) if every else []
    rendered.add_column("arm", no_wrap=True)
    rendered.add_column("set", no_wrap=True)
    for name in (*(f"pass@{k}" for k in ks), "informative", "trace", "format"):
        rendered.add_column(name, justify="right", no_wrap=True)
    for row in table:
        rendered.add_row(row.arm, row.set, *_before_after(row, ks))
    return rendered


def markdown_table(table: Sequence[TableRow]) -> str:
    """Both tables in one, as Markdown."""
    lines = [
        "| arm | set | SFT | RL | gain | pass@1 | informative | valid trace | right format | progress "
        "| right reflections |",
        f"|{'---|' * 11}",
    ]
    for row in table:
        after = _percent(row.rl.accuracy) if row.rl else "-"
        gain = _percent(row.gain, signed=True) if row.gain else "-"
        cells = [
            row.arm,
            row.set,
            _percent(row.sft.accuracy),
            after,
            gain,
            *_before_after(row, [1], _TRACE),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# `evaluation.SetScore` says what they are; too many for a terminal
_TRACE = ("progress", "right_reflections")


def _before_after(row: TableRow, ks: Sequence[int], more: Sequence[str] = ()) -> list[str]:
    """Cells "before → after": pass@k for every k, informative share, valid traces, right format,
    and ``more``.
    """

    def figures(stage: StageSummary | None) -> list[float | None]:
        if stage is None:
            return [None] * (len(ks) + 3 + len(more))
        others = (
            stage.informative,
            stage.trace_valid,
            stage.format_right,
            *(getattr(stage, name) for name in more),
        )
        return [*(stage.pass_at.get(k) for k in ks), *others]

    pairs = zip(figures(row.sft), figures(row.rl), strict=True)
    return [
        " → ".join("-" if value is None else f"{100 * value:.0f}" for value in pair)
        for pair in pairs
    ]


def _short(interval: Interval) -> str:
    """For example "41.5 (38–45)": the table fits a terminal of 80."""
    value, low, high = (100 * part for part in interval)
    return f"{value:.1f} ({low:.0f}–{high:.0f})"


def _percent(interval: Interval, signed: bool = False) -> str:
    """For example "41.5 (38.5 to 44.6)"; parentheses, since rich reads square brackets as markup."""
    sign = "+" if signed else ""
    value, low, high = (100 * part for part in interval)
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"

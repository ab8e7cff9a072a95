"""Tables in the layout of the paper's Tables 2 and 3, as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..fleischner import Subtype
from .agreement import Agreement
from .percentages import PercentageAgreement
from .report import Comparison, Report, SubtypeReport
from .voxels import VoxelAgreement

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
NOTHING = DASH
"""What stands for a figure that is not defined."""

_LATEX = str.maketrans(
    {sign: rf"\{sign}" for sign in "%&_#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", DASH: "--", MINUS: "$-$"}
)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        caption: one sentence or two under its number.
        header: a cell a column.
        rows: as long as the header.
        labels: how many columns, from the left, hold words.
        spanner: a heading over all columns but the first and the last, or nothing.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    spanner: str = ""


def all_tables(reports: Sequence[Report], comparison: Comparison | None) -> list[Table]:
    """Every table that the figures allow: agreement, confusion matrices, percentages, voxels, difference."""
    parts = [(report, part) for report in reports for part in report.subtypes]
    tables = [*score_tables(parts), *extent_tables(parts)]
    if comparison:
        tables.append(difference_table(comparison))
    return tables


def score_tables(parts: Sequence[tuple[Report, SubtypeReport]]) -> list[Table]:
    """Agreement of the scores, and the confusion matrices that they allow."""
    matrices = [confusion_table(report, part.pairs.subtype, part.agreement) for report, part in parts if part.agreement]
    return [agreement_table(parts), *matrices]


def extent_tables(parts: Sequence[tuple[Report, SubtypeReport]]) -> list[Table]:
    """Agreement of percentages and of voxels, where they are known."""
    tables = []
    told = [(report, part, part.percentages) for report, part in parts if part.percentages]
    if told:
        tables.append(percentage_table(told))
    mapped = [(report, part, part.voxels) for report, part in parts if part.voxels]
    if mapped:
        tables.append(voxel_table(mapped))
    return tables


def agreement_table(parts: Sequence[tuple[Report, SubtypeReport]]) -> Table:
    """Table 2 of the paper: accuracy, F-measure and kappa of each method and subtype, in percent."""
    rows = []
    for report, part in parts:
        figures = part.agreement
        cells = [NOTHING] * 3
        if figures:
            kappa = with_interval(figures.linear_weighted_kappa, figures.linear_weighted_kappa_ci95)
            cells = [percent(figures.accuracy), percent(figures.f_measure), kappa]
        rows.append((report.name, part.pairs.subtype.name.capitalize(), *cells))
    caption = (
        f"Agreement with the {parts[0][0].reference} ({_sizes(parts)}): accuracy (ACC), F-measure (macro average), and "
        "linear weighted kappa with its large-sample 95 % confidence interval, times 100."
    )
    header = ("Method", "Subtype", "ACC (%)", "F-measure", "Linear weighted kappa (95% CI)")
    return Table(caption, header, tuple(rows), labels=2)


def _sizes(parts: Sequence[tuple[Report, SubtypeReport]]) -> str:
    """How many cases: one number where all are equal, else one for each row of the table."""
    sizes = [len(part.pairs.entities) for _, part in parts]
    return f"n = {sizes[0]}" if len(set(sizes)) == 1 else f"n = {', '.join(map(str, sizes))}, row by row"


def confusion_table(report: Report, subtype: Subtype, agreement: Agreement) -> Table:
    """Table 3 of the paper: rows are predictions, columns the reference, with precision and recall in percent."""
    grades = [grade.severity.capitalize() for grade in subtype.grades]
    rows = [
        (grade, *map(str, counts), percent(figures.precision))
        for grade, counts, figures in zip(grades, agreement.confusion_matrix, agreement.per_grade, strict=True)
    ]
    recall = ("Recall (%)", *(percent(figures.recall) for figures in agreement.per_grade))
    rows.append((*recall, f"{percent(agreement.accuracy)} (ACC%)"))
    caption = f"{report.name}, {subtype.name} emphysema: predictions (rows), {report.reference} (columns), n = {agreement.n}."
    return Table(caption, ("Predicted", *grades, "Precision (%)"), tuple(rows), spanner=report.reference.capitalize())


def percentage_table(parts: Sequence[tuple[Report, SubtypeReport, PercentageAgreement]]) -> Table:
    """Error and intraclass correlation of percentages."""
    rows = []
    for report, part, figures in parts:
        limits = figures.limits_of_agreement_points
        rows.append(
            (
                report.name,
                part.pairs.subtype.name.capitalize(),
                str(figures.n),
                f"{figures.mean_absolute_error_points:.2f}",
                NOTHING if figures.intraclass_correlation is None else number(figures.intraclass_correlation, 3),
                number(figures.bias_points),
                NOTHING if limits is None else f"{number(limits[0])} to {number(limits[1])}",
            )
        )
    caption = (
        "Agreement of the percentage of the lung with the reference: mean absolute error (MAE), intraclass correlation for "
        "absolute agreement (ICC), and bias (predicted minus reference) with its 95 % limits of agreement, in points."
    )
    return Table(caption, ("Method", "Subtype", "n", "MAE", "ICC", "Bias", "Limits of agreement"), tuple(rows), labels=2)


def voxel_table(parts: Sequence[tuple[Report, SubtypeReport, VoxelAgreement]]) -> Table:
    """Agreement of activation maps with voxel truth."""
    rows = tuple(
        (
            report.name,
            part.pairs.subtype.name.capitalize(),
            f"{figures.n_with_subtype} of {figures.n}",
            *(
                NOTHING if figure is None else f"{figure:.3f}"
                for figure in (figures.pooled_dice, figures.mean_dice, figures.claimed_by_own, figures.claimed_by_other)
            ),
        )
        for report, part, figures in parts
    )
    caption = (
        "Activation maps at 0.5 against voxel truth: Dice of all scans' voxels together (pooled) and averaged over the scans "
        "that have the subtype; share of the truth that the subtype's own map and the other subtype's map claim."
    )
    header = ("Method", "Subtype", "Scans with it", "Dice, pooled", "Dice, mean", "Claimed by own", "Claimed by other")
    return Table(caption, header, rows, labels=2)


def difference_table(comparison: Comparison) -> Table:
    """Differences of two results on the same scans."""
    rows = tuple(
        (
            name.capitalize(),
            str(difference.n),
            with_interval(difference.accuracy, difference.accuracy_ci95),
            with_interval(difference.linear_weighted_kappa, difference.linear_weighted_kappa_ci95),
        )
        for name, difference in comparison.differences.items()
        if difference
    )
    caption = (
        f"{comparison.name} minus {comparison.other} on the same scans, times 100, with the 95 % interval of a "
        "paired bootstrap of cases."
    )
    return Table(caption, ("Subtype", "n", "ACC (95% CI)", "Linear weighted kappa (95% CI)"), rows)


def number(value: float, decimals: int = 2) -> str:
    """A number with a true minus sign, and without one before zero."""
    text = f"{value:.{decimals}f}"
    return (text if float(text) else text.lstrip("-")).replace("-", MINUS)


def percent(fraction: float | None) -> str:
    """A fraction in percent with two decimals, as the paper prints it."""
    return NOTHING if fraction is None else number(100 * fraction)


def with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    """A fraction and its interval in percent, as in `64.24 (63.14 to 65.35)` with a dash."""
    if interval is None:
        return percent(value)
    to = DASH if min(interval) >= 0 else " to "
    return f"{percent(value)} ({percent(interval[0])}{to}{percent(interval[1])})"


def to_markdown(tables: Sequence[Table]) -> str:
    """All tables, numbered, as Markdown."""
    blocks = []
    for place, table in enumerate(tables, start=1):
        rule = "|".join(["---"] * table.labels + ["---:"] * (len(table.header) - table.labels))
        lines = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in (table.header, *table.rows)]
        blocks.append("\n".join([f"**Table {place}.** {table.caption}", "", lines[0], f"|{rule}|", *lines[1:]]))
    return "\n\n".join(blocks) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def to_latex(tables: Sequence[Table]) -> str:
    """All tables as LaTeX, for a document that uses the package booktabs."""
    blocks = [r"% Needs \usepackage{booktabs}."]
    for table in tables:
        columns = len(table.header)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{table.caption.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{{'l' * table.labels}{'r' * (columns - table.labels)}}}",
            r"\toprule",
        ]
        if table.spanner:
            lines.append(rf"& \multicolumn{{{columns - 2}}}{{c}}{{{table.spanner}}} & \\")
            lines.append(rf"\cmidrule(lr){{2-{columns - 1}}}")
        rows = [" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in (table.header, *table.rows)]
        lines += [rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"

"""What Xie et al., Sci Rep 2023, print: the confusion matrices of Tables 3 and 4, and the figures that go with them.

Rows are predictions, columns visual scores. Percentages are as printed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

Matrix = tuple[tuple[int, ...], ...]

CLASSIFICATION_CLE: Matrix = (  # Table 3 a
    (1621, 530, 259, 21, 0, 0),
    (625, 451, 322, 50, 0, 0),
    (230, 294, 664, 288, 4, 0),
    (22, 42, 142, 514, 141, 7),
    (0, 3, 15, 153, 322, 42),
    (1, 2, 7, 23, 189, 159),
)
CLASSIFICATION_PSE: Matrix = ((2508, 740, 181), (1144, 942, 467), (205, 183, 773))  # Table 3 b
REGRESSION_CLE_AS_PRINTED: Matrix = (  # Table 3 c, one case short
    (1734, 536, 206, 17, 0, 0),
    (696, 635, 682, 142, 2, 0),
    (56, 121, 393, 319, 21, 0),
    (11, 26, 117, 453, 192, 8),
    (2, 3, 10, 112, 334, 83),
    (0, 1, 1, 5, 107, 117),
)
REGRESSION_PSE: Matrix = ((2976, 839, 104), (784, 778, 455), (97, 248, 862))  # Table 3 d
HUMPHRIES_CLE: Matrix = (  # Table 4
    (637, 126, 35, 2, 0, 0),
    (1495, 751, 380, 23, 1, 0),
    (324, 377, 678, 166, 4, 0),
    (41, 66, 296, 643, 154, 8),
    (2, 2, 20, 211, 428, 108),
    (0, 0, 0, 4, 69, 92),
)


def with_the_missing_case(matrix: Matrix) -> Matrix:
    """Table 3 c with the case that is missing in print.

    By Table 1 b its visual score is moderate (1049 cases, 1048 in the matrix), and only as trace does it give the printed
    precision of that row, 29.43: 635 of 2158, where 635 of 2157 is 29.44.
    """
    return (matrix[0], (*matrix[1][:3], matrix[1][3] + 1, *matrix[1][4:]), *matrix[2:])


REGRESSION_CLE = with_the_missing_case(REGRESSION_CLE_AS_PRINTED)

PRECISION_AND_RECALL = {
    "3a": ((66.68, 31.15, 44.86, 59.22, 60.19, 41.73), (64.87, 34.11, 47.13, 49.00, 49.09, 76.44)),
    "3b": ((73.14, 36.90, 66.58), (65.02, 50.51, 54.40)),
    "3c": ((69.55, 29.43, 43.19, 56.13, 61.09, 50.65), (69.39, 48.03, 27.89, 43.18, 50.91, 56.25)),
    "3d": ((75.94, 38.57, 71.42), (77.16, 41.72, 60.66)),
    "4": ((79.62, 28.82, 43.77, 53.22, 55.51, 55.57), (25.49, 56.80, 48.11, 61.29, 65.24, 44.23)),
}

MISPRINTS = {("3c", "precision", 4): 61.40, ("4", "precision", 1): 28.34, ("4", "precision", 5): 55.76}
"""Three percentages in print that do not follow from the counts beside them: what does (334 of 544, 751 of 2650, 92 of 165)."""


def pairs(matrix: Matrix) -> list[tuple[int, int]]:
    """Visual and predicted score of every case behind a confusion matrix, sorted by the visual score."""
    return sorted(
        (visual, predicted) for predicted, row in enumerate(matrix) for visual, count in enumerate(row) for _ in range(count)
    )


def write_scores(path: Path, cle: Matrix | None, pse: Matrix | None) -> Path:
    """Write the cases behind two matrices as a table for `evaluate.py --scores`; cells of a missing case stay empty."""
    columns: list[Sequence[tuple[int | str, int | str]]] = [pairs(matrix) if matrix else [] for matrix in (cle, pse)]
    rows = max(map(len, columns))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["entity", "cle_reference", "cle_predicted", "pse_reference", "pse_predicted"])
        for place in range(rows):
            cells = [column[place] if place < len(column) else ("", "") for column in columns]
            writer.writerow([f"case-{place}", *cells[0], *cells[1]])
    return path

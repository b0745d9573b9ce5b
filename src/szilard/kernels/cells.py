"""Repulsion of soft discs (or rods, or spheres), and its derivatives, through cell lists.

Points are sorted into cells at least as wide as the force reaches, so that each looks at its own cell
and the adjacent ones alone: work grows with the number of points, not with that of pairs.
"""

from __future__ import annotations

import numpy as np

from szilard.kernels.compiled import _compiled

_MOST_CELLS = 1 << 22
_FEW = 24


@_compiled()
def _sort(x, low, width, cells, box):  # type: ignore[no-untyped-def]
    """Cell of each point, points in the order of their cells, and where each cell begins."""
    n, d = x.shape
    total = 1
    for a in range(d):
        total *= cells[a]
    of = np.empty(n, np.int64)
    begin = np.zeros(total + 1, np.int64)
    for i in range(n):
        cell = 0
        for a in range(d):
            at = x[i, a] - low[a]
            if box > 0:
                at -= box * np.floor(at / box)
            c = int(at / width[a])
            cell = cell * cells[a] + min(max(c, 0), cells[a] - 1)
        of[i] = cell
        begin[cell + 1] += 1
    for c in range(total):
        begin[c + 1] += begin[c]
    order = np.empty(n, np.int64)
    filled = begin.copy()
    for i in range(n):
        order[filled[of[i]]] = i
        filled[of[i]] += 1
    return of, order, begin


@_compiled()
def _forces(x, low, width, cells, box, reach, beta, contact, force, slope):  # type: ignore[no-untyped-def]
    n, d = x.shape
    of, order, begin = _sort(x, low, width, cells, box)
    around = 3**d if cells.max() > 1 else 1
    offset = np.empty(d, np.int64)
    gap = np.empty(d)
    for i in range(n):
        for k in range(around):
            rest, cell, stride, inside = k, 0, 1, True
            home = of[i]
            for a in range(d - 1, -1, -1):
                offset[a] = rest % 3 - 1 if around > 1 else 0
                rest //= 3
                c = home % cells[a] + offset[a]
                home //= cells[a]
                if box > 0:
                    c = (c + cells[a]) % cells[a]
                elif c < 0 or c >= cells[a]:
                    inside = False
                    break
                cell += c * stride
                stride *= cells[a]
            if not inside:
                continue
            for slot in range(begin[cell], begin[cell + 1]):
                j = order[slot]
                if j == i:
                    continue
                square = 0.0
                for a in range(d):
                    g = x[i, a] - x[j, a]
                    if box > 0:
                        g -= box * np.round(g / box)
                    gap[a] = g
                    square += g * g
                if square >= reach * reach or square == 0.0:
                    continue
                r = np.sqrt(square)
                u = beta * (contact - r)
                # log(1 + e^u) without overflow.
                push = (max(u, 0.0) + np.log1p(np.exp(-abs(u)))) / beta
                fall = 1 / (1 + np.exp(-u)) if u >= 0 else np.exp(u) / (1 + np.exp(u))
                for a in range(d):
                    along = gap[a] * gap[a] / square
                    force[i, a] += push * gap[a] / r
                    slope[i, a] += -fall * along + push / r * (1 - along)


@_compiled()
def _clouds(x, box, reach, beta, contact, force, slope):  # type: ignore[no-untyped-def]
    batch, n, d = x.shape
    low, width, cells = np.empty(d), np.empty(d), np.empty(d, np.int64)
    for b in range(batch):
        # With one or two cells a side a neighbour would be met twice: then one cell holds all. It does
        # so too where points are so few that sorting them costs more than it saves.
        if box > 0:
            side = int(box // reach)
            cells[:] = side if side >= 3 and n > _FEW else 1
            low[:], width[:] = -box / 2, box / cells[0]
        else:
            volume = 1.0
            for a in range(d):
                low[a] = x[b, :, a].min()
                width[a] = max(x[b, :, a].max() - low[a], reach)
                volume *= width[a]
            # A few points far apart must not ask for more cells than memory holds.
            size = max(reach, (volume / min(_MOST_CELLS, 8 * n + 64)) ** (1 / d))
            for a in range(d):
                cells[a] = max(int(width[a] // size), 1) if n > _FEW else 1
                width[a] = max(width[a] / cells[a], reach) * (1 + 1e-12)
        _forces(x[b], low, width, cells, box, reach, beta, contact, force[b], slope[b])


def soft_repulsion(
    x: np.ndarray, *, beta: float, contact: float, reach: float, box: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """sum_j softplus_beta(contact - r_ij) e_ij on each point, and its derivatives d f_a / d x_a.

    Args:
        x: (batch, n, d) finite float64, d from 1 to 3; points of one row of the batch see each other.
        beta: steepness of the softplus ln(1 + e^(beta z)) / beta.
        contact: distance at which points touch.
        reach: distance beyond which the force is taken as 0.
        box: side of the periodic cube around 0 that holds the points, 0 for open space.

    Returns:
        Forces and slopes, each (batch, n, d). Of two points at one place neither pushes the other.
    """
    force, slope = np.zeros_like(x), np.zeros_like(x)
    _clouds(x, float(box), float(reach), float(beta), float(contact), force, slope)
    return force, slope

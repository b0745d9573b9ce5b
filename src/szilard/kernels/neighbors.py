"""Exact nearest neighbours of points among themselves, and counts of points within a radius.

Points lie in a tree whose every node is one block of `_LANES` lanes: points in a leaf, the bounding
boxes of as many blocks above it. Recursive median splits along the widest coordinate bring
neighbours into one block, so that a few vector instructions a coordinate test a whole node. A
search begins in the query's own leaf and climbs: what is near is seen first, and most of the rest
falls with its boxes. Numbers need no tree: they are sorted.

Distances are those of float64 arithmetic on the coordinates themselves. Rounding is monotone, so no
box is judged farther than the points in it, and the results are those of comparing all pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_LANES = 16
_SERIAL = 1 << 11  # queries below which another thread costs more than it saves
_PIECE = 1 << 14  # points (at least a leaf's) that are not worth arranging apart
_SAMPLE = 64  # points of a piece that tell how wide it is
_JOBS = 8  # a thread: queries differ in cost, and whoever is done takes the next job


class Tree(NamedTuple):
    """Points in the order of their leaves, and the boxes around them.

    Attributes:
        order: which point is in which slot; leaf b holds the slots from b * `_LANES` on.
        leaves: coordinates, (leaf, dimension, lane) flattened; unused lanes are inf.
        low: lower corners of the boxes, (node, dimension, lane) flattened; inf in unused lanes.
        high: upper corners; -inf in unused lanes.
        first: number of the first node of every level, the leaves being level 0 and not among
            them, and the number of nodes. Lane j of node i of a level is node i * `_LANES` + j of
            the level below.
    """

    order: np.ndarray
    leaves: np.ndarray
    low: np.ndarray
    high: np.ndarray
    first: np.ndarray


def kth_distances(points: np.ndarray, k: int, euclidean: bool, threads: int) -> np.ndarray:
    """Distance from every point to its k-th nearest other.

    Args:
        points: (n, d) finite float64.
        k: from 1 to n - 1.
        euclidean: that norm, or else the maximum norm.
        threads: how many search; the result does not depend on it.

    Returns:
        (n,) float64.
    """
    n, d = points.shape
    if d > 1:
        return _search_all(points, k, euclidean, threads, np.empty((0, k), np.intp))
    order = np.argsort(points[:, 0])
    values, distance = points[order, 0], np.empty(n)
    _spread(lambda a, b: _kth_sorted(values, order, k, a, b, distance), n, threads)
    return distance


def nearest(
    points: np.ndarray, k: int, euclidean: bool, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `kth_distances`, and the k points meant, (n, k) in no particular order.

    Of points at the same distance, which are taken depends on the order of the points.
    """
    index = np.empty((len(points), k), np.intp)
    return _search_all(points, k, euclidean, threads, index), index


def count_nearer(points: np.ndarray, radius: np.ndarray, threads: int) -> np.ndarray:
    """How many points, itself among them, are nearer to each than its radius in the maximum norm.

    Args:
        points: (n, d) finite float64.
        radius: (n,) float64.
        threads: how many count; the result does not depend on it.

    Returns:
        (n,) integers; 0 where the radius is 0.
    """
    n, d = points.shape
    counts = np.empty(n, np.intp)
    if d > 1:
        tree = _build(points, threads)
        _spread(lambda a, b: _count(*tree, d, radius, a, b, counts), n, threads)
    else:
        order = np.argsort(points[:, 0])
        values = points[order, 0]
        _spread(lambda a, b: _count_sorted(values, order, radius, a, b, counts), n, threads)
    return counts


def _search_all(
    points: np.ndarray, k: int, euclidean: bool, threads: int, index: np.ndarray
) -> np.ndarray:
    n, d = points.shape
    tree, distance = _build(points, threads), np.empty(n)
    _spread(lambda a, b: _search(*tree, d, k, euclidean, a, b, distance, index), n, threads)
    return np.sqrt(distance, out=distance) if euclidean else distance


def _build(points: np.ndarray, threads: int) -> Tree:
    n, d = points.shape
    # Of one kind whatever the points': another layout or a read-only array would compile anew.
    columns = np.require(points.T, requirements=("C", "W"))
    order, keys = np.arange(n), np.empty(n)
    pieces = [(0, n)]
    while len(pieces) < 4 * threads and threads > 1:
        begin, end = max(pieces, key=lambda piece: piece[1] - piece[0])
        if end - begin <= _PIECE:
            break
        middle = _split(columns, order, keys, begin, end)
        pieces.remove((begin, end))
        pieces += [(begin, middle), (middle, end)]
    _run(lambda a, b: _arrange(columns, order, keys, a, b), pieces, threads)
    leaves = -(-n // _LANES)
    sizes = [-(-leaves // _LANES)]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // _LANES))
    first = np.cumsum([0, 0, *sizes])
    tree = Tree(
        order,
        np.full(leaves * d * _LANES, np.inf),
        np.full(first[-1] * d * _LANES, np.inf),
        np.full(first[-1] * d * _LANES, -np.inf),
        first,
    )
    _fill(*tree, columns)
    return tree


def _spread(work: Callable[[int, int], object], n: int, threads: int) -> None:
    """Splits the slots 0..n among threads."""
    jobs = _JOBS * threads if threads > 1 and n > _SERIAL else 1
    edges = np.linspace(0, n, jobs + 1).astype(int).tolist()
    _run(work, list(pairwise(edges)), threads)


def _run(work: Callable[[int, int], object], jobs: list[tuple[int, int]], threads: int) -> None:
    if len(jobs) == 1:
        work(*jobs[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: work(*job), jobs))


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder to keep compiled code in is writable
        return numba.njit(nogil=True)(function)


# --- a node at a time ---------------------------------------------------------------------------


def _node_test(distance: str, euclidean: bool) -> Any:
    """Makes test(low, high, at, query, bound, out) of the lanes whose coordinates begin at `at`.

    It writes every lane's distance from the query to `out` (squared, if Euclidean) and returns a
    bit for every lane that is nearer than the bound. The distance is that of a `point` in low, of
    the `nearest` or of the `farthest` point of a box.
    """
    vector = ir.VectorType(ir.DoubleType(), _LANES)
    index = ir.IntType(32)

    @intrinsic
    def test(_context: Any, low: Any, high: Any, at: Any, query: Any, bound: Any, out: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lows, highs, queries, outs = (
                make_array(signature.args[i])(context, builder, args[i]) for i in (0, 1, 3, 5)
            )
            zero, anything = ir.Constant(vector, [0.0] * _LANES), ir.Constant(vector, ir.Undefined)
            first = ir.Constant(ir.VectorType(index, _LANES), [0] * _LANES)

            def in_all_lanes(value: Any) -> Any:
                one = builder.insert_element(anything, value, ir.Constant(index, 0))
                return builder.shuffle_vector(one, anything, first)

            def lanes(corners: Any, dim: Any) -> Any:
                place = builder.add(args[2], builder.mul(dim, ir.Constant(dim.type, _LANES)))
                address = builder.gep(corners.data, [place])
                return builder.load(builder.bitcast(address, vector.as_pointer()), align=8)

            def larger(x: Any, y: Any) -> Any:
                return builder.select(builder.fcmp_ordered(">", x, y), x, y)

            total = cgutils.alloca_once_value(builder, zero)
            with cgutils.for_range(builder, builder.extract_value(queries.shape, 0)) as loop:
                q = in_all_lanes(builder.load(builder.gep(queries.data, [loop.index])))
                side = builder.fsub(lanes(lows, loop.index), q)
                if distance == "point":
                    side = side if euclidean else larger(side, builder.fneg(side))
                elif distance == "nearest":
                    side = larger(side, builder.fsub(q, lanes(highs, loop.index)))
                    side = larger(side, zero) if euclidean else side
                else:
                    other = builder.fsub(lanes(highs, loop.index), q)
                    side = larger(builder.fneg(side), other)
                so_far = builder.load(total)
                if euclidean:
                    fused = ("contract",)
                    square = builder.fmul(side, side, flags=fused)
                    builder.store(builder.fadd(so_far, square, flags=fused), total)
                else:
                    builder.store(larger(side, so_far), total)
            result = builder.load(total)
            builder.store(result, builder.bitcast(outs.data, vector.as_pointer()), align=8)
            nearer = builder.fcmp_ordered("<", result, in_all_lanes(args[4]))
            return builder.zext(builder.bitcast(nearer, ir.IntType(_LANES)), ir.IntType(64))

        return types.uint64(low, high, types.intp, query, types.float64, out), lower

    return test


_point, _near, _far = (_node_test(of, False) for of in ("point", "nearest", "farthest"))
_point_squared, _near_squared = (_node_test(of, True) for of in ("point", "nearest"))


@intrinsic
def _lowest(_context: Any, bits: Any) -> Any:
    """Place of the lowest bit that is set; at least one must be."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), lower


@intrinsic
def _bits(_context: Any, bits: Any) -> Any:
    """How many bits are set."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), lower


@_compiled
def _without_lowest(bits):  # type: ignore[no-untyped-def]
    return bits & (bits - np.uint64(1))


@_compiled
def _load_query(leaves, d, slot, query):  # type: ignore[no-untyped-def]
    at = slot // _LANES * d * _LANES + slot % _LANES
    for dim in range(d):
        query[dim] = leaves[at + dim * _LANES]


# --- the tree -----------------------------------------------------------------------------------


@_compiled
def _part(keys, items, begin, end, pivot, equals):  # type: ignore[no-untyped-def]
    """Moves what is below the pivot (or equals it, if asked) to the front; says where that ends."""
    front = begin
    for i in range(begin, end):
        # Swaps always: a branch would be mispredicted half of the time.
        key, item = keys[i], items[i]
        keys[i], items[i] = keys[front], items[front]
        keys[front], items[front] = key, item
        front += (key < pivot) | (equals & (key == pivot))
    return front


@_compiled
def _select(keys, items, begin, end, nth):  # type: ignore[no-untyped-def]
    """Reorders both over begin..end: no key before place `nth` is larger than one from there on."""
    while begin < nth < end:
        a, b, c = keys[begin], keys[(begin + end) // 2], keys[end - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        middle = _part(keys, items, begin, end, pivot, False)
        if nth < middle:
            end = middle
        elif middle > begin:
            begin = middle
        else:
            # Nothing is smaller than the pivot, of which there may be many.
            begin = _part(keys, items, begin, end, pivot, True)


@_compiled
def _split(columns, order, keys, begin, end):  # type: ignore[no-untyped-def]
    """Parts the slots along the widest coordinate, the lower part a power of two of full leaves."""
    middle = begin + _LANES
    while 2 * (middle - begin) < end - begin:
        middle += middle - begin
    widest, width = 0, -1.0
    for dim in range(len(columns)):
        low, high = np.inf, -np.inf
        # Some of many will do: any coordinate is right, a wide one only faster.
        for i in range(begin, end, max(1, (end - begin) // _SAMPLE)):
            value = columns[dim, order[i]]
            low, high = min(low, value), max(high, value)
        if high - low > width:
            widest, width = dim, high - low
    for i in range(begin, end):
        keys[i] = columns[widest, order[i]]
    _select(keys, order, begin, end, middle)
    return middle


@_compiled
def _arrange(columns, order, keys, begin, end):  # type: ignore[no-untyped-def]
    if end - begin > _LANES:
        middle = _split(columns, order, keys, begin, end)
        _arrange(columns, order, keys, begin, middle)
        _arrange(columns, order, keys, middle, end)


@_compiled
def _fill(order, leaves, low, high, first, columns):  # type: ignore[no-untyped-def]
    d = len(columns)
    block = d * _LANES
    for slot in range(order.size):
        leaf, lane = slot // _LANES, slot % _LANES
        node = (leaf // _LANES) * block + leaf % _LANES
        for dim in range(d):
            value, row = columns[dim, order[slot]], dim * _LANES
            leaves[leaf * block + row + lane] = value
            low[node + row] = min(low[node + row], value)
            high[node + row] = max(high[node + row], value)
    for level in range(2, first.size - 1):
        for child in range(first[level] - first[level - 1]):
            node = (first[level] + child // _LANES) * block + child % _LANES
            inside = (first[level - 1] + child) * block
            for at in range(block):
                row = node + at // _LANES * _LANES
                low[row] = min(low[row], low[inside + at])
                high[row] = max(high[row], high[inside + at])


# --- searches -----------------------------------------------------------------------------------


@_compiled
def _replace_farthest(heap, items, distance, item):  # type: ignore[no-untyped-def]
    """Puts another in the place of the heap's root, the largest."""
    place, child = 0, 1
    while child < heap.size:
        if child + 1 < heap.size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= distance:
            break
        heap[place], items[place] = heap[child], items[child]
        place, child = child, 2 * child + 1
    heap[place], items[place] = distance, item


@_compiled
def _search(  # type: ignore[no-untyped-def]
    order, leaves, low, high, first, d, k, euclidean, begin, end, distance, index
):
    """Fills distance (squared, if Euclidean) and, if it has rows, index for slots begin..end."""
    block = d * _LANES
    query, found = np.empty(d), np.empty(_LANES)
    heap, items = np.empty(k), np.empty(k, np.intp)
    waiting = np.empty(_LANES * first.size)
    node, level = np.empty(waiting.size, np.intp), np.empty(waiting.size, np.intp)
    for slot in range(begin, end):
        _load_query(leaves, d, slot, query)
        heap.fill(np.inf)
        items.fill(slot)
        # What is below `base` of level `height` has been seen; the query itself to begin with.
        base, height = slot, 0
        while height < first.size - 1:
            seen = np.uint64(1) << np.uint64(base % _LANES)
            base //= _LANES
            node[0], level[0], waiting[0] = base, height, -1.0
            top = 1
            while top:
                top -= 1
                if not waiting[top] < heap[0]:
                    # The nearest waits on top of its siblings only: others may still be near.
                    continue
                at, here = node[top], level[top]
                if here == 0:
                    start = at * block
                    if euclidean:
                        near = _point_squared(leaves, leaves, start, query, heap[0], found)
                    else:
                        near = _point(leaves, leaves, start, query, heap[0], found)
                    near &= ~seen
                    while near:
                        lane = _lowest(near)
                        near = _without_lowest(near)
                        if found[lane] < heap[0]:
                            _replace_farthest(heap, items, found[lane], at * _LANES + lane)
                else:
                    start = (first[here] + at) * block
                    if euclidean:
                        near = _near_squared(low, high, start, query, heap[0], found)
                    else:
                        near = _near(low, high, start, query, heap[0], found)
                    near &= ~seen
                    bottom = top
                    while near:
                        lane = _lowest(near)
                        near = _without_lowest(near)
                        place = top
                        while place > bottom and waiting[place - 1] < found[lane]:
                            waiting[place] = waiting[place - 1]
                            node[place] = node[place - 1]
                            place -= 1
                        waiting[place], node[place] = found[lane], at * _LANES + lane
                        level[top] = here - 1
                        top += 1
                seen = np.uint64(0)
            height += 1
        distance[order[slot]] = heap[0]
        for i in range(k if len(index) else 0):
            index[order[slot], i] = order[items[i]]


@_compiled
def _count(  # type: ignore[no-untyped-def]
    order, leaves, low, high, first, d, radius, begin, end, counts
):
    block = d * _LANES
    query, unused = np.empty(d), np.empty(_LANES)
    node = np.empty(_LANES * first.size, np.intp)
    level = np.empty(node.size, np.intp)
    for slot in range(begin, end):
        _load_query(leaves, d, slot, query)
        r = radius[order[slot]]
        count = 0
        node[0], level[0] = 0, first.size - 2
        top = 1
        while top:
            top -= 1
            at, here = node[top], level[top]
            start = (first[here] + at) * block
            near = _near(low, high, start, query, r, unused)
            inside = near & _far(low, high, start, query, r, unused)
            near ^= inside
            size = _LANES**here
            while inside:
                child = at * _LANES + _lowest(inside)
                inside = _without_lowest(inside)
                count += min(size, order.size - child * size)
            while near:
                child = at * _LANES + _lowest(near)
                near = _without_lowest(near)
                if here == 1:
                    count += _bits(_point(leaves, leaves, child * block, query, r, unused))
                else:
                    node[top], level[top] = child, here - 1
                    top += 1
        counts[order[slot]] = count


# --- numbers ------------------------------------------------------------------------------------


@_compiled
def _kth_sorted(values, order, k, begin, end, distance):  # type: ignore[no-untyped-def]
    """The k + 1 nearest of sorted numbers are neighbours in a window that only moves up."""
    left = max(0, begin - k)
    for i in range(begin, end):
        x = values[i]
        while left + k + 1 < values.size and values[left + k + 1] - x < x - values[left]:
            left += 1
        distance[order[i]] = max(x - values[left], values[left + k] - x)


@_compiled
def _count_sorted(values, order, radius, begin, end, counts):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        x, r = values[i], radius[order[i]]
        # Compares differences, for x ± r would be rounded.
        left, right = 0, i
        while left < right:
            middle = (left + right) // 2
            if x - values[middle] < r:
                right = middle
            else:
                left = middle + 1
        low, right = left, values.size
        left = i
        while left < right:
            middle = (left + right) // 2
            if values[middle] - x < r:
                left = middle + 1
            else:
                right = middle
        counts[order[i]] = left - low

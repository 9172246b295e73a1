"""Stratified choice: a fraction of samples, or of groups of them, in which labels keep their share.

Owns the search by swaps. The objective is that of Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011;
their greedy assignment, one label at a time, was up to 50 % off for labels that occur with others,
which swapping corrects. Knows nothing of splits, files or images.

    >>> stratify(np.eye(4, dtype=np.uint8)[[0, 1, 0, 1]], 0.5, np.random.default_rng(0)).sum()
    np.int64(2)
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from tqdm import tqdm

Floats = NDArray[np.float64]
# Sets with at most this N * C**2, such as NUS-WIDE's 161,789 x 81, are split by dense products, as
# by version 0.2.0, so that their splits stay; for larger C these take minutes.
_MOST_DENSE = 2**30
_STARTS, _ROUNDS = 20, 20
_SHOWN_AFTER_S = 2


def stratify(
    targets: NDArray[np.uint8],
    fraction: float,
    rng: np.random.Generator,
    groups: NDArray[np.str_] | None = None,
) -> NDArray[np.bool_]:
    """Choose round(N * fraction) rows of targets (N, C), balanced by label; (N,) bool.

    Each label's count is within one or 5 % of its fraction, whichever is looser, if such a choice
    is found. groups: (N,), rows of equal ones are chosen together; the number of rows is then
    balanced like a label.
    """
    n, n_chosen = len(targets), round(len(targets) * fraction)
    if n_chosen in (0, n):
        return np.full(n, n_chosen > 0)
    with tqdm(
        desc="splitting", unit="swap", disable=None, leave=False, delay=_SHOWN_AFTER_S
    ) as progress:
        if groups is not None:
            return _stratify_groups(targets, groups, fraction, rng, progress)
        if n * targets.shape[1] ** 2 <= _MOST_DENSE:
            return _stratify_dense(targets, fraction, rng, progress)
        units = sparse.csr_array(targets, dtype=np.float64)
        return _Swaps(units, fraction, progress).search(n_chosen, rng)


def _tolerance(wanted: Floats) -> Floats:
    return np.maximum(1, 0.05 * wanted)


def _stratify_dense(
    targets: NDArray[np.uint8], fraction: float, rng: np.random.Generator, progress: tqdm
) -> NDArray[np.bool_]:
    n, n_chosen = len(targets), round(len(targets) * fraction)
    positives = targets.astype(np.float32)
    wanted = fraction * targets.sum(axis=0)
    best, least = np.zeros(n, dtype=bool), np.inf
    # Swapping can stop just outside the tolerance; another start seldom does.
    for _ in range(_STARTS):
        chosen = np.isin(np.arange(n), rng.permutation(n)[:n_chosen])
        deviation = _balance_dense(positives, chosen, wanted, progress)
        if deviation < least:
            best, least = chosen, deviation
        if least <= 1:
            break
    return best


def _balance_dense(
    positives: NDArray[np.float32], chosen: NDArray[np.bool_], wanted: Floats, progress: tqdm
) -> float:
    """Swap the best pair in and out of `chosen`, in place, until no swap lowers the cost.

    Return the largest deviation from `wanted`, in tolerances.
    """
    tolerance = _tolerance(wanted)

    def cost(counts: Floats) -> Floats:
        return ((counts - wanted) / tolerance) ** 4  # a high power emphasizes the worst labels

    counts = positives[chosen].sum(axis=0, dtype=np.float64)
    while True:
        # A row adds at most 1 to a label, so one product gives each row's exact change of cost.
        change = positives @ (cost(counts - 1) - cost(counts)).astype(np.float32)
        leaving = int(np.where(chosen, change, np.inf).argmin())
        without = counts - positives[leaving]
        change = positives @ (cost(without + 1) - cost(without)).astype(np.float32)
        entering = int(np.where(chosen, np.inf, change).argmin())
        swapped = without + positives[entering]
        if cost(swapped).sum() >= cost(counts).sum():
            return float(np.abs((counts - wanted) / tolerance).max(initial=0))
        chosen[[leaving, entering]] = False, True
        counts = swapped
        progress.update()


def _stratify_groups(
    targets: NDArray[np.uint8],
    groups: NDArray[np.str_],
    fraction: float,
    rng: np.random.Generator,
    progress: tqdm,
) -> NDArray[np.bool_]:
    """Choose whole groups; at least one, and never all, if there are two."""
    names, group_of = np.unique(groups, return_inverse=True)
    n, n_groups = len(targets), len(names)
    members = sparse.csr_array((np.ones(n), (group_of, np.arange(n))), shape=(n_groups, n))
    # The last column counts the rows of each group.
    counted = np.hstack([targets, np.ones((n, 1), np.uint8)])
    units = (members @ sparse.csr_array(counted, dtype=np.float64)).tocsr()
    n_chosen = min(max(1, round(n_groups * fraction)), n_groups - 1)
    chosen = _Swaps(units, fraction, progress, may_resize=True).search(n_chosen, rng)
    return chosen[group_of]


class _Swaps:
    """A search for units, rows of counts (U, C), whose sum is a fraction of all.

    may_resize: whether the number of chosen units may change.
    """

    def __init__(
        self, units: sparse.csr_array, fraction: float, progress: tqdm, *, may_resize: bool = False
    ) -> None:
        self.units, self.progress, self.may_resize = units, progress, may_resize
        self.wanted: Floats = fraction * units.sum(axis=0)
        self.tolerance = _tolerance(self.wanted)
        self.weights = np.ones(len(self.wanted))
        self.row_of = np.repeat(np.arange(units.shape[0]), np.diff(units.indptr))
        self.is_binary = bool((units.data == 1).all())

    def search(self, n_chosen: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Choose units at random and swap; what stays outside its tolerance then counts for more.

        That needs far fewer swaps than another start where labels are many and rare.
        """
        chosen = np.zeros(self.units.shape[0], dtype=bool)
        chosen[rng.permutation(len(chosen))[:n_chosen]] = True
        best, least = chosen, np.inf
        for _ in range(_ROUNDS):
            deviation = self._balance(chosen)
            if deviation.max(initial=0) < least:
                best, least = chosen.copy(), deviation.max(initial=0)
            if least <= 1:
                break
            self.weights[deviation > 1] *= 4
        return best

    def _balance(self, chosen: NDArray[np.bool_]) -> Floats:
        """Make the best moves, in place, until none lowers the cost; return the deviations (C,)."""
        counts: Floats = self.units[np.flatnonzero(chosen)].sum(axis=0)
        while True:
            cost, counts_after, moved = min(self._moves(chosen, counts), key=lambda move: move[0])
            if cost >= self._cost(counts).sum():
                return np.asarray(np.abs(counts - self.wanted) / self.tolerance)
            chosen[moved] = ~chosen[moved]
            counts = counts_after
            self.progress.update()

    def _moves(
        self, chosen: NDArray[np.bool_], counts: Floats
    ) -> list[tuple[float, Floats, list[int]]]:
        """Return the best moves, as (cost, counts, moved units)."""
        leaving = int(np.where(chosen, self._changes(counts, -1), np.inf).argmin())
        without = self._moved(counts, leaving, -1)
        entering = int(np.where(chosen, np.inf, self._changes(without, 1)).argmin())
        moves = [(self._moved(without, entering, 1), [leaving, entering])]
        if self.may_resize and chosen.sum() > 1:
            moves.append((without, [leaving]))
        if self.may_resize and (~chosen).sum() > 1:
            entering = int(np.where(chosen, np.inf, self._changes(counts, 1)).argmin())
            moves.append((self._moved(counts, entering, 1), [entering]))
        return [(float(self._cost(after).sum()), after, moved) for after, moved in moves]

    def _cost(self, counts: Floats, columns: NDArray[np.int64] | slice = slice(None)) -> Floats:
        squared = ((counts - self.wanted[columns]) / self.tolerance[columns]) ** 2
        return np.asarray(self.weights[columns] * squared**2)

    def _changes(self, counts: Floats, sign: int) -> Floats:
        """Return the change of cost if each unit were added (1) or removed (-1); (U,)."""
        now = self._cost(counts)
        if self.is_binary:
            return np.asarray(self.units @ (self._cost(counts + sign) - now))
        columns = self.units.indices
        then = self._cost(counts[columns] + sign * self.units.data, columns)
        sums = np.bincount(self.row_of, then - now[columns], minlength=self.units.shape[0])
        return sums.astype(np.float64, copy=False)

    def _moved(self, counts: Floats, unit: int, sign: int) -> Floats:
        entries = slice(*self.units.indptr[unit : unit + 2])
        after = counts.copy()
        after[self.units.indices[entries]] += sign * self.units.data[entries]
        return after

"""Ranks and top-k of embeddings: what callers use, and the registered ops with their Triton kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xmafast.kernels.dispatch import launch, use_triton
from xmafast.kernels.ranking import reference
from xmafast.kernels.ranking.scores import Formed, InnerProducts, Scores, at_once, finite
from xmafast.kernels.ranking.select import select
from xmafast.kernels.ranking.sweep import TILE, Band, Counter, Positives, Ranks, Tally, each_its_own, settle_rows, settle_sets, sweep

GATHERED = 2**25  # elements that a chunk of gathered candidates may hold
NEAR = 2**20  # pairs too close to call that a kernel may list, beside 8 for each query and candidate


@torch.library.custom_op("xmafast::count_above", mutates_args=(), device_types="cuda")
def _count_above(
    queries: Tensor, candidates: Tensor, order: Tensor | None, columns: Tensor, sets: Tensor | None,
    query_groups: Tensor | None, candidate_groups: Tensor | None,
    low_n: Tensor, high_n: Tensor, low_m: Tensor | None, high_m: Tensor | None, capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from xmafast.kernels.ranking import triton

    groups = None if query_groups is None or candidate_groups is None else (query_groups, candidate_groups)
    bands = (low_n, high_n) if low_m is None or high_m is None else (low_n, high_n, low_m, high_m)
    return launch(triton.count_above, queries, candidates, order, columns, sets, groups, bands, capacity)


@_count_above.register_kernel("cpu")
def _(
    queries: Tensor, candidates: Tensor, order: Tensor | None, columns: Tensor, sets: Tensor | None,
    query_groups: Tensor | None, candidate_groups: Tensor | None,
    low_n: Tensor, high_n: Tensor, low_m: Tensor | None, high_m: Tensor | None, capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return reference.count_above(
        queries.float() @ candidates.float().T, columns, sets, query_groups, candidate_groups, low_n, high_n, low_m, high_m, capacity
    )


@_count_above.register_fake
def _(
    queries: Tensor, candidates: Tensor, order: Tensor | None, columns: Tensor, sets: Tensor | None,
    query_groups: Tensor | None, candidate_groups: Tensor | None,
    low_n: Tensor, high_n: Tensor, low_m: Tensor | None, high_m: Tensor | None, capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    def made(n: int, dtype: torch.dtype) -> Tensor:
        return queries.new_empty(n, dtype=dtype)

    both = low_m is not None
    return (
        made(queries.shape[0], torch.int32),
        made(candidates.shape[0] if both else 1, torch.int32),
        made(capacity, torch.int64),
        made(1, torch.int32),
    )


@torch.library.custom_op("xmafast::unit_maxima", mutates_args=(), device_types="cuda")
def _unit_maxima(queries: Tensor, candidates: Tensor) -> Tensor:
    from xmafast.kernels.ranking import triton

    return launch(triton.unit_maxima, queries, candidates)


@_unit_maxima.register_kernel("cpu")
def _(queries: Tensor, candidates: Tensor) -> Tensor:
    return reference.unit_maxima(queries.float() @ candidates.float().T)


@_unit_maxima.register_fake
def _(queries: Tensor, candidates: Tensor) -> Tensor:
    return queries.new_empty((queries.shape[0], -(-candidates.shape[0] // reference.UNIT)), dtype=torch.float32)


def ranks(
    queries: Tensor,  # (N, D)
    candidates: Tensor,  # (M, D)
    positives: Tensor,  # (N,) int64
    *,
    group_ids: tuple[Tensor, Tensor] | None = None,  # (N,), (M,)
    offset: int = 0,
    positive_scores: Tensor | None = None,  # (N,) float64
    impl: str = "auto",
) -> Ranks:  # (N,), (N,) int64
    """Per query, how many candidates score above its positive and how many others tie with it; scores are raw inner products.

    The order is that of float64 arithmetic on the embeddings as given, in O(N + M) memory beside a tile. With ``group_ids``,
    candidates of the query's own group other than its positive are left out. NaN candidates are above nothing; a NaN positive
    ranks last: all others count as above it.

    ``candidates`` may be a shard that starts at candidate ``offset`` of all, with ``positives`` still counted over all. The
    counts of the shards sum to those of the whole; a shard needs ``positive_scores``, the sum of what ``score_positives``
    gives for each shard.

    Raises ValueError for shapes that do not fit, and for a positive outside the candidates without ``positive_scores``.
    """
    return _rank_inner(queries, candidates, positives, group_ids, offset, positive_scores, impl, both=False)[0]


def ranks_both(
    text: Tensor,  # (N, D)
    video: Tensor,  # (M, D)
    positives: Tensor | None = None,  # (N,) int64, the video of each text; None: the diagonal
    *,
    group_ids: tuple[Tensor, Tensor] | None = None,  # (N,), (M,)
    offset: int = 0,
    positive_scores: Tensor | None = None,  # (N,) float64
    impl: str = "auto",
) -> tuple[Ranks, Ranks]:  # ((N,), (N,)), ((M,), (M,)) int64
    """``ranks`` of both directions from one sweep: text to video for each text, video to text for each video.

    Video to text, the texts of one video compete as a set that scores by its best member, and a video's own texts are one
    positive: CLIP4Clip's protocol for several captions. With one text for each video it is plain ranking. A video without a
    text has no positive, and ranks last. ``offset`` and ``positive_scores`` as in ``ranks``: video shards; the first pair
    sums over the shards, the second is complete for the shard's own videos.
    """
    t2v, v2t = _rank_inner(text, video, positives, group_ids, offset, positive_scores, impl, both=True)
    assert v2t is not None
    return t2v, v2t


def topk(
    queries: Tensor,  # (N, D)
    candidates: Tensor,  # (M, D)
    k: int,
    *,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:  # (N, min(k, M)), (N, min(k, M)) int64
    """The k candidates of largest inner product, best first: exact, ties by the lower index, NaN last.

    Streams over chunks of queries. Candidates whose scores rounding might exchange are compared in float64. Scores are float32
    (float64 of float64 embeddings). Raises ValueError for k below 1 or shapes that do not fit.
    """
    scores = InnerProducts(*_prepared(queries, candidates))
    kernel = use_triton(impl, queries, candidates) and queries.dtype != torch.float64
    return topk_of(scores, k, _unit_shortlist if kernel else None)


def score_positives(queries: Tensor, candidates: Tensor, positives: Tensor, *, offset: int = 0) -> Tensor:
    """(N,) float64 scores of the positives that this shard of candidates holds, 0 for the others: the shards' sum is all of them."""
    return own_scores(InnerProducts(*_prepared(queries, candidates)), positives.long() - offset)


def own_scores(scores: Scores, columns: Tensor) -> Tensor:
    here = ((columns >= 0) & (columns < scores.shape[1])).nonzero().squeeze(1)
    own = torch.zeros(len(columns), dtype=torch.float64, device=columns.device)
    own[here] = scores.exact(here, columns[here])
    return own


def topk_of(
    scores: Scores, k: int, shortlist: Callable[[Scores, Tensor, int], tuple[Tensor, Tensor, Tensor]] | None
) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    with torch.no_grad():
        return select(scores, min(k, scores.shape[1]), shortlist)


def rank_of_scores(
    build: Callable[[Tensor | None], Scores],
    positives: Tensor | None,
    group_ids: tuple[Tensor, Tensor] | None,
    offset: int,
    given: Tensor | None,
    counter: Counter | None,
    *,
    both: bool,
) -> tuple[Ranks, Ranks | None]:
    """The counts of any scores. ``build(order)`` makes them with their queries in that order (None: as they are)."""
    scores = build(None)
    n, m = scores.shape
    device = scores.device
    if positives is None:
        if n != m:
            raise ValueError(f"{n} texts and {m} videos are not paired by their order; say which video each text describes")
        positives = torch.arange(n, device=device) + offset
    positives = positives.to(device).long()
    if positives.shape != (n,):
        raise ValueError(f"{n} queries need {n} positives, not {tuple(positives.shape)}")
    columns = positives - offset if offset else positives
    first, last = (int(end) for end in columns.aminmax()) if n else (0, -1)
    inside = first >= 0 and last < m
    if given is None and not inside:
        raise ValueError(
            f"a positive lies outside the candidates {offset} to {offset + m - 1}; for a shard of candidates, give "
            "positive_scores (the sum of score_positives over the shards)"
        )
    if given is not None and given.shape != (n,):
        raise ValueError(f"{n} queries need {n} positive_scores, not {tuple(given.shape)}")
    groups = None
    if group_ids is not None:
        groups = (group_ids[0].to(device).contiguous(), group_ids[1].to(device).contiguous())
        if groups[0].shape != (n,) or groups[1].shape != (m,):
            raise ValueError(f"group_ids must be ({n},) and ({m},), not {tuple(groups[0].shape)} and {tuple(groups[1].shape)}")
    order = sets = None
    if both and bool((positives[1:] > positives[:-1]).all()):
        sets = torch.arange(n, device=device)
    elif both:
        sets = positives.unique(return_inverse=True)[1]
        if bool((sets[1:] < sets[:-1]).any()):  # the texts of one video must follow each other
            order = positives.argsort(stable=True)
            scores, columns, sets = build(order), columns[order], sets[order]
            groups = None if groups is None else (groups[0][order], groups[1])
            given = None if given is None else given[order]
    if counter is None and n * m * scores.width <= at_once(TILE, device):
        scores = Formed(scores)
    own, slack = _own(scores, columns, given, rough=sets is None or each_its_own(sets))
    rows, other = sweep(scores, Positives(columns, own, slack, groups, sets), counter)
    if order is not None:
        back = torch.empty_like(order)
        back[order] = torch.arange(n, device=device)
        rows = rows[0][back], rows[1][back]
    return rows, other


def _own(scores: Scores, columns: Tensor, given: Tensor | None, *, rough: bool) -> tuple[Tensor, Tensor | None]:
    """The positives' scores, and how far they may be off: float32 will do until a candidate comes close."""
    if given is not None:
        return given.to(scores.device, torch.float64), None
    if isinstance(scores, Formed) and rough and scores.dtype == torch.float32:
        own = scores.matrix.gather(1, columns[:, None]).squeeze(1).double()
    else:
        every = torch.arange(len(columns), device=columns.device)
        if not rough or scores.dtype == torch.float64:
            return scores.exact(every, columns), None
        own = scores.exact(every, columns, torch.float32)
    if not finite(own):  # float32 may have run over
        odd = (~own.isfinite()).nonzero().squeeze(1)
        own[odd] = scores.exact(odd, columns[odd])
    return own, scores.errors


def _rank_inner(
    queries: Tensor, candidates: Tensor, positives: Tensor | None, group_ids: tuple[Tensor, Tensor] | None, offset: int,
    given: Tensor | None, impl: str, *, both: bool,
) -> tuple[Ranks, Ranks | None]:  # fmt: skip
    queries, candidates = _prepared(queries, candidates)
    counter = _count if use_triton(impl, queries, candidates) and queries.dtype != torch.float64 else None

    def build(order: Tensor | None) -> Scores:
        return InnerProducts(queries if order is None else queries[order], candidates)

    with torch.no_grad():
        return rank_of_scores(build, positives, group_ids, offset, given, counter, both=both)


def _prepared(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """One dtype, and unit stride along D."""
    dtype = torch.promote_types(queries.dtype, candidates.dtype)

    def ready(t: Tensor) -> Tensor:
        t = t.detach().to(dtype)
        return t if t.stride(-1) == 1 else t.contiguous()

    return ready(queries), ready(candidates)


def _count(scores: Scores, positives: Positives, bands: list[Band], rows: Tally, columns: Tally | None) -> bool:
    """The kernel's ``Counter`` for inner products."""
    assert isinstance(scores, InnerProducts)
    order = None
    if positives.sets is not None and not (order := tile_order(positives.sets))[0]:
        return False
    n, m = scores.shape
    capacity = NEAR + 8 * (n + m)
    above_n, above_m, near, found = _count_above(
        scores.queries, scores.candidates, None if order is None else order[1], *indices(positives), *limits(bands), capacity
    )
    return settle(scores, positives, rows, columns, above_n, above_m, near, int(found))


def indices(positives: Positives) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Columns, sets and groups in int32, which a kernel's registers hold twice as many of."""
    columns = positives.columns.clamp(-1, 2**31 - 1).int()
    sets = None if positives.sets is None else positives.sets.int()
    if positives.groups is None:
        return columns, sets, None, None
    ids = torch.cat([g.long() for g in positives.groups]).unique(return_inverse=True)[1].int()
    return columns, sets, ids[: len(columns)].contiguous(), ids[len(columns) :].contiguous()


def limits(bands: list[Band]) -> tuple[Tensor | None, ...]:
    """low_n, high_n, low_m, high_m, the last two None without the other direction."""
    ends = [end for band in bands for end in (band.low, band.high)]
    return (*ends, *[None] * (4 - len(ends)))


def settle(
    scores: Scores, positives: Positives, rows: Tally, columns: Tally | None, above_n: Tensor, above_m: Tensor, near: Tensor, found: int
) -> bool:
    """Take over what a kernel counted, and score what it listed; False where its list ran over."""
    m = scores.shape[1]
    if found > len(near):
        return False
    rows.above += above_n
    pairs, bits = near[:found] // 4, near[:found] % 4
    of_rows = pairs[bits % 2 == 1]
    settle_rows(scores, positives, rows, of_rows // m, of_rows % m)
    if columns is not None and positives.sets is not None:
        columns.above += above_m
        listed = pairs[bits >= 2]
        sets = (positives.sets[listed // m] * m + listed % m).unique()  # several members of a set may be close
        settle_sets(scores, positives, positives.of_candidates(m), columns, sets // m, sets % m)
    return True


def tile_order(sets: Tensor) -> tuple[bool, Tensor | None]:
    """Whether the kernel can take the sets, and the rows of its tiles with -1 for padding, None where each query is its own set."""
    n = len(sets)
    counts = torch.unique_consecutive(sets, return_counts=True)[1].tolist()
    if len(counts) == n:
        return True, None
    if max(counts) > reference.ROWS:
        return False, None
    starts, used = [], 0  # where each set starts in the padded order
    for count in counts:
        if used % reference.ROWS + count > reference.ROWS:
            used = -(-used // reference.ROWS) * reference.ROWS
        starts.append(used)
        used += count
    order = torch.full((-(-used // reference.ROWS) * reference.ROWS,), -1, dtype=torch.int32)
    size = torch.tensor(counts)
    within = torch.arange(n) - (size.cumsum(0) - size).repeat_interleave(size)
    order[torch.tensor(starts).repeat_interleave(size) + within] = torch.arange(n, dtype=torch.int32)
    return True, order.to(sets.device)


def _unit_shortlist(scores: Scores, rows: Tensor, take: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``Shortlister`` of the kernel: the candidates of the best units, from the maxima of all units."""
    assert isinstance(scores, InnerProducts)
    m, d = scores.shape[1], scores.queries.shape[1]
    queries = scores.queries[rows]
    maxima = _unit_maxima(queries, scores.candidates)
    units = min(take, maxima.shape[1])
    best, unit = maxima.topk(units, dim=1)
    columns = (unit[..., None] * reference.UNIT + torch.arange(reference.UNIT, device=rows.device)).flatten(1)
    values = torch.empty(columns.shape, dtype=torch.float32, device=rows.device)
    step = max(1, GATHERED // (columns.shape[1] * d))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        gathered = scores.candidates[columns[part].clamp_max(m - 1)]  # (n, units * UNIT, D)
        values[part] = (gathered.float() @ queries[part, :, None].float()).squeeze(-1)
    values = values.masked_fill_((columns >= m) | values.isnan(), -torch.inf)
    some, place = values.topk(min(take + reference.UNIT, values.shape[1]), dim=1)  # more by the padding, which may stand before -inf
    rest = torch.maximum(some[:, -1], best[:, -1] if units < maxima.shape[1] else some[:, -1])
    return some, columns.gather(1, place), rest

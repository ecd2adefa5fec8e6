import re

import pytest

from xmafast.cache import open_splits
from xmafast.errors import CacheError, UsageError
from xmafast.retriever import Retriever
from xmafast.search import html_page, search


@pytest.fixture(scope="module")
def model(demo_backbone):
    return Retriever(demo_backbone, None)


@pytest.fixture(scope="module")
def hits(model, small_caches, tmp_path_factory):
    return search(model, list(open_splits(small_caches).values()), "rainbow", topk=4, store=tmp_path_factory.mktemp("store"))


def test_hits_are_ranked_over_every_split_and_lead_to_their_file(hits):
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[0].captions[0] == "rainbow"
    assert hits[0].source.is_file()
    assert sum(hits[0].weights) == pytest.approx(1, abs=1e-5)
    assert 0 <= hits[0].best_time <= 5


def test_scores_equal_the_similarity_of_the_model(model, small_caches, hits):
    cache = open_splits(small_caches)[hits[0].split]
    frames, mask = cache.read([cache.ids.index(hits[0].id)])
    assert model(["rainbow"], frames, mask).item() == pytest.approx(hits[0].score, abs=1e-5)


def test_more_hits_than_clips_gives_all_clips(model, small_caches, tmp_path):
    assert len(search(model, list(open_splits(small_caches).values()), "x", topk=1000, store=tmp_path)) == 36


def test_an_empty_query_and_an_empty_cache_are_refused(model, tmp_path):
    with pytest.raises(UsageError, match="query is empty"):
        search(model, [], "  ", store=tmp_path)
    with pytest.raises(CacheError, match="no decoded video"):
        search(model, [], "x", store=tmp_path)


def test_the_page_is_self_contained_and_escapes_what_it_shows(hits):
    page = html_page("<script>alert(1)</script>", hits, "about & more")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "about &amp; more" in page
    assert page.count("data:image/jpeg;base64,") == sum(len(hit.frames) for hit in hits)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("class=best") == len(hits)

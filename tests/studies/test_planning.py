"""Stars: their edges, their answers, and what they give away."""

from __future__ import annotations

import pytest
import torch

from studies.planning import NUM_NODES, stars


@pytest.mark.parametrize("backwards", [False, True])
def test_the_answer_walks_the_edges_from_the_centre_to_the_tip(backwards: bool) -> None:
    texts = stars(torch.Generator().manual_seed(0), 50, backwards=backwards)
    nodes = NUM_NODES * NUM_NODES
    for text in texts.tolist():
        edges = {divmod(token, NUM_NODES) for token in text[:6]}
        centre, tip, *path = (token - nodes for token in text[6:])
        if backwards:
            path.reverse()
        assert len(edges) == 6
        assert set(zip([centre, *path], path, strict=False)) <= edges
        assert path[-1] == tip
        assert sum(start == centre for start, _ in edges) == 2


def test_the_order_of_the_edges_does_not_tell_the_arm() -> None:
    texts = stars(torch.Generator().manual_seed(0), 4000)
    first = texts[:, 7 - 1, None] % NUM_NODES * NUM_NODES + texts[:, 8, None] % NUM_NODES
    where = (texts[:, :6] == first).float().argmax(1)
    counts = torch.bincount(where, minlength=6).float() / len(texts)
    # 5 standard deviations of a share of 1/6 in 4,000: false alarm below 1e-5.
    assert (counts - 1 / 6).abs().max() < 0.03

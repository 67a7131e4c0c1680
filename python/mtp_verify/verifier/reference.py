"""The whole verifier, slow and plain: the first file to read, and the oracle of the tests.

A target model gives a row of logits after every node of a drafted tree; `shape` turns a row into
the distribution that is sampled from; a rule walks the tree and decides which drafted tokens stand
and which one token follows them; `Noise` is the only source of chance. Every row is a dense float64
array here, and every step follows the definition, on whole rows. The Rust core computes the same
verdicts from lazily read rows by other formulas, so that a mistake in one of the two shows as a
difference. Rows of `fractions.Fraction` (dtype object) make the rules exact.

In the formulas p is the target's row and q the drafter's, both after shaping (arXiv 2211.17192).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.verifier.lossy import Lossy
    from mtp_verify.verifier.params import SamplingParams

__all__ = ["Noise", "Tree", "Verdict", "decide", "penalise", "philox", "shaped", "verify"]

Row = Any  # (V,) array of float64, or of Fractions
Number = Any  # what rows consist of

# What a number is used for. Two purposes never share one.
DRAFT, ACCEPT, SAMPLE, GUMBEL, SELECT = range(5)
# A token with less than this share of the most likely one's probability is impossible.
FLOOR = 2.0**-124


# --- Chance: a function of an address -------------------------------------------------------------


def philox(key: Sequence[int], counter: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al., SC 2011).

    Args:
        key: Two 32-bit words.
        counter: (..., 4) uint32.

    Returns:
        (..., 4) uint32.
    """
    low_word = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    for round_number in range(10):
        k0 = np.uint64((key[0] + round_number * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + round_number * 0xBB67AE85) & 0xFFFFFFFF)
        product0, product1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ k0,
            product1 & low_word,
            (product0 >> np.uint64(32)) ^ c3 ^ k1,
            product0 & low_word,
        )
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


@dataclass
class Noise:
    """Uniform numbers by address (seed, root position, node, purpose).

    `margin` remembers how close the closest decision was, relative to what it compared: when it is
    tiny, float rounding may decide differently elsewhere.
    """

    seed: int
    position: int
    margin: float = field(default=np.inf)

    def uniforms(self, position: int, nodes: npt.NDArray[Any], purpose: int) -> npt.NDArray[Any]:
        """Return two multiples of 2**-53 in [0, 1) per address: (len(nodes), 2) float64."""
        counter = np.zeros((len(nodes), 4), np.uint32)
        counter[:, 0], counter[:, 1], counter[:, 2] = position, nodes, purpose
        words = philox((self.seed & 0xFFFFFFFF, self.seed >> 32), counter).astype(np.uint64)
        bits = (words[:, 0::2] << np.uint64(32) | words[:, 1::2]) >> np.uint64(11)
        return bits.astype(np.float64) * 2.0**-53

    def uniform(self, node: int, purpose: int) -> float:
        """Return the number at one address of this step."""
        return float(self.uniforms(self.position, np.array([node]), purpose)[0, 0])

    def accept(self, node: int, probability: float) -> bool:
        """Return True with the given probability; strictly below, so that 0 is never accepted."""
        if probability <= 0 or probability >= 1:
            return probability >= 1
        uniform = self.uniform(node, ACCEPT)
        self.margin = min(self.margin, abs(uniform - probability))
        return uniform < probability

    def draw(self, node: int, row: Row, purpose: int = SAMPLE) -> int:
        """Draw a token of a row by inverting its cumulative sum; never one of probability 0."""
        (positive,) = np.nonzero(row > 0)
        if not len(positive):
            message = f"the row after node {node} has no token left"
            raise ValueError(message)
        cells = np.cumsum(row[positive])
        point = self.uniform(node, purpose) * cells[-1]
        index = min(int(np.searchsorted(cells, point, side="right")), len(cells) - 1)
        gaps = np.abs(cells[max(index - 1, 0) : index + 1] - point) / cells[-1]
        # The far end of the last cell is no threshold, nor is the near end of the first.
        gaps = gaps[: len(gaps) - (index == len(cells) - 1)]
        self.margin = min(self.margin, float(gaps.min(initial=np.inf)))
        return int(positive[index])

    def rank(self, ratios: Row, shares: Row) -> npt.NDArray[np.intp]:
        """Return the order of ratios, descending; of equal ones the first comes first."""
        order = np.argsort(-ratios, kind="stable")
        high, low = ratios[order[:-1]], ratios[order[1:]]
        # To exchange two matters as much as the smaller of their shares.
        seen = (low > 0) & (np.minimum(shares[order[:-1]], shares[order[1:]]) > 1e-9)
        gaps = 1 - low[seen] / high[seen]
        self.margin = min(self.margin, float(gaps.min(initial=np.inf)))
        return order

    def race(self, depth: int, row: Row) -> int:
        """Run the race argmin of E(x)/p(x), E(x) = -log(1 - u), of the emitted token's position."""
        pairs = np.arange((len(row) + 1) // 2)
        uniforms = self.uniforms(self.position + 1 + depth, pairs, GUMBEL).reshape(-1)[: len(row)]
        (positive,) = np.nonzero(row > 0)
        times = -np.log1p(-uniforms[positive]) / row[positive]
        best = int(np.argmin(times))
        others = np.delete(times, best)
        gap = (others.min(initial=np.inf) - times[best]) / max(times[best], 1e-300)
        self.margin = min(self.margin, float(gap))
        return int(positive[best])


# --- Shaping: from logits to the row that is sampled from -----------------------------------------


def penalise(
    logits: npt.NDArray[Any], tokens: Sequence[int], prompt_len: int, params: SamplingParams
) -> npt.NDArray[np.float32]:
    """Apply penalties, biases and bans: the logits that shaping starts from.

    Args:
        logits: (V,), as the model gave them.
        tokens: Everything before: prompt, output, and a node's path.
        prompt_len: How many of them are prompt.
        params: Whose penalties, biases and bans.

    Returns:
        (V,) float32, computed in float32 as the libraries do.
    """
    row = np.array(logits, np.float32)
    output = list(tokens[prompt_len:])
    for token, bias in (params.logit_bias or {}).items():
        row[token] += np.float32(bias)
    theta = np.float32(params.repetition_penalty)
    for token in set(tokens) if theta != 1 else ():
        if row[token] < 0:
            row[token] *= theta
        elif params.preset == "transformers":
            row[token] /= theta
        else:
            row[token] *= np.float32(1) / theta
    for token in set(output):
        row[token] -= np.float32(params.frequency_penalty) * np.float32(output.count(token))
        row[token] -= np.float32(params.presence_penalty)
    gone = list(params.banned)
    if len(output) < params.min_new_tokens:
        gone += params.stop_ids
    if n := params.no_repeat_ngram_size:
        last = list(tokens[len(tokens) - n + 1 :])
        starts = range(len(tokens) - n + 1)
        gone += [tokens[i + n - 1] for i in starts if list(tokens[i : i + n - 1]) == last]
    row[gone] = -np.inf
    return row


def shaped(logits: npt.NDArray[Any], params: SamplingParams) -> Row:
    """Shape one row of logits.

    Temperature comes first; then top-k, top-p, min-p ("transformers") or min-p, top-k, top-p
    ("vllm"). Top-k keeps all ties at its threshold. Top-p keeps the smallest prefix, in descending
    order, whose mass reaches `top_p`, the crossing token included; of equal logits at the cut the
    lower ids. Min-p drops what is below `min_p` times the largest probability. Tokens below
    `FLOOR` times the largest probability get 0. At temperature 0 all mass is on the lowest id
    among the maxima.

    Args:
        logits: (V,) float32 (widen float16 and bfloat16 first: that is exact).
        params: Temperature, top_k, top_p, min_p and preset are read.

    Returns:
        (V,) float64, sums to 1; all 0 if no logit is finite: such a row is no distribution.
    """
    logits = np.asarray(logits, np.float32)
    if params.temperature == 0 or (params.preset == "vllm" and params.temperature < 1e-5):
        return np.asarray(np.arange(len(logits)) == np.argmax(logits), np.float64)
    row = np.zeros(len(logits))
    # Both libraries divide in float32, so logits that differ may become ties here.
    scaled = logits / np.float32(params.temperature)
    # Descending; of equal logits the lower id comes first. Every step keeps a part from the front.
    order = np.argsort(-scaled, kind="stable")
    order = order[scaled[order] > -np.inf]
    if not len(order):
        return row
    falling = scaled[order]
    weights = np.exp(falling.astype(np.float64) - falling[0])
    weights[weights < FLOOR] = 0

    def top_k(count: int) -> int:
        k = params.top_k
        return int((falling[:count] >= falling[k - 1]).sum()) if 0 < k < count else count

    def top_p(count: int) -> int:
        share_before = np.cumsum(weights[:count]) / weights[:count].sum()
        share_before = np.concatenate([[0.0], share_before[:-1]])
        return int((share_before < params.top_p).sum()) if params.top_p < 1 else count

    def min_p(count: int) -> int:
        return int((weights[:count] >= params.min_p).sum())  # the largest weight is 1

    count = len(order)
    for step in (top_k, top_p, min_p) if params.preset == "transformers" else (min_p, top_k, top_p):
        count = step(count)
    row[order[:count]] = weights[:count] / weights[:count].sum()
    return row


# --- Rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """A drafted tree, its rows after shaping, and how its tokens were drawn.

    Attributes:
        parents: (N+1,) parent of each node, -1 for the root, node 0.
        tokens: (N+1,) token of each node.
        target: (N+1, V) row p after each node, sums to 1; all 0 where it is no distribution.
        drafter: (N+1, V) weights after each node: q is a row divided by its sum, whatever that is.
            Rows nothing was drawn from are not read.
        sampled: (N+1,) which nodes were drawn from q; the others form the deterministic set S.
        law: The declared law: "deterministic", "chain", "iid", "swor", ...
    """

    parents: Sequence[int]
    tokens: Sequence[int]
    target: Row
    drafter: Row
    sampled: Sequence[bool]
    law: str

    def children(self, node: int) -> list[int]:
        """Return the children in test order."""
        return [child for child, parent in enumerate(self.parents) if parent == node and child > 0]

    def path(self, node: int) -> list[int]:
        """Return the nodes from below the root down to `node`."""
        return [*self.path(self.parents[node]), node] if node > 0 else []

    def child_with(self, node: int, token: int) -> int | None:
        """Return the first child that carries a token."""
        return next((c for c in self.children(node) if self.tokens[c] == token), None)

    def q(self, node: int) -> Row:
        """Return the distribution of a child of a node where nothing is excluded, (V,)."""
        return _law(self.drafter[node])

    def child_law(self, child: int) -> Row:
        """Return q_c: the distribution of one child given its earlier siblings, (V,).

        One-hot for a deterministic child. Otherwise what is left of the parent's q outside S and,
        when drawing without replacement, outside the earlier siblings, divided by its own sum.
        """
        parent = self.parents[child]
        if not self.sampled[child]:
            one_hot = 0 * self.target[parent]
            one_hot[self.tokens[child]] += 1
            return one_hot
        left = self.drafter[parent].copy()
        for sibling in self.children(parent):
            if not self.sampled[sibling] or (sibling < child and self.law != "iid"):
                left[self.tokens[sibling]] = 0
        return _law(left)


@dataclass(frozen=True)
class Verdict:
    """The accepted path, its tokens and the bonus, and how close the closest decision was."""

    tokens: list[int]
    path: list[int]
    logprobs: list[float]
    margin: float


def _law(weights: Row) -> Row:
    return weights / weights.sum()


def _left(rest: Row, row: Row) -> Row:
    # Exactly, a rejection leaves mass; where rounding took it (p = q), the row before it stands.
    return _law(rest) if rest.sum() > 0 else row


def _target_only(tree: Tree, noise: Noise, *, coupled: bool = False) -> tuple[int, int]:
    """Draw from the target; while the token drawn is a child, walk to it."""
    node, depth = 0, 0
    while True:
        row = tree.target[node]
        token = noise.race(depth, row) if coupled else noise.draw(node, row)
        child = tree.child_with(node, token)
        if child is None:
            return node, token
        node, depth = child, depth + 1


def _topdown(tree: Tree, noise: Noise) -> tuple[int, int]:
    """Token-level rejection: test the sampled children in order, then draw from what is left."""
    node = 0
    while True:
        row = tree.target[node]
        for child in filter(lambda c: tree.sampled[c], tree.children(node)):
            law, token = tree.child_law(child), tree.tokens[child]
            if noise.accept(child, row[token] / law[token]):
                break
            row = _left(np.maximum(row - law, 0), row)
        else:
            token = noise.draw(node, row)
            following = tree.child_with(node, token)
            if following is None or tree.sampled[following]:
                return node, token
            child = following
        node = child


def _lifted(tree: Tree, noise: Noise, node: int = 0, w: Number = 1) -> tuple[int, int] | None:
    """Block verification and its tree form: visit(node, w) gives a verdict with probability w.

    What follows the node then has the law of row, so the node owes w row. A child, drawn from q_c,
    delivers min(q_c, w row) of that. With probability sum (q_c - w row)+ it does not, and then
    sum (w row - q_c)+ is still owed, so the visit goes on with the quotient of the two as w. A node
    whose row is no distribution is a leaf.
    """
    row = tree.target[node]
    for child in tree.children(node) if row.any() else []:
        law, token = tree.child_law(child), tree.tokens[child]
        w_child = min(1, w * row[token] / law[token])
        verdict = _lifted(tree, noise, child, w_child) if w_child > 0 else None
        if verdict is not None:
            return verdict
        rest = np.maximum(w * row - law, 0)
        owed, fallen = rest.sum(), np.maximum(law - w * row, 0).sum()
        if owed == 0:
            w = 0
            break
        row, w = _law(rest), owed / max(owed, fallen)
    if node == 0 or noise.accept(node, w):
        return node, noise.draw(node, row)
    return None


def _kseq(tree: Tree, noise: Noise) -> tuple[int, int]:
    """Each of k children is accepted alike: x with p(x) / (rho q(x)), together min(q, p / rho).

    A child delivers that if all before it are missed. rho is the least number with which no token
    is delivered more often than p has it; what is then missing is drawn.
    """
    node = 0
    while True:
        row, children = tree.target[node], tree.children(node)
        if not children:
            return node, noise.draw(node, row)
        law, k = tree.q(node), len(children)

        def delivered(rho: Number, row: Row = row, law: Row = law, k: int = k) -> Row:
            taken = np.minimum(law, row / rho)
            missed = (law - taken).sum()
            return sum(missed**j for j in range(k)) * taken

        low, rho = 1 + 0 * row[0], k + 0 * row[0]  # numbers of the row's kind
        for _ in range(40 if k > 1 else 0):
            middle = (low + rho) / 2
            is_enough = (delivered(middle) <= row).all()
            low, rho = (low, middle) if is_enough else (middle, rho)
        for child in children:
            token = tree.tokens[child]
            if noise.accept(child, row[token] / (rho * law[token])):
                node = child
                break
        else:
            return node, noise.draw(node, _left(np.maximum(row - delivered(rho), 0), row))


def _gbv(tree: Tree, noise: Noise) -> tuple[int, int]:
    """Block verification of the path whose ranks by p / q come first, under that path's own law.

    Laid out on [0, 1] with the best rank on top, each path as wide as its probability, K drawn
    paths are K uniform points. The highest of them lies in a cell if one or more do and the others
    lie below. Below a row that is no distribution there is nothing to rank: the path ends.
    """
    leaves = [node for node in range(1, len(tree.parents)) if not tree.children(node)]
    # By their heads, as the root's children are ordered.
    left = sorted((tree.path(leaf) for leaf in leaves), key=lambda path: path[0])
    if len(left) <= 1:
        return _lifted(tree, noise) or (0, 0)
    num_paths, node, laws = len(left), 0, []
    low, width = 0 * tree.target[0][0], 1 + 0 * tree.target[0][0]
    for depth in range(len(left[0])):
        p, q = tree.target[node], tree.q(node)
        if depth > 0 and not p.any():
            break
        (drafted,) = np.nonzero(q > 0)
        upwards = drafted[noise.rank(p[drafted] / q[drafted], q[drafted])][::-1]
        widths = width * q[upwards]
        below = low + np.cumsum([0 * width, *widths[:-1]])
        law = 0 * q
        for j in range(1, num_paths + 1):
            law[upwards] += comb(num_paths, j) * widths**j * below ** (num_paths - j)
        laws.append(_law(law))
        rank = max(int(np.nonzero(upwards == tree.tokens[path[depth]])[0][0]) for path in left)
        low, width = below[rank], widths[rank]
        left = [path for path in left if tree.tokens[path[depth]] == upwards[rank]]
        node = left[0][depth]
    nodes = [0, *left[0][: len(laws)]]
    chain = Tree(
        parents=[-1, *range(len(nodes) - 1)],
        tokens=[tree.tokens[node] for node in nodes],
        target=tree.target[nodes],
        drafter=np.stack([*laws, laws[0]]),
        sampled=[node > 0 for node in nodes],
        law="chain",
    )
    depth, token = _lifted(chain, noise) or (0, 0)  # the root always stops
    return nodes[depth], token


def _global_resolution(tree: Tree, noise: Noise) -> tuple[int, int]:
    """Block verification of a path that is selected level by level, with the law that it has.

    A node owes w row. The child selected below it has token x with q lead, and delivers
    min(q lead, w row) = min(lam q, w row) of that: the most that any selection can. All nodes that
    carry the token stay, and their children are the next level's drafts. A node whose row is no
    distribution is a leaf.
    """
    live, w, visits = [0], 1, []
    while w > 0:
        node, row = live[0], tree.target[live[0]]
        children = [child for parent in live for child in tree.children(parent)]
        if not children or not row.any():
            visits.append((node, w, row))
            break
        law = tree.q(node)
        (drafted,) = np.nonzero(law > 0)
        order = drafted[noise.rank(row[drafted] / law[drafted], law[drafted])]
        ranks = [int(np.nonzero(order == tree.tokens[child])[0][0]) for child in children]
        lam, places, lead = _places(w * row[order], law[order], ranks)
        rest = np.maximum(w * row - lam * law, 0)
        owed = rest.sum()
        visits.append((node, owed / (owed + (1 - w)) if owed > 0 else 0, _left(rest, row)))
        front = noise.draw(node, _fronts(places), SELECT)
        token = tree.tokens[children[front]]
        w = min(1, min(w * row[token] / law[token], lam) / (places[front] @ lead))
        live = [child for child in children if tree.tokens[child] == token]
    for node, w, row in reversed(visits):
        if node == 0 or noise.accept(node, w):
            return node, noise.draw(node, row)
    raise AssertionError  # the root always stops


def _places(p: Row, q: Row, ranks: list[int]) -> tuple[Number, Row, Row]:
    """Give the children's places among the tokens, of which the first one taken is selected.

    Args:
        p: (L,) what is owed of each token, by p / q descending.
        q: (L,) what each child was drawn from.
        ranks: Those of the n children's tokens.

    Returns:
        Up to how many times q a token is delivered; the law of each child's place, (n, L); how
        often a place is the first one, per q, (L,).
    """
    n, ratio, behind = len(ranks), p / q, _after(q)
    # A place is the first one if j children are in it, and all others behind.
    lead = sum(comb(n, j) * q ** (j - 1) * behind ** (n - j) for j in range(1, n + 1))
    # Outside a set H at most 1 - q(H)^n is delivered, and of H what is owed. The sets for which
    # that is least are ends of the order.
    missed = max(0 * p[0], (p.sum() - _after(p) - 1 + behind**n).max())
    # sum (p - lam q)+ = missed
    above = np.cumsum(p) - ratio * np.cumsum(q)
    i = max(int((above <= missed).sum()) - 1, 0)
    lam = ratio[i] - max(0, missed - above[i]) / q[: i + 1].sum()
    wish = np.minimum(ratio, lam)
    # In its own place a token leads too often, or too rarely. The first of these change places with
    # the first of those, as often as it takes.
    over, under = _ends(q * np.maximum(lead - wish, 0)), _ends(q * np.maximum(wish - lead, 0))
    is_ahead = np.less.outer(ranks, np.arange(len(q)))
    between, back = _overlap(over[:, ranks], under), _overlap(under[:, ranks], over)
    shared: Row = np.where(is_ahead, between, back)
    gap = abs(np.subtract.outer(lead[ranks], lead))
    moved = np.where(shared > 0, shared, 0 * gap) / np.where(shared > 0, gap, 1 + 0 * gap)
    places = moved / q[ranks][:, None]
    places[np.arange(n), ranks] += 1 - places.sum(axis=1)
    return lam, places, lead


def _ends(masses: Row) -> Row:
    """Return where each mass begins and ends if they are laid out one after the other, (2, L)."""
    ends = np.cumsum(masses)
    return np.stack([ends - masses, ends])


def _overlap(some: Row, others: Row) -> Row:
    """Return what each of some intervals has in common with each of the others, (n, L)."""
    (begin, end), (other_begin, other_end) = some[:, :, None], others[:, None, :]
    return np.maximum(np.minimum(end, other_end) - np.maximum(begin, other_begin), 0)


def _fronts(laws: Row) -> Row:
    """Return how often each child's place is the first one: of equal places the first child's.

    Args:
        laws: (n, L) the law of each child's place.
    """
    # For each child before, how often it is in front, and where.
    fronts = laws[:1]
    for law in laws[1:]:
        overtakes = law * sum(_after(front) for front in fronts)
        fronts = np.stack([*(front * (law + _after(law)) for front in fronts), overtakes])
    return fronts.sum(axis=1)


def _after(row: Row) -> Row:
    """Return the sum of what follows each entry."""
    return np.cumsum(np.concatenate([row[1:], 0 * row[:1]])[::-1])[::-1]


def _longest(tree: Tree, noise: Noise, lossy: Lossy) -> tuple[int, int]:
    """Find the deepest node whose whole path meets a criterion, the first of equally deep ones."""

    def accepts(row: Row, token: int) -> bool:
        p = float(row[token])
        if lossy.name == "typical":
            eps, delta = lossy.values
            positive = row[row > 0]
            bound = min(eps, delta * float(np.exp((positive * np.log(positive)).sum())))
        elif lossy.name == "threshold":
            (bound,) = lossy.values
        else:  # The k-th largest of the row: ties stay.
            bound = float(np.sort(row)[-min(int(lossy.values[0]), len(row))])
        if p != bound or lossy.name != "topk":
            noise.margin = min(noise.margin, abs(p - bound) / max(bound, 1e-300))
        return p > bound if lossy.name == "typical" else p >= bound and p > 0

    kept = [0]
    for node in range(1, len(tree.parents)):
        parent = tree.parents[node]
        if parent in kept and accepts(tree.target[parent], tree.tokens[node]):
            kept.append(node)
    deepest = max(kept, key=lambda node: len(tree.path(node)))
    row = tree.target[deepest]
    if lossy.name != "typical":
        return deepest, noise.draw(deepest, row)
    others = row[row < row.max()]
    noise.margin = min(noise.margin, float(row.max() - others.max(initial=-1.0)))
    return deepest, int(np.argmax(row))


def _ensemble(tree: Tree, noise: Noise, weight: float) -> tuple[int, int]:
    """Top-down, with the drafter's row mixed into the target's wherever children were drawn."""
    blend = tree.target.copy()
    for node in range(len(tree.parents)):
        if tree.children(node):
            blend[node] = weight * blend[node] + (1.0 - weight) * tree.q(node)
    return _topdown(replace(tree, target=blend), noise)


def decide(tree: Tree, rule: str, noise: Noise) -> tuple[int, int]:
    """Return the node at which a rule stops and the token that it emits there."""
    if rule in ("target_only", "coupled") or tree.law == "deterministic":
        return _target_only(tree, noise, coupled=rule == "coupled")
    rules: dict[str, Any] = {
        "topdown": _topdown,
        "lifted": _lifted,
        "kseq": _kseq,
        "gbv": _gbv,
        "global_resolution": _global_resolution,
    }
    node, token = rules[rule](tree, noise)
    return node, token


def verify(
    tree: Tree, *, rule: str, seed: int, position: int, lossy: Lossy | None = None
) -> Verdict:
    """Return the verdict of a rule on a tree.

    Args:
        tree: The draft with shaped rows. For temperature 0 the rows are one-hot, and every rule
            gives greedy decoding.
        rule: "target_only", "coupled", "topdown" (on a chain: token-level rejection), "lifted"
            (on a chain: block verification), "kseq", "gbv" (paths of one length), or
            "global_resolution".
        seed: 0 <= seed < 2**64.
        position: Index of the root token in its sequence.
        lossy: One of `mtp_verify.verifier.lossy`, which decides in the rule's place.

    Returns:
        Tokens, path, log-probabilities under the target, and the margin of the closest decision.

    Raises:
        ValueError: The walk stops at a node whose row is no distribution.
    """
    noise = Noise(seed, position)
    if lossy is None:
        node, token = decide(tree, rule, noise)
    elif lossy.name == "ensemble":
        node, token = _ensemble(tree, noise, *lossy.values)
    else:
        node, token = _longest(tree, noise, lossy)
    path = tree.path(node)
    tokens = [*(tree.tokens[n] for n in path), token]
    probs = [float(tree.target[n][t]) for n, t in zip([0, *path], tokens, strict=True)]
    logprobs = [float(np.log(p)) if p > 0 else -np.inf for p in probs]
    return Verdict(tokens, path, logprobs, noise.margin)

"""The whole verifier, slow and plain: the first file to read, and the oracle of the tests.

A target model gives a row of logits after every node of a drafted tree; `shape` turns a row into
the distribution that is sampled from; a rule walks the tree and decides which drafted tokens stand
and which one token follows them; `Noise` is the only source of chance. Every row is a dense float64
array here, and every step of the mathematics is written out; the Rust core computes the same
verdicts from lazily read rows.

In the formulas p is the target's row and q the drafter's, both after shaping (arXiv 2211.17192).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.lossy import Lossy
    from mtp_verify.params import SamplingParams

__all__ = ["Noise", "Tree", "Verdict", "penalise", "philox", "shape", "verify"]

Row = npt.NDArray[np.float64]

# What a number is used for. Two purposes never share one.
DRAFT, ACCEPT, SAMPLE, GUMBEL = range(4)


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
        """Two multiples of 2**-53 in [0, 1) per address: (len(nodes), 2) float64."""
        counter = np.zeros((len(nodes), 4), np.uint32)
        counter[:, 0], counter[:, 1], counter[:, 2] = position, nodes, purpose
        words = philox((self.seed & 0xFFFFFFFF, self.seed >> 32), counter).astype(np.uint64)
        bits = (words[:, 0::2] << np.uint64(32) | words[:, 1::2]) >> np.uint64(11)
        return bits.astype(np.float64) * 2.0**-53

    def uniform(self, node: int, purpose: int) -> float:
        """The number at one address of this step."""
        return float(self.uniforms(self.position, np.array([node]), purpose)[0, 0])

    def accept(self, node: int, probability: float) -> bool:
        """True with the given probability; strictly below, so that 0 is never accepted."""
        if probability <= 0 or probability >= 1:
            return probability >= 1
        uniform = self.uniform(node, ACCEPT)
        self.margin = min(self.margin, abs(uniform - probability))
        return uniform < probability

    def draw(self, node: int, row: Row, purpose: int = SAMPLE) -> int:
        """A token of a row, by inverting its cumulative sum; never one of probability 0."""
        (positive,) = np.nonzero(row > 0)
        cells = np.cumsum(row[positive])
        point = self.uniform(node, purpose) * cells[-1]
        index = min(int(np.searchsorted(cells, point, side="right")), len(cells) - 1)
        gaps = np.abs(cells[max(index - 1, 0) : index + 1] - point) / cells[-1]
        # The far end of the last cell is no threshold, nor is the near end of the first.
        gaps = gaps[: len(gaps) - (index == len(cells) - 1)]
        self.margin = min(self.margin, float(gaps.min(initial=np.inf)))
        return int(positive[index])

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


def _softmax(logits: npt.NDArray[Any], kept: npt.NDArray[np.bool_]) -> Row:
    weights = np.where(kept, np.exp(logits.astype(np.float64) - logits.max()), 0.0)
    return np.asarray(weights / weights.sum())


def penalise(
    logits: npt.NDArray[Any], tokens: Sequence[int], prompt_len: int, params: SamplingParams
) -> npt.NDArray[np.float32]:
    """The logits that shaping starts from: what they owe to the tokens before them.

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


def shape(logits: npt.NDArray[Any], params: SamplingParams) -> Row:
    """The shaped row of one row of logits.

    Temperature comes first; then top-k, top-p, min-p ("transformers") or min-p, top-k, top-p
    ("vllm"). Top-k keeps all ties at its threshold. Top-p keeps the smallest prefix, in descending
    order, whose mass reaches `top_p`, the crossing token included; of equal logits at the cut the
    lower ids. Min-p drops what is below `min_p` times the largest probability. At temperature 0 all
    mass is on the lowest id among the maxima.

    Args:
        logits: (V,) float32 (widen float16 and bfloat16 first: that is exact).
        params: Temperature, top_k, top_p, min_p and preset are read.

    Returns:
        (V,) float64, sums to 1.
    """
    logits = np.asarray(logits, np.float32)
    if params.temperature == 0 or (params.preset == "vllm" and params.temperature < 1e-5):
        return np.asarray(np.arange(len(logits)) == np.argmax(logits), np.float64)
    # Both libraries divide in float32, so logits that differ may become ties here.
    logits = logits / np.float32(params.temperature)
    kept = logits > -np.inf

    def top_k() -> None:
        if 0 < params.top_k < len(logits):
            kept[logits < np.sort(np.where(kept, logits, -np.inf))[-params.top_k]] = False

    def top_p() -> None:
        if params.top_p < 1:
            row = _softmax(logits, kept)
            order = np.lexsort((np.arange(len(row)), -row))
            mass_before = np.concatenate([[0.0], np.cumsum(row[order])[:-1]])
            kept[order[mass_before >= params.top_p]] = False

    def min_p() -> None:
        if params.min_p > 0:
            row = _softmax(logits, kept)
            kept[row < params.min_p * row.max()] = False

    steps = (top_k, top_p, min_p) if params.preset == "transformers" else (min_p, top_k, top_p)
    for step in steps:
        step()
    return _softmax(logits, kept)


# --- Rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """A drafted tree, its rows after shaping, and how its tokens were drawn.

    Attributes:
        parents: (N+1,) parent of each node, -1 for the root, node 0.
        tokens: (N+1,) token of each node.
        target: (N+1, V) row p after each node.
        drafter: (N+1, V) row q after each node; rows nothing was drawn from are not read.
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
        """Children in test order."""
        return [child for child, parent in enumerate(self.parents) if parent == node and child > 0]

    def path(self, node: int) -> list[int]:
        """Nodes from below the root down to `node`."""
        return [*self.path(self.parents[node]), node] if node > 0 else []

    def child_with(self, node: int, token: int) -> int | None:
        """The first child that carries a token."""
        return next((c for c in self.children(node) if self.tokens[c] == token), None)

    def child_law(self, child: int) -> Row:
        """q_c: the law of one child given its earlier siblings, (V,).

        One-hot for a deterministic child. Otherwise the parent's q outside S and, when drawing
        without replacement, outside the earlier siblings, renormalised.
        """
        if not self.sampled[child]:
            return np.asarray(np.arange(self.target.shape[1]) == self.tokens[child], np.float64)
        siblings = self.children(self.parents[child])
        row = self.drafter[self.parents[child]].copy()
        excluded = [c for c in siblings if not self.sampled[c] or (c < child and self.law != "iid")]
        row[[self.tokens[c] for c in excluded]] = 0.0
        # Rows are used as given: what is excluded is subtracted from 1, not from the row's own sum.
        gone = {self.tokens[c] for c in excluded}
        rest = 1.0 - sum(float(self.drafter[self.parents[child], token]) for token in gone)
        return np.asarray(row / rest)


@dataclass(frozen=True)
class Verdict:
    """The accepted path, its tokens and the bonus, and how close the closest decision was."""

    tokens: list[int]
    path: list[int]
    logprobs: list[float]
    margin: float


def _rest(row: Row, law: Row, weight: float = 1.0) -> Row:
    """(w r - q_c)+: what a child's rejection leaves, not normalised."""
    return np.asarray(np.maximum(weight * row - law, 0.0))


def _normalised(rest: Row, row: Row) -> Row:
    # Exactly, a rejection leaves mass; where rounding took it (p = q), the row stands.
    return rest / rest.sum() if rest.sum() > 0 else row


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
            row = _normalised(_rest(row, law), row)
        else:
            token = noise.draw(node, row)
            following = tree.child_with(node, token)
            if following is None or tree.sampled[following]:
                return node, token
            child = following
        node = child


def _lifted(tree: Tree, noise: Noise, node: int = 0, w: float = 1.0) -> tuple[int, int] | None:
    """Block verification and its tree form: visit(node, w) gives a verdict with probability w.

    The verdict's continuation has the law of row, then p. A child takes min(q_c, w r) of the mass;
    (w r - q_c)+ is left, with sum m, so that the node itself is delivered with m / (m + 1 - w).
    """
    row = tree.target[node]
    for child in tree.children(node):
        if w == 0:
            break
        law, token = tree.child_law(child), tree.tokens[child]
        w_child = min(1.0, w * row[token] / law[token])
        verdict = _lifted(tree, noise, child, w_child) if w_child > 0 else None
        if verdict is not None:
            return verdict
        rest = _rest(row, law, w)
        mass = float(rest.sum())
        row = _normalised(rest, row)
        w = mass / (mass + 1.0 - w) if mass > 0 else 0.0
    if node == 0 or noise.accept(node, w):
        return node, noise.draw(node, row)
    return None


def _kseq(tree: Tree, noise: Noise) -> tuple[int, int]:
    """Each child is accepted alike, with p / (rho q); what k children deliver is missing after."""
    node = 0
    while True:
        row, children = tree.target[node], tree.children(node)
        if not children:
            return node, noise.draw(node, row)
        law, k = tree.drafter[node], len(children)

        def gamma(rho: float, row: Row = row, law: Row = law, k: int = k) -> float:
            missed = 1.0 - float(np.minimum(law, row / rho).sum())
            return sum(missed**j for j in range(k))

        low, rho = 1.0, float(k)
        for _ in range(40 if k > 1 else 0):
            middle = (low + rho) / 2
            low, rho = (low, middle) if gamma(middle) <= middle else (middle, rho)
        for child in children:
            token = tree.tokens[child]
            if noise.accept(child, row[token] / (rho * law[token])):
                node = child
                break
        else:
            rest = np.maximum(row - gamma(rho) * np.minimum(law, row / rho), 0.0)
            return node, noise.draw(node, _normalised(rest, row))


def _gbv(tree: Tree, noise: Noise) -> tuple[int, int]:
    """Block verification of the path whose ranks by p / q come first, under that path's own law.

    In rank order the paths fill [0, 1] from the top, each as wide as its probability; the selected
    one is the largest of K uniform points.
    """
    leaves = [node for node in range(1, len(tree.parents)) if not tree.children(node)]
    # By their heads, as the root's children are ordered.
    left = sorted((tree.path(leaf) for leaf in leaves), key=lambda path: path[0])
    if len(left) <= 1:
        return _lifted(tree, noise) or (0, 0)
    num_paths, node, high, low = len(left), 0, 1.0, 0.0
    target, selected = [], []
    for depth in range(len(left[0])):
        p, q = tree.target[node], tree.drafter[node]
        ratio = np.divide(p, q, out=np.full(len(q), -1.0), where=q > 0)
        order = np.lexsort((np.arange(len(q)), -ratio))
        edges = high - np.concatenate([[0.0], np.cumsum((high - low) * q[order])])
        powers = edges**num_paths
        law = np.zeros_like(q)
        law[order] = (powers[:-1] - powers[1:]) / (high**num_paths - low**num_paths)
        target.append(p)
        selected.append(law)
        rank = int(np.isin(order, [tree.tokens[path[depth]] for path in left]).argmax())
        high, low = edges[rank], edges[rank + 1]
        left = [path for path in left if tree.tokens[path[depth]] == order[rank]]
        node = left[0][depth]
    nodes = [0, *left[0]]
    chain = Tree(
        parents=[-1, *range(len(nodes) - 1)],
        tokens=[tree.tokens[n] for n in nodes],
        target=np.stack([*target, tree.target[node]]),
        drafter=np.stack([*selected, np.zeros_like(selected[0])]),
        sampled=[n > 0 for n in nodes],
        law="chain",
    )
    depth, token = _lifted(chain, noise) or (0, 0)
    return nodes[depth], token


def _longest(tree: Tree, noise: Noise, lossy: Lossy) -> tuple[int, int]:
    """The deepest node whose whole path meets a criterion, the first of equally deep ones."""

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
    inner = [node for node in range(len(tree.parents)) if tree.children(node)]
    blend[inner] = weight * blend[inner] + (1.0 - weight) * tree.drafter[inner]
    return _topdown(replace(tree, target=blend), noise)


def verify(
    tree: Tree, *, rule: str, seed: int, position: int, lossy: Lossy | None = None
) -> Verdict:
    """The verdict of a rule on a tree.

    Args:
        tree: The draft with shaped rows. For temperature 0 the rows are one-hot, and every rule
            gives greedy decoding.
        rule: "target_only", "coupled", "topdown" (on a chain: token-level rejection), "lifted"
            (on a chain: block verification), "kseq", or "gbv" (paths of one length).
        seed: 0 <= seed < 2**64.
        position: Index of the root token in its sequence.
        lossy: One of `mtp_verify.lossy`, which decides in the rule's place.

    Returns:
        Tokens, path, log-probabilities under the target, and the margin of the closest decision.
    """
    noise = Noise(seed, position)
    if lossy is not None and lossy.name == "ensemble":
        node, token = _ensemble(tree, noise, *lossy.values)
    elif lossy is not None:
        node, token = _longest(tree, noise, lossy)
    elif rule in ("target_only", "coupled") or tree.law == "deterministic":
        node, token = _target_only(tree, noise, coupled=rule == "coupled")
    elif rule in ("topdown", "kseq", "gbv"):
        walk = {"topdown": _topdown, "kseq": _kseq, "gbv": _gbv}[rule]
        node, token = walk(tree, noise)
    else:
        stopped = _lifted(tree, noise)
        if stopped is None:
            msg = "the root always stops"
            raise RuntimeError(msg)
        node, token = stopped
    path = tree.path(node)
    tokens = [*(tree.tokens[n] for n in path), token]
    rows = [tree.target[n] for n in [0, *path]]
    probs = [float(row[t]) for row, t in zip(rows, tokens, strict=True)]
    logprobs = [float(np.log(p)) if p > 0 else -np.inf for p in probs]
    return Verdict(tokens, path, logprobs, noise.margin)

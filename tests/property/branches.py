"""A source of chance for the reference's rules that walks every branch, each with its weight."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

from mtp_verify.verifier.reference import ACCEPT, GUMBEL, SAMPLE


class Branches:
    """Replays a script of choices, then steps it on; stands where the rules expect a `Noise`.

    An address is one uniform number of which more and more is known: a number that is used twice
    is the same number. Weights are what the probabilities are, floats or Fractions.
    """

    def __init__(self):
        self.script = []

    def __iter__(self):
        while True:
            self.step, self.weight, self.position, self.known = 0, Fraction(1), 0, {}
            yield self
            while self.script and self.script[-1][0] + 1 == len(self.script[-1][1]):
                self.script.pop()
            if not self.script:
                return
            self.script[-1][0] += 1

    def _choose(self, address, edges):
        """The cell between two edges in which the number of an address lies."""
        low, high = self.known.get(address, (0, 1))
        if self.step == len(self.script):
            cells = []
            for cell, (begin, end) in enumerate(itertools.pairwise(edges)):
                begin, end = max(begin, low), min(end, high)
                if end > begin:
                    cells.append((cell, begin, end))
            self.script.append([0, cells])
        taken, cells = self.script[self.step]
        self.step += 1
        cell, begin, end = cells[taken]
        # In this order: of two integers a Fraction is made first.
        self.weight = self.weight * (end - begin) / (high - low)
        self.known[address] = begin, end
        return cell

    def accept(self, node, probability):
        edge = min(max(probability, 0), 1)
        return self._choose((self.position, node, ACCEPT), [0, edge, 1]) == 0

    def draw(self, node, row, purpose=SAMPLE):
        edges = np.cumsum(row) / row.sum()
        (last,) = np.nonzero(row)
        edges[last[-1] :] = 1  # whatever rounding has left there
        return self._choose((self.position, node, purpose), [0, *edges])

    def race(self, depth, row):
        return self.draw(self.position + 1 + depth, row, GUMBEL)

    def rank(self, ratios, _shares):
        return np.argsort(-ratios, kind="stable")

"""A source of chance for the reference's rules that walks every branch."""

from __future__ import annotations


class Branches:
    """A source of chance that walks every branch: replay a script, then step it on."""

    def __init__(self):
        self.script = []

    def __iter__(self):
        while True:
            self.step, self.weight = 0, 1.0
            yield self
            while self.script and self.script[-1][0] + 1 == len(self.script[-1][1]):
                self.script.pop()
            if not self.script:
                return
            self.script[-1][0] += 1

    def choose(self, weights):
        if self.step == len(self.script):
            options = [(i, w) for i, w in enumerate(weights) if w > 1e-15]
            self.script.append([0, options])
        taken, options = self.script[self.step]
        self.step += 1
        value, weight = options[taken]
        self.weight *= weight / sum(w for _, w in options)
        return value

    def accept(self, _node, probability):
        probability = min(max(probability, 0.0), 1.0)
        return bool(self.choose([1 - probability, probability]))

    def draw(self, _node, row):
        return self.choose(list(row))

    def race(self, depth, row):
        return self.draw(depth, row)

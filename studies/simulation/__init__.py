"""Serving at scale without a model: real bookkeeping and tree shapes, stated or measured costs."""

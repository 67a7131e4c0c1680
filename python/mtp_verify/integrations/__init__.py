"""Adapters to engines and packaged models; each stands alone."""

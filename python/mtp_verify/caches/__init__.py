"""KV caches: commits that keep the accepted path alone, for every kind of layer.

`base` is what a kind of layer has to do; `dynamic`, `sliding`, `static` and `recurrent` do it;
`model` puts them together into the cache of one sequence. `slots` and `paged` hold many sequences.
`masks` are the attention masks of trees.
"""

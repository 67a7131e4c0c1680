"""What a type checker must refuse: each marked line, for the reason behind the mark, and no other.

Not run, and no part of `make lint`: test_types.py compares these marks with what mypy finds.
"""

import numpy as np

import mtp_verify as mv
from mtp_verify.verifier.tree_shape import TreeShape

LOGITS = np.zeros((2, 4), np.float32)
DRAFT = mv.Draft.chain([1])

# A wrong word.
mv.verify(DRAFT, LOGITS, rule="blok", seed=1, position=0)  # error: arg-type
mv.verify(DRAFT, LOGITS, rule="typical", seed=1, position=0)  # error: arg-type
mv.verify_batch([DRAFT], LOGITS, rule=["auto", "no"], seeds=[1], positions=[0])  # error: list-item
mv.expected_accepted(DRAFT, LOGITS, rule="best")  # error: arg-type
mv.verifier.alpha_star(LOGITS[0], LOGITS[0], 1, "mixed")  # error: arg-type
mv.Draft(mv.TokenTree([-1]), [-1], law="sampled")  # error: arg-type
mv.SamplingParams(preset="hf")  # error: arg-type
mv.Decoder(object(), rule="tokens")  # error: arg-type
mv.Decoder(object(), batching="all")  # error: arg-type
mv.Decoder(object(), cache="page")  # error: arg-type
mv.Decoder(object(), planner="yes")  # error: arg-type
mv.drafters.Combined([mv.drafters.NGram(), mv.drafters.Suffix()], mode="all")  # error: arg-type
mv.growers.Fixed(TreeShape.by_depth(2), law="coupled", seed=1, position=0)  # error: arg-type
mv.hf.patch(rule="tokn")  # error: arg-type
mv.hf.speculative(None, rule="tokn")  # error: arg-type
_ = mv.rules()[0]["name"] == "blok"  # error: comparison-overlap
_ = mv.best_rule(DRAFT) == "typical"  # error: comparison-overlap

# A wrong keyword.
mv.verify(DRAFT, LOGITS, seed=1, pos=0)  # error: call-arg
mv.SamplingParams(temprature=0.5)  # error: call-arg
mv.Decoder(object(), draft=None)  # error: call-arg
mv.drafters.NGram(tokens=3)  # error: call-arg
mv.certify(lambda prompt, num, seed: [[0]], samples=3)  # error: call-arg
mv.heads.load("folder", strict=True)  # error: call-arg

# A wrong attribute or key.
_ = mv.verifi  # error: attr-defined
_ = mv.drafters.Ngram  # error: attr-defined
_ = mv.testing.TabelTarget  # error: attr-defined
_ = mv.heads.Heads  # error: attr-defined
_ = mv.hf.generat  # error: attr-defined
_ = mv.verify(DRAFT, LOGITS, seed=1, position=0).accepted  # error: attr-defined
_ = mv.Decoder(object()).generate([1], max_new_tokens=1).text  # error: attr-defined
_ = mv.rules()[0]["law"]  # error: typeddict-item
_ = mv.verifier.build_info()["cpu"]  # error: typeddict-item

# A drafter's class, or its name, in place of one.
mv.Decoder(object(), mv.drafters.NGram)  # error: arg-type
mv.Decoder(object(), "ngram")  # error: arg-type


# A target and a drafter of one's own that lack something.
class NoForward(mv.Target):  # its cache alone
    def new_cache(self, past: object = None) -> mv.TargetCache:
        raise NotImplementedError


class NoPropose(mv.Drafter):
    pass


mv.Decoder(NoForward())  # error: abstract
mv.Decoder(object(), NoPropose())  # error: abstract

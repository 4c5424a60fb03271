"""The checks of `corebound doctor`: small functions from facts to results, without torch."""

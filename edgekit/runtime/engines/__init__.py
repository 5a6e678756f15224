"""Inference engines, one a file; `base` says what they promise, `registry` finds them."""

"""Errors injected at every place where one can happen, one place after the other, in every operation.

`seams` has the places, `work` the operations, `sweep` tries and judges. tests/fs/test_errors_anywhere.py runs it.
"""

"""Compare what daxfs and the kernel read of damaged images: ``make compare-damaged IMAGES=DIRECTORY`` (see `__main__`).

The images belong to others and are not part of this repository: e2fsprogs' own tests are a good collection
(``tests/f_*/image.gz``). Nothing here repairs or judges an image; what the kernel reads is the measure.
"""

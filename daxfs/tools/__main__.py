"""``python -m daxfs.tools``: the ``daxfs`` command without its script."""

from daxfs.tools.start import main

if __name__ == "__main__":
    main()

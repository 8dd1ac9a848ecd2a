"""Tests on persistent-memory devices: a QEMU guest with emulated NVDIMMs runs tests/devices. `make test-pmem` calls it.

`kernel` gets a Debian kernel, `image` packs the interpreter and the checkout into disk images, `machine` runs QEMU,
`report` follows the tests, `__main__` puts the parts together. `init` and `inside` run in the guest.
"""

"""Layer 5: the structures of a live ext4; every function takes the view or the transaction first."""

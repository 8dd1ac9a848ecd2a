"""Layer 3: the ext4 format, one file per structure; no behaviour."""

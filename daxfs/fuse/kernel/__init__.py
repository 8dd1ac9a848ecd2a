"""The session that speaks the kernel's FUSE protocol itself: messages, handlers, the device, the loop."""

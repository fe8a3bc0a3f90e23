"""KVM's MMU, written once, as of v5.12-rc4."""

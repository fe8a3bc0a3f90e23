"""tdpmmu: an executable model of KVM's x86 MMU."""

__version__ = "0.1.0"

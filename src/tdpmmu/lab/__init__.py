"""The lab: boot a real kernel under emulation, drive its KVM, record it, check the recording."""

"""What the CPU defines: paging, SPTE bits, the walker, TLBs, guest mode."""

"""trace-cmd's binary file, ``trace.dat`` of versions 6 and 7 (trace-cmd.dat.v6(5), v7(5))."""

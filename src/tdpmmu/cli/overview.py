"""What ``tdpmmu`` says if nothing is asked of it: all that it can do, in one screen."""

from __future__ import annotations

OVERVIEW = """\
tdpmmu: an executable model of KVM's x86 MMU, with a model checker around it.
Is a flush, a lock, an order needed? Ask, and read the run that goes wrong:
  tdpmmu check nx-recovery -k 5.12-rc4    explore all orders of a scenario
  tdpmmu check my_patch.py                the same with a patch of your own
  tdpmmu explain TOKEN --html run.html    a run as text, as a page, for a mail
  tdpmmu explore script                   drive a scenario by hand
  tdpmmu compare 5.12 5.12-rc4            can two kernels be told apart?
  tdpmmu flushes nx-recovery              take each flush away: was it needed?
  tdpmmu audit nx-recovery                the same for locks, RCU, yields
  tdpmmu zoo z10                          real upstream bugs, found again
  tdpmmu sweep nx-recovery --set vcpus=1,2  every combination of parameters
  tdpmmu campaign --count 1000            random scenarios, on all cores
What does a real kernel do?
  tdpmmu decode 800000000ce00ee7          what is this SPTE?
  tdpmmu trace stats t.dat                page tables and counts out of a trace
  tdpmmu trace verify t.dat               did it ever break a rule?
  tdpmmu trace replay t.dat               does the model do the same?
  tdpmmu trace convert t.dat --perfetto p look at it in the Perfetto UI
  tdpmmu record -o t.txt                  trace the KVM of this machine
  tdpmmu lab run                          boot and trace a kernel, emulated
  tdpmmu simulate nx-recovery             what does a knob cost my vCPUs?

tdpmmu kernels lists what is modelled; every command has --help with an example.
Exit codes: 0 good, 1 something is wrong, 2 bad usage; more in each --help."""


def show() -> None:
    """Print it."""
    print(OVERVIEW)

/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A range is zapped below every root, and the walk may yield: two entries of the zoo, each with
 * two levels of two entries, so that a root has two 2M leaves and no tables.
 *
 *   Z2        two vCPUs (one in SMM) read gfn 0; zap-range:0-3; the host takes the block back; 5.12
 *   Z36       one vCPU writes gfn 0; zap-range:0-3; 6.1
 *   FIXED     with the fix: Z2 a835429cda91, Z36 6d3085e4d89a
 *   MAY_HOLD  TLBs as sets; else each fill is a choice
 *   TURNS     what tdpmmu merges into one turn is atomic
 */

#ifdef Z2
#define VCPUS 2
#define ROOTS 2
#else
#define VCPUS 1
#define ROOTS 1
#endif
#define FANOUT 2

#include "common.pml"

inline flush_parked() { skip }

#define NONE 0
#define LEAF(gen) (4 + (gen))
#define PRESENT(x) ((x) >= 4)
#define ENTRY(as, i) spte[(as) * FANOUT + (i)]
#define HELD(i, gen) BIT(2 * (i) + (gen))

byte spte[ROOTS * FANOUT];
byte refs[ROOTS];

inline fill(v)
{
	hi = 0;
	do
	:: hi < FANOUT ->
		hx = ENTRY(v, hi);
		if
		:: PRESENT(hx) -> held[v] = held[v] | HELD(hi, hx - 4)
		:: else
		fi;
		hi++
	:: else -> break
	od;
	hi = 0; hx = 0
}

/* whoever zaps a range: mtrr, apicv */
proctype zapper()
{
	byte as, i, x, kick, at;
	bit first = 1, again, flush, owed;

	do
	:: BEGIN
		write_lock(REC);
		if
		:: again -> goto restart
		:: else
		fi;
#if defined(Z36) && defined(FIXED)
		notifier_count++;
#endif
#ifdef Z2
		as = 1;                         /* the newest root is the first on the list */
#endif
	next_root:
		refs[as]++;
		rcu_readers = rcu_readers | BIT(REC);
#if defined(Z2) && !defined(FIXED)
		flush = 0;
#endif
		i = 0;
		x = ENTRY(as, 0);
	visit:
		if
		:: PRESENT(x) ->
			ENTRY(as, i) = NONE;
			flush = 1; owed = 1
		:: else
		fi;
	move_on:
		x = ENTRY(as, i);               /* no table: nothing to step down into */
		if
		:: i == FANOUT - 1 -> goto walked
		:: else
		fi;
		i++;
		x = ENTRY(as, i);
		if      /* it has got further, so it may yield, once */
		:: goto visit
		:: true
		fi;
		rcu_readers = rcu_readers & ~BIT(REC);
		if
		:: flush -> flush_remote_tlbs(kick)
		:: else
		fi;
		flush = 0; owed = 0;
		writer = NOBODY;
		again = 1;
		goto turn_ends;
	restart:
		again = 0;
		rcu_readers = rcu_readers | BIT(REC);
		x = ENTRY(as, i);               /* back at the root, which has the entry itself */
#ifdef Z2
		goto move_on;                   /* 5.12 goes on from there */
#else
		goto visit;                     /* from 5.16 on it looks at it again */
#endif
	walked:
		rcu_readers = rcu_readers & ~BIT(REC);
		refs[as]--;
		x = 0; i = 0;
		if
		:: as > 0 -> as--; goto next_root
		:: else
		fi;
		if
		:: owed -> flush_remote_tlbs(kick)
		:: else
		fi;
		flush = 0; owed = 0;
#ifdef Z36
#ifdef FIXED
		notifier_seq++;
		notifier_count--;
#endif
		d_step {                                                /* leftover */
			assert(!PRESENT(ENTRY(0, 0)) && !PRESENT(ENTRY(0, 1)));
			assert(!(USABLE(0) && held[0]))
		};
#endif
		writer = NOBODY;
		alive = alive & ~BIT(REC);
		at = ENDED;
	turn_ends:
		skip
	   END;
	   if
	   :: at == ENDED -> break
	   :: else
	   fi
	od
}

#ifdef Z2
proctype host()
{
	byte as, x, kick;
	bit flush;

	BEGIN
		write_lock(HOST);
		notifier_count++;
		as = 0;
		do      /* slot by slot */
		:: as < ROOTS ->
			refs[as]++;
			rcu_readers = rcu_readers | BIT(HOST);
			x = ENTRY(as, 0);
			if
			:: PRESENT(x) -> ENTRY(as, 0) = NONE; flush = 1
			:: else
			fi;
			x = 0;
			rcu_readers = rcu_readers & ~BIT(HOST);
			refs[as]--;
			as++
		:: else -> break
		od;
		if
		:: flush -> flush_remote_tlbs(kick)
		:: else
		fi;
		flush = 0;
		writer = NOBODY
	END;
	as = 0;
	d_step {                                                        /* stale-translation */
		hv = 0;
		do
		:: hv < VCPUS ->
			assert(!(USABLE(hv) && (held[hv] & HELD(0, 0))));
			assert(ENTRY(hv, 0) != LEAF(0));
			hv++
		:: else -> break
		od;
		generation++
	};
	BEGIN
		write_lock(HOST);
		notifier_seq++;
		notifier_count--;
		writer = NOBODY;
		alive = alive & ~BIT(HOST)
	END
}
#endif

/* the vCPU that runs in root v */
proctype vcpu(byte v)
{
	byte at, outcome, seq, gen, x;

	do
	:: BEGIN
		if
		:: at == ENTER -> goto enter
		:: at == MAP -> goto map
		:: at == ACCESS
		fi;
		outcome = 0;
		d_step {
			hx = ENTRY(v, 0);
			outcome = (ipi[v] -> KICKED : (PRESENT(hx) -> HIT : FAULT));
			hx = 0
		};
		if
		:: outcome == FAULT && (held[v] & (HELD(0, 0) | HELD(0, 1))) -> outcome = HIT
		:: outcome != HIT || true
		fi;
		at = MAP;
		vm_exit(v);
		if
		:: outcome == KICKED -> goto enter
		:: outcome == HIT -> goto done
		:: outcome == FAULT
		fi;
		outcome = 0;
		seq = notifier_seq;
		gen = generation;
		goto turn_ends;

	map:
		outcome = 0;
		d_step { writer == NOBODY -> readers = readers | BIT(v) };
		if
		:: notifier_count -> goto unlock
		:: else
		fi;
		if
		:: notifier_seq != seq -> goto unlock
		:: else
		fi;
		rcu_readers = rcu_readers | BIT(THREAD(v));
		x = ENTRY(v, 0);
		if
		:: x == LEAF(gen) -> goto unlock_rcu
		:: else
		fi;
		outcome = 0;
		d_step {
			if
			:: ENTRY(v, 0) == x ->
				assert(x == NONE);                      /* another pfn */
				assert(gen == generation);              /* stale-translation */
				ENTRY(v, 0) = LEAF(gen);
#ifdef MAY_HOLD
				if
				:: in_guest[v] -> fill(v)
				:: else
				fi
#endif
			:: else
			fi;
			hi = 0
		};
	unlock_rcu:
		x = 0;
		rcu_readers = rcu_readers & ~BIT(THREAD(v));
	unlock:
		seq = 0; gen = 0;
		readers = readers & ~BIT(v);

	enter:
		if
		:: request[v] ->
			request[v] = 0;
			flush_own(v)
		:: else
		fi;
		mode[v] = IN_GUEST;
		if
		:: request[v] || mode[v] == EXITING ->
			set_outside(v);
			goto enter
		:: else
		fi;
		at = ACCESS;
		d_step {
			in_guest[v] = 1;
#ifdef MAY_HOLD
			fill(v)
#endif
		};
		goto turn_ends;
	done:
		outcome = 0;
		park(v);
		alive = alive & ~BIT(THREAD(v));
		at = GONE;
	turn_ends:
		skip
	   END;
	   if
	   :: at == GONE -> break
	   :: else
	   fi
	od
}

#ifndef MAY_HOLD
/* the hardware page walker: loads either leaf, when it likes, in guest mode */
proctype walker(byte v)
{
end:	do
	:: atomic {
		in_guest[v] ->
		if
		:: hg = 0
		:: hg = 1
		fi;
		hx = ENTRY(v, hg);
		if
		:: PRESENT(hx) -> held[v] = held[v] | HELD(hg, hx - 4)
		:: else
		fi;
		hg = 0; hx = 0
	}
	od
}
#endif

proctype teardown()
{
	alive == 0 -> assert(writer == NOBODY && readers == 0 && rcu_readers == 0)
}

init {
	d_step {
#ifdef Z2
		ENTRY(1, 0) = LEAF(0);
		ENTRY(0, 1) = LEAF(0);
		held[1] = HELD(0, 0);
		held[0] = HELD(1, 0);
#else
		ENTRY(0, 0) = LEAF(0);
		ENTRY(0, 1) = LEAF(0);
		held[0] = HELD(0, 0) | HELD(1, 0);
		alive = BIT(REC) | BIT(THREAD(0));
#endif
	};
	atomic {
		run zapper();
		run vcpu(0);
#ifdef Z2
		run host();
		run vcpu(1);
#endif
#ifndef MAY_HOLD
		run walker(0);
#ifdef Z2
		run walker(1);
#endif
#endif
		run teardown()
	}
}

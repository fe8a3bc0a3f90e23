/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NX recovery against page faults and an unmap, as tdpmmu's scenario nx-recovery has it:
 * three levels, two roots, Linux 5.12-rc4.  docs/performance-spin.md has the two side by side.
 *
 * spin -a -DFANOUT=2 -DVCPUS=1 -DNX=1 -DLEGACY=1 -DGFNS=2 -DFAULTS=1 nx_recovery.pml
 *
 *   FLUSH_ON_NX_ZAP  the first patch of March 2021
 *   MAY_HOLD         TLBs as sets of all that may be held; else each fill is a choice
 *   TURNS            what tdpmmu merges into one turn is atomic; else each operation is a step
 *   NO_FLUSH_OWED    leave the rule about flushes at write_unlock out: look for harm alone
 */

#if GFNS > FANOUT || NX > FANOUT || VCPUS > 2
#error "one block of gfns, one table of NX pages, two vCPUs: that is what is modelled here"
#endif

#include "common.pml"

/* --- page table pages: fixed ones first, then what each vCPU may allocate ---------------------- */

#define POOL 4
#define ROOT(as) (as)
#define L2_OF(as) (2 + (as))
#define L1_OF(n) (4 + (n))
#define LEG_ROOT (4 + NX)
#define LEG_L2 (5 + NX)
#define LEG_L1(n) (6 + NX + (n))
#define LEG_REGION (NX)
#if LEGACY
#define FIRST_POOL (6 + NX + LEGACY)
#else
#define FIRST_POOL (4 + NX)
#endif
#define PAGES (FIRST_POOL + VCPUS * POOL)
#define AS(v) (1 - (v))
#define ENTRY(p, i) spte[(p) * FANOUT + (i)]
#define IS_LEGACY(p) ((p) >= LEG_ROOT && (p) < FIRST_POOL)
#define REGION(p) (((p) >= FIRST_POOL) -> 0 : ((p) - 4))
#define PAGE_AS(p) (((p) >= FIRST_POOL) -> AS(((p) - FIRST_POOL) / POOL) : 0)

/* an entry: none, frozen, a 4K leaf (rwx), a 2M leaf (rw-), or a table; leaves with the
 * generation of the host's page */
#define NONE 0
#define FROZEN 1
#define LEAF_4K(gen) (2 + (gen))
#define LEAF_2M(gen) (4 + (gen))
#define TABLE(p) (8 + (p))
#define PRESENT(x) ((x) >= 2)
#define IS_TABLE(x) ((x) >= 8)
#define IS_4K(x) ((x) == 2 || (x) == 3)
#define IS_2M(x) ((x) == 4 || (x) == 5)

#define FREE 0
#define USED 1
#define QUEUED 2
#define FREED 3

byte spte[PAGES * FANOUT];
byte state[PAGES];
bit nx[PAGES];                  /* nx_huge_page_disallowed */
bit linked[PAGES];              /* on tdp_mmu_pages, or on active_mmu_pages */
byte waits[PAGES];              /* the readers that call_rcu waits for */

byte list[NX + LEGACY + VCPUS * POOL];  /* lpage_disallowed_mmu_pages */
byte nlist;
byte splits;                    /* nx_lpage_splits */
byte refs[2];                   /* root_count */
byte used[VCPUS];               /* how much of each pool has gone */
#if LEGACY
bit rmap[LEGACY * FANOUT];
bit parent_pte[LEGACY];
bit invalid[LEGACY];
byte n_used_mmu_pages;
#endif

/* --- what TLBs may hold ------------------------------------------------------------------------- */

#define HELD_4K(g, gen) BIT(2 * (g) + (gen))
#define HELD_2M(gen) BIT(2 * FANOUT + (gen))
bit parked_root0 = (VCPUS < 2); /* a vCPU that never comes back still holds all of root 0 */
bit parked_legacy = (LEGACY > 0);

/* all that a walk from the root, or from a table still held, finds now */
inline fill(v)
{
	held_tables[v] = held_tables[v] | BIT(L2_OF(AS(v)));
	hi = 0;
	do
	:: hi < NX ->
		hx = ENTRY(L2_OF(AS(v)), hi);
		if
		:: IS_TABLE(hx) -> held_tables[v] = held_tables[v] | BIT(hx - 8)
		:: IS_2M(hx) && hi == 0 -> held[v] = held[v] | HELD_2M(hx - 4)
		:: else
		fi;
		hi++
	:: else -> break
	od;
	hp = 4;
	do
	:: hp < PAGES ->
		if
		:: (held_tables[v] & BIT(hp)) && REGION(hp) == 0 ->
			hi = 0;
			do
			:: hi < FANOUT ->
				hx = ENTRY(hp, hi);
				if
				:: IS_4K(hx) -> held[v] = held[v] | HELD_4K(hi, hx - 2)
				:: else
				fi;
				hi++
			:: else -> break
			od
		:: else
		fi;
		hp++
	:: else -> break
	od;
	hi = 0; hx = 0
}

/* hardware sees every change of an entry at once */
inline entry_written(as, new)
{
#ifdef MAY_HOLD
	if
	:: PRESENT(new) ->
		hv = 0;
		do
		:: hv < VCPUS ->
			if
			:: in_guest[hv] && AS(hv) == as -> fill(hv)
			:: else
			fi;
			hv++
		:: else -> break
		od
	:: else
	fi;
#endif
	hv = 0
}

/* memory goes back to the allocator: nobody may reach it any more */
inline free_page(p)
{
	hv = 0;
	do
	:: hv < VCPUS ->
		assert(!(USABLE(hv) && (held_tables[hv] & BIT(p))));            /* freed-table */
		hv++
	:: else -> break
	od;
	if
	:: IS_LEGACY(p) ->
		assert(!parked_legacy)
	:: else ->
		assert(!(parked_root0 && p < FIRST_POOL));
		assert(ENTRY(L2_OF(PAGE_AS(p)), REGION(p)) != TABLE(p))
	fi;
	state[p] = FREED;
	nx[p] = 0;
	hi = 0;
	do
	:: hi < FANOUT -> ENTRY(p, hi) = NONE; hi++
	:: else -> break
	od;
	hi = 0; hv = 0
}

#define TOUCH(p) assert(state[p] != FREED)                              /* use-after-free */

/* is every usable translation of the first block still what the page tables say? */
inline check_flush_owed()
{
#ifndef NO_FLUSH_OWED
	hv = 0;
	do
	:: hv < VCPUS ->
		if
		:: USABLE(hv) ->
			hx = ENTRY(L2_OF(AS(hv)), 0);
			hi = 0;
			do
			:: hi < 2 * FANOUT ->
				if
				:: held[hv] & BIT(hi) ->
					assert(IS_TABLE(hx));
					assert(ENTRY(hx - 8, hi / 2) == LEAF_4K(hi % 2))
				:: else
				fi;
				hi++
			:: else -> break
			od;
			hg = 0;
			do
			:: hg < 2 ->
				if
				:: (held[hv] & HELD_2M(hg)) && hx != LEAF_2M(hg) ->
					assert(IS_TABLE(hx));
					hi = 0;
					do
					:: hi < FANOUT -> assert(ENTRY(hx - 8, hi) == LEAF_4K(hg)); hi++
					:: else -> break
					od
				:: else
				fi;
				hg++
			:: else -> break
			od;
			hp = 4;
			do
			:: hp < PAGES ->
				assert(!(held_tables[hv] & BIT(hp)) ||
				       ENTRY(L2_OF(PAGE_AS(hp)), REGION(hp)) == TABLE(hp));
				hp++
			:: else -> break
			od
		:: else
		fi;
		hv++
	:: else -> break
	od
#endif
	skip
}

inline write_unlock()
{
	d_step { check_flush_owed(); writer = NOBODY }
}

inline rcu_read_unlock(me)
{
	d_step {
		rcu_readers = rcu_readers & ~BIT(me);
		hg = 4;
		do
		:: hg < PAGES ->
			if
			:: state[hg] == QUEUED ->
				waits[hg] = waits[hg] & ~BIT(me);
				if
				:: waits[hg] == 0 -> free_page(hg)
				:: else
				fi
			:: else
			fi;
			hg++
		:: else -> break
		od;
		hg = 0
	}
}

inline call_rcu(p)
{
	d_step {
		waits[p] = rcu_readers;
		if
		:: waits[p] == 0 -> hg = p; free_page(hg)
		:: else -> state[p] = QUEUED
		fi;
		hg = 0
	}
}

inline list_del(p)
{
	d_step {
		hi = 0; ok = 0;
		do
		:: hi < nlist ->
			if
			:: list[hi] == p -> ok = 1
			:: else
			fi;
			if
			:: ok && hi + 1 < nlist -> list[hi] = list[hi + 1]
			:: else
			fi;
			hi++
		:: else -> break
		od;
		assert(ok);                                             /* list corruption */
		nlist--;
		list[nlist] = 0
	}
}

/* those that never come back have no request to look at: they forget at once */
inline flush_parked()
{
#if VCPUS < 2
	parked_root0 = 0;
#endif
#if LEGACY
	parked_legacy = 0;
#endif
	skip
}

/* --- zapping one region below one root, under the write lock ------------------------------------ */

/* the walk down to the region's entry, which every read looks at again */
inline walk_to(as, n, x)
{
	x = ENTRY(ROOT(as), 0);
	assert(IS_TABLE(x));
	x = ENTRY(ROOT(as), 0);
	x = ENTRY(L2_OF(as), n)
}

inline clear_entry(as, n)
{
	d_step { ENTRY(L2_OF(as), n) = NONE; entry_written(as, NONE) }
}

/* a table has left the paging structure: off its lists, freeze its entries */
inline removed_page(as, q, i, x)
{
	TOUCH(q);
	d_step { assert(linked[q]); linked[q] = 0 };
	if
	:: nx[q] ->
		splits--;
		nx[q] = 0;
		list_del(q)
	:: else
	fi;
	i = 0;
	do
	:: i < FANOUT ->
		x = ENTRY(q, i);
		if
		:: PRESENT(x) -> d_step { ENTRY(q, i) = FROZEN; entry_written(as, FROZEN) }
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0
}

/* --- NX recovery --------------------------------------------------------------------------------- */

#if LEGACY
inline zap_legacy(p, i, x)
{
	i = 0;
	do
	:: i < FANOUT ->
		x = ENTRY(p, i);
		if
		:: PRESENT(x) ->
			ENTRY(p, i) = NONE;
			d_step { assert(rmap[(p - LEG_L1(0)) * FANOUT + i]);
			         rmap[(p - LEG_L1(0)) * FANOUT + i] = 0 }
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0;
	d_step { assert(parent_pte[p - LEG_L1(0)]); parent_pte[p - LEG_L1(0)] = 0 };
	ENTRY(LEG_L2, (LEG_REGION + p - LEG_L1(0)) % FANOUT) = NONE;
	d_step { assert(linked[p]); linked[p] = 0 };
	n_used_mmu_pages--;
	splits--;
	nx[p] = 0;
	list_del(p);
	invalid[p - LEG_L1(0)] = 1
}

/* invalid_list: the pages that are marked invalid and not freed */
inline commit_zap(kick, i)
{
	flush_remote_tlbs(kick);
	i = 0;
	do
	:: i < LEGACY ->
		if
		:: invalid[i] && state[LEG_L1(i)] == USED -> d_step { hg = LEG_L1(i); free_page(hg) }
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0
}
#endif

inline remote_flush_or_zap(pending, flush, kick, i)
{
	if
#if LEGACY
	:: pending -> commit_zap(kick, i); pending = 0
#endif
	:: !pending && flush -> flush_remote_tlbs(kick)
	:: else
	fi;
	flush = 0
}

proctype recovery()
{
	byte to_zap, sp, as, n, x, i, kick, at;
	bit first = 1, pending, flush, zapped, owed;

	do
	:: BEGIN
		if
		:: at == LOCK -> write_lock(REC)
		:: at == WALKED -> goto walked
		fi;
		if
		:: first -> to_zap = splits; first = 0
		:: else
		fi;
	pick:
		if
		:: to_zap == 0 || nlist == 0 -> goto finish
		:: else
		fi;
		sp = list[0];
		assert(nx[sp]);
		TOUCH(sp);
#if LEGACY
		if
		:: IS_LEGACY(sp) ->
			zap_legacy(sp, i, x);
			pending = 1;
			goto counted
		:: else
		fi;
#endif
		n = REGION(sp);
		as = 0;
		owed = 0;
	next_root:
		refs[as]++;
		zapped = 0;
		rcu_readers = rcu_readers | BIT(REC);
		walk_to(as, n, x);
		if
		:: PRESENT(x) ->
			clear_entry(as, n);
			zapped = 1;
			if
			:: IS_TABLE(x) ->
				sp = x - 8;
				removed_page(as, sp, i, x);
				flush_remote_tlbs(kick);
				call_rcu(sp);
				sp = 0; x = 0;
				at = WALKED;
				goto turn_ends
			:: else
			fi
		:: else
		fi;
	walked:
		x = 0;
		rcu_read_unlock(REC);
		refs[as]--;
		/* No walk of a single region can yield, since it gets no further: whether a flush is
		 * threaded through (the second patch) or added up afterwards is the same here. */
		owed = owed || zapped;
		as++;
		if
		:: as < 2 -> goto next_root
		:: else
		fi;
#ifdef FLUSH_ON_NX_ZAP
		flush = owed;
#else
		flush = 0;
#endif
	counted:
		to_zap--;
		if
		:: goto pick
		:: true ->      /* or the else inside would be an else to this choice, too */
		   remote_flush_or_zap(pending, flush, kick, i);
		   write_unlock();
		   at = LOCK;
		   goto turn_ends
		fi;
	finish:
		remote_flush_or_zap(pending, flush, kick, i);
		write_unlock();
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

/* --- the host takes the first block back ---------------------------------------------------------- */

proctype host()
{
	byte as, x, q, i, kick, at;
	bit flush;

	do
	:: BEGIN
		if
		:: at == LOCK -> write_lock(HOST)
		:: at == WALKED -> goto walked
		fi;
		notifier_count++;
	next_root:
		refs[as]++;
		rcu_readers = rcu_readers | BIT(HOST);
		walk_to(as, 0, x);
		if
		:: PRESENT(x) ->
			clear_entry(as, 0);
			flush = 1;
			if
			:: IS_TABLE(x) ->
				q = x - 8;
				removed_page(as, q, i, x);
				flush_remote_tlbs(kick);
				call_rcu(q);
				q = 0; x = 0;
				at = WALKED;
				goto turn_ends
			:: else
			fi
		:: else
		fi;
	walked:
		x = 0;
		rcu_read_unlock(HOST);
		refs[as]--;
		as++;
		if
		:: as < 2 -> goto next_root
		:: else
		fi;
		if
		:: flush -> flush_remote_tlbs(kick)
		:: else
		fi;
		flush = 0;
		write_unlock();
		at = ENDED;
	turn_ends:
		skip
	   END;
	   if
	   :: at == ENDED -> break
	   :: else
	   fi
	od;

	at = LOCK;
	d_step {                                                        /* stale-translation */
		hv = 0;
		do
		:: hv < VCPUS ->
			hi = 0;
			do
			:: hi <= FANOUT ->
				assert(!(USABLE(hv) && (held[hv] & BIT(2 * hi + generation))));
				hi++
			:: else -> break
			od;
			hv++
		:: else -> break
		od;
		assert(!parked_root0);
		hv = 0;
		do
		:: hv < 2 ->
			hx = ENTRY(L2_OF(hv), 0);
			assert(hx != LEAF_2M(generation));
			if
			:: IS_TABLE(hx) ->
				hi = 0;
				do
				:: hi < FANOUT -> assert(ENTRY(hx - 8, hi) != LEAF_4K(generation)); hi++
				:: else -> break
				od
			:: else
			fi;
			hv++
		:: else -> break
		od;
		generation++
	};

	BEGIN
		write_lock(HOST);
		notifier_seq++;
		notifier_count--;
		write_unlock();
		alive = alive & ~BIT(HOST)
	END
}

/* --- a vCPU ---------------------------------------------------------------------------------------- */

#define EXEC(c) ((c) & 1)
#define GFN(c) ((c) / 2)
/* what a walk of the live tables allows */
inline live(v, c, result)
{
	hx = ENTRY(L2_OF(AS(v)), 0);
	if
	:: IS_TABLE(hx) -> hp = hx - 8; hx = ENTRY(hp, GFN(c)); result = IS_4K(hx)
	:: else -> result = IS_2M(hx) && !EXEC(c)
	fi
}

#define HELD_ALLOWS(v, c) ((held[v] & (HELD_4K(GFN(c), 0) | HELD_4K(GFN(c), 1))) || \
                           (!EXEC(c) && (held[v] & (HELD_2M(0) | HELD_2M(1)))))

proctype vcpu(byte v)
{
	byte at, c = UNCHOSEN, left = FAULTS, outcome, seq, gen, goal, x, q, kick, i;

	do
	:: BEGIN
		if
		:: at == ENTER -> goto enter
		:: at == MAP -> goto map
#if VCPUS > 1
		:: at == ASKED -> goto asked
#endif
		:: at == ACCESS ->
			if
			:: c != UNCHOSEN
			:: c == UNCHOSEN && GFNS > 0 -> c = 0
			:: c == UNCHOSEN && GFNS > 0 -> c = 1
			:: c == UNCHOSEN && GFNS > 1 -> c = 2
			:: c == UNCHOSEN && GFNS > 1 -> c = 3
			:: c == UNCHOSEN && GFNS > 2 -> c = 4
			:: c == UNCHOSEN && GFNS > 2 -> c = 5
			:: c == UNCHOSEN && GFNS > 3 -> c = 6
			:: c == UNCHOSEN && GFNS > 3 -> c = 7
			fi
		fi;
		/* the access: any translation that is held or live may serve it */
		outcome = 0;
		d_step { live(v, c, ok); outcome = (ipi[v] -> KICKED : (ok -> HIT : FAULT)) };
		if
		:: outcome == FAULT && HELD_ALLOWS(v, c) -> outcome = HIT
		:: outcome != HIT || true
		fi;
		at = MAP;
		vm_exit(v);
		if
		:: outcome == KICKED -> goto enter
		:: outcome == HIT ->
			left--;
			c = UNCHOSEN;
			if
			:: left -> goto enter
			:: else -> goto done
			fi
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
		goal = (EXEC(c) -> 1 : 2);
		rcu_readers = rcu_readers | BIT(THREAD(v));
		walk_to(AS(v), 0, x);
		if
		:: goal == 2 && IS_TABLE(x) -> goal = 1
		:: else
		fi;
		if
		:: goal == 2 -> goto target_2m
		:: IS_TABLE(x) -> goto below
		:: x == FROZEN -> goto unlock_rcu
		:: x == NONE -> goto table
		:: IS_2M(x)
		fi;
		/* split a huge page: freeze, flush, clear */
		q = 0;
		d_step { ok = (ENTRY(L2_OF(AS(v)), 0) == x); if :: ok -> ENTRY(L2_OF(AS(v)), 0) = FROZEN :: else fi; q = ok };
		if
		:: q == 0 -> goto unlock_rcu
		:: else -> q = 0
		fi;
		flush_parked();
		request_flush(0);
		needs_ipi(0, kick);
#if VCPUS > 1
		at = ASKED;
		goto turn_ends;
	asked:
		request_flush(1);
		needs_ipi(1, kick);
#endif
		kick_and_wait(kick);
		ENTRY(L2_OF(AS(v)), 0) = NONE;
		x = ENTRY(L2_OF(AS(v)), 0);
	table:
		x = NONE;
		d_step {
			assert(used[v] < POOL);
			q = FIRST_POOL + v * POOL + used[v];
			state[q] = USED;
			used[v]++
		};
		d_step {
			ok = (ENTRY(L2_OF(AS(v)), 0) == x && x == NONE);
			if
			:: ok -> ENTRY(L2_OF(AS(v)), 0) = TABLE(q); entry_written(AS(v), TABLE(q))
			:: else -> state[q] = FREE; used[v]--; q = 0
			fi
		};
		if
		:: q == 0 -> goto unlock_rcu
		:: else
		fi;
		x = NONE;
		d_step { pages_lock == NOBODY -> pages_lock = v };
		linked[q] = 1;
		if
		:: EXEC(c) && !nx[q] ->
			splits++;
			d_step { list[nlist] = q; nlist++ };
			nx[q] = 1
		:: else
		fi;
		pages_lock = NOBODY;
		q = 0;
		x = ENTRY(L2_OF(AS(v)), 0);
		if
		:: IS_TABLE(x)
		:: else -> goto unlock_rcu
		fi;
	below:
		goal = 1;
		x = ENTRY(L2_OF(AS(v)), 0);
		if
		:: IS_TABLE(x) -> q = x - 8
		:: else -> goto unlock_rcu
		fi;
		TOUCH(q);
		x = ENTRY(q, GFN(c));
		if
		:: x == LEAF_4K(gen) || x == FROZEN -> goto unlock_rcu
		:: else
		fi;
		kick = 0;
		d_step {
			TOUCH(q);
			if
			:: ENTRY(q, GFN(c)) == x ->
				assert(x == NONE);                      /* another pfn */
				assert(gen == generation);              /* stale-translation */
				ENTRY(q, GFN(c)) = LEAF_4K(gen);
				entry_written(AS(v), LEAF_4K(gen))
			:: else
			fi
		};
		goto unlock_rcu;
	target_2m:
		if
		:: x == LEAF_2M(gen) || x == FROZEN -> goto unlock_rcu
		:: else
		fi;
		kick = 0;
		d_step {
			if
			:: ENTRY(L2_OF(AS(v)), 0) == x ->
				assert(x == NONE);
				assert(gen == generation);
				ENTRY(L2_OF(AS(v)), 0) = LEAF_2M(gen);
				entry_written(AS(v), LEAF_2M(gen))
			:: else
			fi
		};
	unlock_rcu:
		x = 0; q = 0;
		rcu_read_unlock(THREAD(v));
	unlock:
		goal = 0; seq = 0; gen = 0;
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
		kick = 0;
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
/* the hardware page walker of one vCPU: loads what it likes, when it likes, in guest mode */
proctype walker(byte v)
{
end:	do
	:: atomic {
		in_guest[v] ->
		if
		:: hg = 0
		:: GFNS > 1 -> hg = 1
		:: GFNS > 2 -> hg = 2
		:: GFNS > 3 -> hg = 3
		fi;
		d_step {
			/* from the root: what it meets on the way is cached, too */
			held_tables[v] = held_tables[v] | BIT(L2_OF(AS(v)));
			hx = ENTRY(L2_OF(AS(v)), 0);
			if
			:: IS_2M(hx) -> held[v] = held[v] | HELD_2M(hx - 4)
			:: IS_TABLE(hx) ->
				hp = hx - 8;
				held_tables[v] = held_tables[v] | BIT(hp);
				hx = ENTRY(hp, hg);
				if
				:: IS_4K(hx) -> held[v] = held[v] | HELD_4K(hg, hx - 2)
				:: else
				fi
			:: else
			fi;
			hg = 0; hx = 0; hp = 0
		}
	}
	:: atomic {
		in_guest[v] && held_tables[v] >= BIT(4) ->
		hp = 4;
		do      /* from a table that a cached entry still leads to */
		:: hp < PAGES - 1 -> hp++
		:: (held_tables[v] & BIT(hp)) && REGION(hp) == 0 -> break
		:: hp == PAGES - 1 -> goto none
		od;
		if
		:: hg = 0
		:: GFNS > 1 -> hg = 1
		:: GFNS > 2 -> hg = 2
		:: GFNS > 3 -> hg = 3
		fi;
		d_step {
			hx = ENTRY(hp, hg);
			if
			:: IS_4K(hx) -> held[v] = held[v] | HELD_4K(hg, hx - 2)
			:: else
			fi
		};
	none:
		hg = 0; hx = 0; hp = 0
	}
	od
}
#endif

/* the end of the VM: every table is reachable, or was freed */
proctype teardown()
{
	alive == 0 ->
	d_step {
		assert(refs[0] == 1 && refs[1] == 1);
		hp = 4;
		do
		:: hp < PAGES ->
			assert(state[hp] != QUEUED);
			if
			:: state[hp] == USED && IS_LEGACY(hp) ->
				assert(linked[hp])
			:: state[hp] == USED && !IS_LEGACY(hp) ->
				assert(ENTRY(L2_OF(PAGE_AS(hp)), REGION(hp)) == TABLE(hp))      /* leak */
			:: else
			fi;
			hp++
		:: else -> break
		od;
		hp = 0
	}
}

/* --- the first state --------------------------------------------------------------------------------- */

init {
	byte n, i;
	d_step {
		refs[0] = 1; refs[1] = 1;
		ENTRY(ROOT(0), 0) = TABLE(L2_OF(0));
		ENTRY(ROOT(1), 0) = TABLE(L2_OF(1));
		n = 0;
		do
		:: n < 4 -> state[n] = USED; n++
		:: else -> break
		od;
#if LEGACY
		state[LEG_ROOT] = USED; state[LEG_L2] = USED;
		linked[LEG_ROOT] = 1; linked[LEG_L2] = 1;
		n_used_mmu_pages = 2;
		n = 0;
		do
		:: n < LEGACY ->
			ENTRY(LEG_ROOT, (LEG_REGION + n) / FANOUT) = TABLE(LEG_L2);
			ENTRY(LEG_L2, (LEG_REGION + n) % FANOUT) = TABLE(LEG_L1(n));
			state[LEG_L1(n)] = USED; linked[LEG_L1(n)] = 1; nx[LEG_L1(n)] = 1;
			parent_pte[n] = 1; n_used_mmu_pages++;
			list[nlist] = LEG_L1(n); nlist++; splits++;
			i = 0;
			do
			:: i < FANOUT -> ENTRY(LEG_L1(n), i) = LEAF_4K(0); rmap[n * FANOUT + i] = 1; i++
			:: else -> break
			od;
			n++
		:: else -> break
		od;
#endif
		n = 0;
		do
		:: n < NX ->
			ENTRY(L2_OF(0), n) = TABLE(L1_OF(n));
			ENTRY(L2_OF(1), n) = LEAF_2M(0);
			state[L1_OF(n)] = USED; linked[L1_OF(n)] = 1; nx[L1_OF(n)] = 1;
			list[nlist] = L1_OF(n); nlist++; splits++;
			i = 0;
			do
			:: i < FANOUT -> ENTRY(L1_OF(n), i) = LEAF_4K(0); i++
			:: else -> break
			od;
			n++
		:: else -> break
		od;
		fill(0);
#if VCPUS > 1
		fill(1);
#endif
		n = 0; i = 0; hi = 0; hp = 0; hx = 0
	};
	atomic {
		run recovery();
		run host();
		run vcpu(0);
#if VCPUS > 1
		run vcpu(1);
#endif
#ifndef MAY_HOLD
		run walker(0);
#if VCPUS > 1
		run walker(1);
#endif
#endif
		run teardown()
	}
}

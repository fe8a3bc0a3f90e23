/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What all models share: locks, a vCPU as others see it, and the remote flush.  Needs VCPUS and
 * flush_parked().
 */

#ifdef TURNS
#define BEGIN atomic {
#else
#define BEGIN {
#endif
#define END }

#define BIT(n) (1 << (n))

/* --- locks, RCU, the notifier, the host --------------------------------------------------------- */

#define NOBODY 255
#define REC 0                   /* who recovers, or zaps a range */
#define HOST 1
#define THREAD(v) (2 + (v))
byte writer = NOBODY;
byte readers;
byte pages_lock = NOBODY;
byte rcu_readers;
byte alive = BIT(2 + VCPUS) - 1;
byte notifier_count;
byte notifier_seq;
byte generation;                /* of the host page behind the first block */

inline write_lock(me)
{
	d_step { writer == NOBODY && readers == 0 -> writer = me }
}

/* --- vCPUs -------------------------------------------------------------------------------------- */

#define OUTSIDE 0
#define IN_GUEST 1
#define EXITING 2
byte mode[VCPUS];
bit request[VCPUS];
bit ipi[VCPUS];
bit in_guest[VCPUS];
bit parked[VCPUS];
int held_tables[VCPUS];         /* a bit for each page that a cached non-leaf leads to */
int held[VCPUS];                /* a bit for each leaf that the TLB holds */
#define USABLE(v) (in_guest[v] || !request[v])

/* where a thread's turn starts */
#define LOCK 0
#define WALKED 1
#define ENDED 2
#define ENTER 0
#define ACCESS 1
#define MAP 2
#define ASKED 3
#define GONE 4
#define UNCHOSEN 255

/* what comes of an access */
#define HIT 1
#define KICKED 2
#define FAULT 3

hidden byte hv, hp, hi, hx, hg, ok;

/* --- the remote flush --------------------------------------------------------------------------- */

inline request_flush(v)
{
	d_step {
		if
		:: parked[v] -> held[v] = 0; held_tables[v] = 0
		:: else ->
			request[v] = 1;
			if
			:: mode[v] == OUTSIDE && !in_guest[v] -> held[v] = 0; held_tables[v] = 0
			:: else
			fi
		fi
	}
}

inline needs_ipi(v, kick)
{
	d_step {
		if
		:: mode[v] != OUTSIDE -> kick = kick | BIT(v)
		:: else
		fi;
		if
		:: mode[v] == IN_GUEST -> mode[v] = EXITING
		:: else
		fi
	}
}

inline send_ipi(v, kick)
{
	if
	:: kick & BIT(v) -> d_step {
		if
		:: mode[v] != OUTSIDE -> ipi[v] = 1
		:: else
		fi
	}
	:: else
	fi
}

inline kick_and_wait(kick)
{
	send_ipi(0, kick);
#if VCPUS > 1
	send_ipi(1, kick);
#endif
	!(kick & 1) || !ipi[0];
#if VCPUS > 1
	!(kick & 2) || !ipi[1];
#endif
	kick = 0
}

inline flush_remote_tlbs(kick)
{
	flush_parked();
	request_flush(0);
	needs_ipi(0, kick);
#if VCPUS > 1
	request_flush(1);
	needs_ipi(1, kick);
#endif
	kick_and_wait(kick)
}

/* --- a vCPU goes in and comes out --------------------------------------------------------------- */

inline flush_own(v)
{
	d_step { held[v] = 0; held_tables[v] = 0 }
}

/* mode = OUTSIDE: a pending IPI is taken, and with a request due the TLB is of no use */
inline set_outside(v)
{
	d_step {
		mode[v] = OUTSIDE;
		ipi[v] = 0;
		if
		:: request[v] -> held[v] = 0; held_tables[v] = 0
		:: else
		fi
	}
}

inline vm_exit(v)
{
	d_step { in_guest[v] = 0; ipi[v] = 0 };
	set_outside(v)
}

inline park(v)
{
	d_step {
		parked[v] = 1;
		if
		:: request[v] -> request[v] = 0; held[v] = 0; held_tables[v] = 0
		:: else
		fi
	}
}

/*
 * The handoff of one bucket between three nodes: hearing, views, plans, release and acquisition, leases.
 *
 * The rules are those of src/nlbfarm/core/{hearing,reach,membership,handoff,lease,lateness,node}.py, function by
 * function, under the same names. README.md says how to run it, what it found, and what it leaves out.
 *
 * Time goes in heartbeat intervals. In each interval every node that runs takes at least one turn, in any order; a
 * turn reads what has arrived, judges, changes the filter, renews the lease and speaks. A word is heard in the
 * interval in which it was said or in the next one, or never.
 */

/* How many faults of each kind a run may have, and how many in all; when and where is free. */
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef KILLS
#define KILLS FAULTS       /* the process dies; its filter stays as it is, until its lease ends or a new life closes it */
#endif
#ifndef FREEZES
#define FREEZES FAULTS     /* the process stands still for any time; its filter does not */
#endif
#ifndef CUTS
#define CUTS FAULTS        /* one direction of one link carries nothing, for any time */
#endif
#ifndef LOSSES
#define LOSSES FAULTS      /* one word is lost on its way to one node */
#endif
#ifndef MOVES
#define MOVES FAULTS       /* the administrator gives the bucket to another node */
#endif
#ifndef PARTITION
#define PARTITION 0   /* 1: links may also fail in both directions */
#endif
#ifndef TURNS
#define TURNS 1       /* turns that a node takes in one interval, at most */
#endif
#ifndef FIRST
#define FIRST 2       /* the node that has the bucket at the start */
#endif

/* The timing, in intervals (core/settings.py). */
#ifndef LOST_AFTER
#define LOST_AFTER 5
#endif
#ifndef LEASE
#define LEASE 3
#endif
#ifndef QUIET
#define QUIET 0       /* I2: so long after the last fault the bucket is served by exactly one node; 0: not asked */
#endif
#define RECENT 2      /* silent for at most 2.5 intervals: lease.SILENT_INTERVALS, membership.FRESH_INTERVALS */
#ifndef LATE
#define LATE (LEASE + 1)  /* so many turns missed: late by a lease or more */
#endif
#define SILENT LOST_AFTER
#define OLD (SILENT + RECENT + 1)  /* ages beyond this are alike */
#ifndef HEARD_FOR
#define HEARD_FOR LOST_AFTER       /* I1 is asked of two that have heard each other for so long */
#endif

#define N 3
#define L(i, j) ((i) * N + (j))    /* what i knows of j */
#define BIT(stays, i) (((stays) >> (i)) & 1)
#define MAX(a, b) ((a) > (b) -> (a) : (b))
#define MIN(a, b) ((a) < (b) -> (a) : (b))
#define ONE_MORE(a, top) ((a) < (top) -> (a) + 1 : (top))

/* A plan, and a view: epoch (counter, leader) | owner of the bucket (0: nobody) | incarnations | members.
   Nodes are 0..2; as leader and owner they count from 1. A node has at most two lives. */
#define MEMBERS(v) ((v) & 7)
#define LIVES(v) (((v) >> 3) & 7)
#define OWNER(v) (((v) >> 6) & 3)
#define EPOCH(v) ((v) >> 8)
#define COUNTER(e) ((e) >> 2)
#define LEADER(e) ((e) & 3)
#define TOP 15
#define COUNT(m) (BIT(m, 0) + BIT(m, 1) + BIT(m, 2))
#define SAME(a, b) (MEMBERS(a) & MEMBERS(b) & ~(LIVES(a) ^ LIVES(b)))
#define DISJOINT(a, b) (SAME(a, b) == 0)
#define RANK(v) ((COUNT(MEMBERS(v)) << 8) + ((N - LEADER(EPOCH(v))) << 4) + COUNTER(EPOCH(v)))
#define NAMES(v, i, life) (BIT(MEMBERS(v), i) && BIT(LIVES(v), i) == (life))

/* A word (a heartbeat). */
#define WORD(view, known, inside, life, holds, drains, echo, lives) \
  ((view) + ((known) << 14) + ((inside) << 20) + ((life) << 21) + ((holds) << 22) + ((drains) << 23) + \
   ((echo) << 24) + ((lives) << 27))
#define VIEW(w) ((w) & 16383)
#define KNOWN(w) (((w) >> 14) & 63)
#define INSIDE(w) BIT(w, 20)
#define LIFE(w) BIT(w, 21)
#define HOLDS(w) BIT(w, 22)
#define DRAINS(w) BIT(w, 23)
#define ECHOES(w, i, life) (BIT(w, 24 + (i)) && BIT(w, 27 + (i)) == (life))
#define NOTHING_OUTSIDE(w) (!INSIDE(w) && !HOLDS(w))

#define FOREIGN 0
#define DRAIN 1
#define ADOPT 2
#define OWN 3

/* Of each node. */
byte up = 7, frozen, life, turned;       /* masks */
byte turns[N];
byte order;                              /* in which nodes take their turns; ANY_ORDER: a new one in every interval */
byte state[N];                           /* of the bucket, in the filter */
byte lease[N];                           /* how long the filter still accepts */
short plan[N];                           /* 0: outside */
short deferral[N];
byte known[N], left[N];                  /* epochs */
byte since[N];                           /* inside, or outside */
byte came[N];                            /* masks */
byte woke[N];                            /* 0: awake; else intervals since it woke late, plus 1 */
byte missed[N];                          /* turns, while frozen */
int said[N];                             /* the newest word, and its age */
byte said_ago[N];

/* Of what each knows of each. */
int heard[N * N];                        /* the newest word heard */
byte silent_for[N * N];                  /* since the newest word heard was sent */
byte heard_ago[N * N];                   /* the same, but for own lateness; LOST_AFTER: lost, or never heard */
byte acked_ago[N * N];                   /* since the newest of our words that was echoed was sent */
bool acked[N * N];                       /* no: acked_ago counts from when it was first heard */
byte met_ago[N * N];                     /* since it was first heard, in this life and without a loss */
bool comes[N * N];                       /* said[j] is on its way to i, or in its queue */
bool cut[N * N];                         /* nothing comes from j to i */
byte member_ago[N * N];                  /* how long j has been a member of i's view */
#if PARTITION
byte hears_for[N * N];                   /* how long i has in fact heard j without a gap */
#endif

byte faults = FAULTS, kills = KILLS, freezes = FREEZES, cuts = CUTS, losses = LOSSES, moves = MOVES;
byte wanted_owner;
byte calm;                               /* intervals since the last fault was over */

hidden byte a, b, c, m, kept, joiners, bad0, bad1, bad2, able, pool, e, live, low, until, stays;
hidden short v, best;
hidden int w;
hidden byte flag, knows, heard_any;
byte hint;                               /* what is left open by the rules: 1 flows are over; 2 the higher heir */

#define HEARS(i, j) ((i) != (j) && heard_ago[L(i, j)] < LOST_AFTER)
#define HEARS_US(i, j) (acked[L(i, j)] && acked_ago[L(i, j)] <= LOST_AFTER)
#define CURRENT(i, j, v) (HEARS(i, j) && LIFE(heard[L(i, j)]) == BIT(LIVES(v), j))
/* lease.died: it fell silent while it still acknowledged us, or had only just been heard. */
#define DIED(i, j) (silent_for[L(i, j)] > RECENT && acked_ago[L(i, j)] <= silent_for[L(i, j)] + RECENT)
#define HELD(i) (state[i] >= ADOPT)
#define ACCEPTS(i) (HELD(i) && lease[i] > 0)
#define RUNS(i) (BIT(up, i) && !BIT(frozen, i))
#define WAITS(i) (RUNS(i) && !turns[i])
#ifdef ANY_ORDER
#define IN_ORDER(i) true
#else
/* The phases of three nodes differ and stay: one of the two cyclic orders; faults may come at any point of it. */
#define IN_ORDER(i) (order -> !((i) > 0 && WAITS(0)) && !((i) > 1 && WAITS(1)) \
                            : !((i) < 2 && WAITS(2)) && !((i) < 1 && WAITS(1)))
#endif

/* ---- hearing.arrived --------------------------------------------------------------------------------------- */

inline arrive(i, j) {
  if
  :: comes[L(i, j)] ->
     comes[L(i, j)] = 0;
     w = said[j];
     e = said_ago[j];
     if
     :: !HEARS(i, j) || LIFE(heard[L(i, j)]) != LIFE(w) || silent_for[L(i, j)] == SILENT ->
        acked[L(i, j)] = 0; acked_ago[L(i, j)] = e; met_ago[L(i, j)] = 0
     :: else
     fi;
     heard[L(i, j)] = w;
     heard_ago[L(i, j)] = (e > 1 -> 1 : e);  /* older only in the queue of a frozen node: its patience makes up for it */
     silent_for[L(i, j)] = MIN(e, SILENT);
     if
     :: ECHOES(w, i, BIT(life, i)) && (!acked[L(i, j)] || silent_for[L(j, i)] < acked_ago[L(i, j)]) ->
        acked[L(i, j)] = 1;
        acked_ago[L(i, j)] = silent_for[L(j, i)]
     :: else
     fi;
     known[i] = MAX(known[i], MAX(KNOWN(w), EPOCH(VIEW(w))))
  :: else
  fi
}

/* ---- membership -------------------------------------------------------------------------------------------- */

inline enter(i, new) {
  if
  :: !plan[i] -> since[i] = 0; came[i] = 0; stays = 0
  :: else -> stays = SAME(plan[i], new) & ~joiners
  fi;
  for (m : 0 .. 2) {
    if
    :: BIT(stays, m)
    :: else -> member_ago[L(i, m)] = (BIT(MEMBERS(new), m) && OWNER(new) == m + 1 -> LOST_AFTER : 0)
    fi
  }
  came[i] = came[i] & stays;
  plan[i] = new;
  deferral[i] = 0;
  known[i] = MAX(known[i], EPOCH(new))
}

inline leave(i) {
  plan[i] = 0;
  since[i] = 0;
  left[i] = known[i];
  came[i] = 0;
  member_ago[L(i, 0)] = 0; member_ago[L(i, 1)] = 0; member_ago[L(i, 2)] = 0
}

inline follow(i) {
  e = (plan[i] -> EPOCH(plan[i]) : left[i]);
  best = 0;
  for (a : 0 .. 2) {
    v = VIEW(heard[L(i, a)]);
    if
    :: HEARS(i, a) && INSIDE(heard[L(i, a)]) && EPOCH(v) > e && NAMES(v, i, BIT(life, i)) -> e = EPOCH(v); best = v
    :: else
    fi
  }
  if
  :: best -> joiners = 0; enter(i, best)
  :: else
  fi
}

/* Whether peer a tells of a view (in v) that somebody follows: flag. */
inline tells(i, a) {
  w = heard[L(i, a)];
  v = VIEW(w);
  flag = 0;
  if
  :: HEARS(i, a) && v && INSIDE(w) -> flag = 1
  :: HEARS(i, a) && v && !INSIDE(w) ->
     for (m : 0 .. 2) {
       if
       :: BIT(MEMBERS(v), m) && ECHOES(w, m, BIT(LIVES(v), m)) &&
          !(m == i && BIT(LIVES(v), m) == BIT(life, i)) &&
          !(HEARS(i, m) && (LIFE(heard[L(i, m)]) > BIT(LIVES(v), m) || !INSIDE(heard[L(i, m)]) ||
                            EPOCH(VIEW(heard[L(i, m)])) > EPOCH(v))) -> flag = 1
       :: else
       fi
     }
  :: else
  fi
}

inline give_up(i) {
  kept = 1;
#ifndef NO_GIVING_UP
  for (a : 0 .. 2) {
    w = heard[L(i, a)];
    if
    :: HEARS(i, a) && INSIDE(w) && EPOCH(VIEW(w)) > EPOCH(plan[i]) && !NAMES(VIEW(w), i, BIT(life, i)) &&
       (NAMES(plan[i], a, LIFE(w)) || !DISJOINT(VIEW(w), plan[i])) -> kept = 0
    :: else
    fi
  }
  for (a : 0 .. 2) {
    tells(i, a);
    if
    :: flag && EPOCH(v) != EPOCH(plan[i]) && DISJOINT(v, plan[i]) && RANK(v) > RANK(plan[i]) -> kept = 0
    :: else
    fi
  }
#endif
  if
  :: !kept -> leave(i)
  :: else
  fi
}

inline defer(i) {
  best = 0;
  for (a : 0 .. 2) {
    tells(i, a);
    if
    :: flag && (!best || RANK(v) > RANK(best)) -> best = v
    :: else
    fi
  }
  deferral[i] = best
}

/* The outsiders among pool that hear, and are heard by, everybody in kept: joiners. */
inline join(i) {
  joiners = 0;
  for (a : 0 .. 2) {
    w = heard[L(i, a)];
    flag = BIT(pool, a) && !BIT(kept, a) && HEARS(i, a) && !INSIDE(w) && HEARS_US(i, a) &&
           !(VIEW(w) && (!plan[i] || DISJOINT(VIEW(w), plan[i])));
    for (b : 0 .. 2) {
      if
      :: b != i && b != a && BIT(kept | joiners, b) &&
         !(ECHOES(w, b, LIFE(heard[L(i, b)])) && ECHOES(heard[L(i, b)], a, LIFE(w))) -> flag = 0
      :: else
      fi
    }
    if
    :: flag -> joiners = joiners | (1 << a)
    :: else
    fi
  }
}

/* Who owns the bucket: what the administrator wants, else who has it, else any heir (the rules leave it open): e. */
inline place(previous) {
  e = 0;
  if
  :: wanted_owner && BIT(able, wanted_owner - 1) -> e = wanted_owner
  :: else ->
     if
     :: previous && BIT(able, previous - 1) -> e = previous
     :: else ->
        for (m : 0 .. 2) {
          if
          :: BIT(able, m) && (!e || (hint & 2)) -> e = m + 1
          :: else
          fi
        }
     fi
  fi
}

/* Who of stays has been a member for a detection time: able. */
inline find_able(i, mask_, fresh_) {
  able = 0;
  for (m : 0 .. 2) {
    if
#ifdef HASTY_PLACEMENT
    :: BIT(mask_, m) -> able = able | (1 << m)
#else
    :: BIT(mask_, m) && !BIT(fresh_, m) && plan[i] && member_ago[L(i, m)] >= LOST_AFTER -> able = able | (1 << m)
#endif
    :: else
    fi
  }
}

inline propose(i, members_, previous) {
  c = COUNTER(known[i]) + 1;
  assert(c <= TOP);
  v = 0;
  for (m : 0 .. 2) {
    if
    :: m == i -> v = v + (BIT(life, i) << (m + 3))
    :: m != i && BIT(members_, m) -> v = v + (LIFE(heard[L(i, m)]) << (m + 3))
    :: else
    fi
  }
  v = v + members_;
  joiners = joiners | (plan[i] -> (members_) & ~SAME(plan[i], v) : members_);
  find_able(i, members_, joiners);
  place(previous);
  v = v + (e << 6) + (((c << 2) + i + 1) << 8);
  enter(i, v)
}

inline form(i) {
  if
  :: !deferral[i] && since[i] >= LOST_AFTER ->
     pool = 0;
     heard_any = 0;
     for (a : 0 .. 2) {
       if
       :: HEARS(i, a) -> heard_any = 1; pool = pool | (HEARS_US(i, a) << a)
       :: else
       fi
     }
     if
     :: (!heard_any || pool) && !(pool & ((1 << i) - 1)) ->
        kept = 1 << i;
        join(i);
        propose(i, (kept | joiners), 0)
     :: else
     fi
  :: else
  fi
}

inline find_live(i) {
  live = 0;
  for (a : 0 .. 2) {
    w = heard[L(i, a)];
    if
    :: BIT(MEMBERS(plan[i]), a) && CURRENT(i, a, plan[i]) &&
       !(!INSIDE(w) && KNOWN(w) >= EPOCH(plan[i]) && (BIT(came[i], a) || member_ago[L(i, a)] >= LOST_AFTER)) ->
       live = live | (1 << a)
    :: else
    fi
  }
}

/* reach.broken_links: whether others have had the time to hear it, and i to hear of that. */
#define SETTLED(i, j) (BIT(live, j) && silent_for[L(i, j)] <= RECENT && \
                       member_ago[L(i, j)] >= LOST_AFTER && met_ago[L(i, j)] >= LOST_AFTER)

/* The largest set of me and live without a broken link; of equals the one with the lowest nodes: kept. */
inline clique(i) {
  bad0 = 0; bad1 = 0; bad2 = 0;             /* links 0-1, 0-2, 1-2 */
  for (a : 0 .. 2) {
    if
    :: SETTLED(i, a) ->
       for (b : 0 .. 2) {
         if
         :: (b == i && since[i] >= LOST_AFTER && !HEARS_US(i, a)) ||
            (b != i && b != a && SETTLED(i, b) && !ECHOES(heard[L(i, a)], b, LIFE(heard[L(i, b)]))) ->
            if
            :: a + b == 1 -> bad0 = 1
            :: a + b == 2 -> bad1 = 1
            :: else -> bad2 = 1
            fi
         :: else
         fi
       }
    :: else
    fi
  }
  live = live | (1 << i);
  if
  :: live == 7 && !bad0 && !bad1 && !bad2 -> kept = 7
  :: else ->
     if
     :: (live & 3) == 3 && !bad0 -> kept = 3
     :: else ->
        if
        :: (live & 5) == 5 && !bad1 -> kept = 5
        :: else ->
           if
           :: (live & 6) == 6 && !bad2 -> kept = 6
           :: else -> kept = live & -live
           fi
        fi
     fi
  fi
}

inline lead(i) {
  find_live(i);
  if
  :: live & ((1 << i) - 1)                 /* a lower one leads */
  :: else ->
     flag = 0; heard_any = 0; knows = 1;   /* limited by somebody, heard by somebody, all of them long there */
     pool = 0; kept = 0;                   /* who is heard, and who lately */
     for (a : 0 .. 2) {
       if
       :: HEARS(i, a) ->
          pool = 1;
          kept = kept || silent_for[L(i, a)] <= RECENT;
          heard_any = heard_any || HEARS_US(i, a);
          if
          :: !NOTHING_OUTSIDE(heard[L(i, a)]) && !DIED(i, a) -> flag = 1; knows = knows && met_ago[L(i, a)] >= LOST_AFTER
          :: else
          fi
       :: else
       fi
     }
     if
     :: flag && !heard_any && knows -> leave(i)
     :: flag && !heard_any && !knows
     :: !(flag && !heard_any) && pool && !kept   /* all are falling silent: the first to be lost is not the news yet */
     :: else ->
        clique(i);
        if
        :: !BIT(kept, i) -> leave(i)
        :: else ->
           pool = 7;
           join(i);
           kept = kept | joiners;
           if
           :: joiners || kept != MEMBERS(plan[i]) || known[i] > EPOCH(plan[i]) -> propose(i, kept, OWNER(plan[i]))
           :: else ->
              find_able(i, kept, 0);
              place(OWNER(plan[i]));
              if
              :: e != OWNER(plan[i]) -> propose(i, kept, OWNER(plan[i]))
              :: else
              fi
           fi
        fi
     fi
  fi
}

inline step(i) {
  for (a : 0 .. 2) {
    if
    :: HEARS(i, a) && INSIDE(heard[L(i, a)]) && plan[i] && CURRENT(i, a, plan[i]) -> came[i] = came[i] | (1 << a)
    :: else
    fi
  }
  follow(i);
  if
  :: plan[i] -> give_up(i)
  :: else
  fi;
  if
  :: !plan[i] -> defer(i); form(i)
  :: else
  fi;
  if
  :: plan[i] -> lead(i)
  :: else
  fi
}

/* ---- handoff ----------------------------------------------------------------------------------------------- */

/* handoff.everybody_knows: knows */
inline everybody_knows(i) {
  knows = 1;
#ifndef HASTY_RELEASE
  for (a : 0 .. 2) {
    if
    :: BIT(MEMBERS(plan[i]), a) && CURRENT(i, a, plan[i]) && KNOWN(heard[L(i, a)]) < EPOCH(plan[i]) -> knows = 0
    :: else
    fi
  }
#endif
}

/* handoff.acquirable: flag */
inline acquirable(i) {
  flag = 1;
#ifndef IGNORE_NEWER_EPOCH
  flag = flag && known[i] <= EPOCH(plan[i]);
#endif
#ifndef NO_SETTLING
  flag = flag && since[i] >= LOST_AFTER;
#endif
  for (a : 0 .. 2) {
    w = heard[L(i, a)];
#ifndef UNHEARD_MEMBERS
    flag = flag && !(a != i && BIT(MEMBERS(plan[i]), a) && !CURRENT(i, a, plan[i]));
#endif
    if
#ifdef MEMBERS_ONLY
    :: HEARS(i, a) && !NOTHING_OUTSIDE(w) && BIT(MEMBERS(plan[i]), a) ->
#else
    :: HEARS(i, a) && !NOTHING_OUTSIDE(w) ->
#endif
#ifndef NO_EPOCH_ACK
       flag = flag && KNOWN(w) >= EPOCH(plan[i]);
#endif
#ifndef NO_WAIT
       flag = flag && !HOLDS(w);
#endif
    :: else
    fi
  }
}

/* handoff.next_states; TRANSITIONS. hint & 1: no established flow is left, or drain_timeout is over. */
inline handoff(i) {
  kept = 0;
  flag = 0;
#ifdef KEEP_AFTER_LAPSE
  if
  :: plan[i] ->
#else
  if
  :: plan[i] && (lease[i] || !HELD(i)) ->
#endif
     everybody_knows(i);
     kept = OWNER(plan[i]) == i + 1 || !knows;
     if
     :: OWNER(plan[i]) == i + 1 && !HELD(i) && lease[i] -> acquirable(i)
     :: else
     fi
  :: else
  fi;
  pool = 0;                                /* contested: a peer announces the bucket as held or draining */
  for (a : 0 .. 2) {
    w = heard[L(i, a)];
    pool = pool | (HEARS(i, a) && (HOLDS(w) || DRAINS(w)))
  }
  if
  :: (HELD(i) && kept) || flag -> state[i] = (pool -> ADOPT : OWN)
  :: else ->
     if
     :: state[i] == FOREIGN || (hint & 1) -> state[i] = FOREIGN
     :: else -> state[i] = DRAIN
     fi
  fi
}

/* ---- lease ------------------------------------------------------------------------------------------------- */

/* node._awake: it has made sure, after a late turn, that its peers still count with it. */
inline awake(i) {
  flag = 1;
#ifndef NO_WAKING
  if
  :: woke[i] ->
     heard_any = 0;
     for (a : 0 .. 2) {
       if
       :: HEARS(i, a) && !(NOTHING_OUTSIDE(heard[L(i, a)]) && silent_for[L(i, a)] <= woke[i] - 1) ->
          heard_any = 1;
          if
          :: !acked[L(i, a)] || acked_ago[L(i, a)] > woke[i] - 1 -> flag = 0
          :: else
          fi
       :: else
       fi
     }
     flag = flag && (heard_any || woke[i] > LOST_AFTER)
  :: else
  fi;
#endif
  woke[i] = (flag -> 0 : woke[i])
}

inline renew(i) {
  awake(i);
  until = 0;
  if
#ifdef KEEP_AFTER_LAPSE
  :: plan[i] && flag ->
#else
  :: plan[i] && flag && !(HELD(i) && !lease[i]) ->
#endif
     until = LEASE;
#ifndef NO_FENCING
     for (a : 0 .. 2) {
       if
       :: HEARS(i, a) && !NOTHING_OUTSIDE(heard[L(i, a)]) && !DIED(i, a) ->
          e = (acked_ago[L(i, a)] < LOST_AFTER -> LOST_AFTER - acked_ago[L(i, a)] : 0);
#ifdef LONG_LEASE
          e = e + 1;
#endif
          until = (e < until -> e : until)
       :: else
       fi
     }
#endif
  :: else
  fi;
  lease[i] = until
}

/* ---- a turn ------------------------------------------------------------------------------------------------ */

inline speak(i) {
  a = 0; b = 0;
  for (m : 0 .. 2) {
    if
    :: HEARS(i, m) -> a = a | (1 << m); b = b | (LIFE(heard[L(i, m)]) << m)
    :: else
    fi
  }
  said[i] = WORD((plan[i] -> plan[i] : deferral[i]), known[i], (plan[i] -> 1 : 0), BIT(life, i), HELD(i),
                 state[i] == DRAIN, a, b);
  said_ago[i] = 0;
  for (m : 0 .. 2) {
    comes[L(m, i)] = m != i && !cut[L(m, i)] && BIT(up, m)
  }
}

inline turn(i) {
  atomic {
    RUNS(i) && turns[i] < TURNS && IN_ORDER(i);
    hint = 0;
    if
    :: state[i] != FOREIGN -> hint = 1
    :: true
    fi;
    if
    :: known[i] && faults < FAULTS -> hint = hint | 2
    :: true
    fi;
    d_step {
      if
#ifdef LATE_WAKING
      :: missed[i] >= LATE -> woke[i] = 1
#else
      :: missed[i] && !lease[i] -> woke[i] = 1
#endif
      :: else
      fi;
      missed[i] = 0;
      arrive(i, (i + 1) % N);
      arrive(i, (i + 2) % N);
      step(i);
      handoff(i);
      renew(i);
      speak(i);
      turns[i]++;
      printf("  node %d: view %d.%d of %d, bucket to %d; %d, lease %d; knows %d.%d, silent %d %d %d, acked %d %d %d\n", i + 1,
             COUNTER(EPOCH(plan[i])), LEADER(EPOCH(plan[i])), MEMBERS(plan[i]), OWNER(plan[i]), state[i], lease[i],
             COUNTER(known[i]), LEADER(known[i]), silent_for[L(i, 0)], silent_for[L(i, 1)], silent_for[L(i, 2)],
             acked_ago[L(i, 0)], acked_ago[L(i, 1)], acked_ago[L(i, 2)]);
      hint = 0;
      check()
    }
  }
}

/* ---- time -------------------------------------------------------------------------------------------------- */

inline tick() {
  d_step {
    printf("--\n");
    for (a : 0 .. 2) {
      turns[a] = 0;
      lease[a] = (lease[a] -> lease[a] - 1 : 0);
      said_ago[a] = ONE_MORE(said_ago[a], OLD);
      if
      :: BIT(up, a) ->
         since[a] = ONE_MORE(since[a], LOST_AFTER);
         woke[a] = (woke[a] -> ONE_MORE(woke[a], LOST_AFTER + 1) : 0);
         missed[a] = (BIT(frozen, a) -> ONE_MORE(missed[a], LATE) : 0)
      :: else
      fi;
      for (b : 0 .. 2) {
        if
        :: BIT(up, a) && a != b ->
           /* Its own lateness is added to the judgement of others (rule 1): ages stand still from the second
              missed turn on. */
           heard_ago[L(a, b)] = (missed[a] > 1 -> heard_ago[L(a, b)] : ONE_MORE(heard_ago[L(a, b)], LOST_AFTER));
           silent_for[L(a, b)] = ONE_MORE(silent_for[L(a, b)], SILENT);
           acked_ago[L(a, b)] = ONE_MORE(acked_ago[L(a, b)], OLD);
           met_ago[L(a, b)] = ONE_MORE(met_ago[L(a, b)], LOST_AFTER);
           if
           :: heard_ago[L(a, b)] == LOST_AFTER -> /* what is said of it no longer counts */
              heard[L(a, b)] = 0; silent_for[L(a, b)] = SILENT; acked_ago[L(a, b)] = OLD; acked[L(a, b)] = 0;
              met_ago[L(a, b)] = 0
           :: else
           fi
        :: else
        fi;
        member_ago[L(a, b)] = (plan[a] && BIT(MEMBERS(plan[a]), b) -> ONE_MORE(member_ago[L(a, b)], LOST_AFTER) : 0);
#if PARTITION
        hears_for[L(a, b)] = (RUNS(a) && BIT(up, b) && a != b && silent_for[L(a, b)] <= RECENT
                              -> ONE_MORE(hears_for[L(a, b)], HEARD_FOR) : 0);
#endif
      }
    }
    for (a : 0 .. 2) {
      for (b : 0 .. 2) {
        if
        :: said_ago[b] > 1 && !BIT(frozen, a) -> comes[L(a, b)] = 0
        :: else
        fi
      }
    }
#if QUIET
    calm = (faults || frozen || cut[1] || cut[2] || cut[3] || cut[5] || cut[6] || cut[7] -> 0
            : ONE_MORE(calm, QUIET));
#endif
    check()
  }
}

/* ---- the invariants ---------------------------------------------------------------------------------------- */

inline check() {
#if PARTITION
  assert(!(ACCEPTS(0) && ACCEPTS(1) && hears_for[L(0, 1)] >= HEARD_FOR && hears_for[L(1, 0)] >= HEARD_FOR));  /* I1 */
  assert(!(ACCEPTS(0) && ACCEPTS(2) && hears_for[L(0, 2)] >= HEARD_FOR && hears_for[L(2, 0)] >= HEARD_FOR));
  assert(!(ACCEPTS(1) && ACCEPTS(2) && hears_for[L(1, 2)] >= HEARD_FOR && hears_for[L(2, 1)] >= HEARD_FOR));
#else
  assert(ACCEPTS(0) + ACCEPTS(1) + ACCEPTS(2) <= 1)   /* I1 and I4: dead, frozen or unheard nodes count, too */
#endif
#if QUIET
  ; assert(calm < QUIET || ACCEPTS(0) + ACCEPTS(1) + ACCEPTS(2) == 1)   /* I2 */
#endif
#ifdef MOVED
  ; assert(FIRST == 1 || state[0] != OWN)             /* not an invariant: shows that the bucket can move */
#endif
}

/* ---- the farm ---------------------------------------------------------------------------------------------- */

inline forget(i) {
  plan[i] = 0; deferral[i] = 0; known[i] = 0; left[i] = 0; since[i] = 0; came[i] = 0; woke[i] = 0; missed[i] = 0;
  for (m : 0 .. 2) {
    heard[L(i, m)] = 0; heard_ago[L(i, m)] = LOST_AFTER; silent_for[L(i, m)] = SILENT; acked_ago[L(i, m)] = OLD;
    acked[L(i, m)] = 0; met_ago[L(i, m)] = 0; comes[L(i, m)] = 0; member_ago[L(i, m)] = 0
  }
}

inline fault(left_) {
  left_--; faults--; calm = 0;
  if
  :: !faults -> kills = 0; freezes = 0; cuts = 0; losses = 0; moves = 0
  :: else
  fi
}

/* A whole farm that has been so for long: view 1.1 of all, the bucket at FIRST. */
inline start() {
  for (a : 0 .. 2) {
    plan[a] = 7 + (FIRST << 6) + (5 << 8);
    known[a] = 5;
    since[a] = LOST_AFTER;
    came[a] = 7 & ~(1 << a);
    lease[a] = LEASE;
    for (b : 0 .. 2) {
      member_ago[L(a, b)] = LOST_AFTER;
      heard_ago[L(a, b)] = (a == b -> LOST_AFTER : 0);
      silent_for[L(a, b)] = (a == b -> SILENT : 0);
      acked_ago[L(a, b)] = (a == b -> OLD : 0);
      acked[L(a, b)] = a != b;
      met_ago[L(a, b)] = (a == b -> 0 : LOST_AFTER);
      heard[L(a, b)] = (a == b -> 0 : WORD(plan[a], 5, 1, 0, b + 1 == FIRST, 0, 7 & ~(1 << b), 0))
#if PARTITION
      ; hears_for[L(a, b)] = (a == b -> 0 : HEARD_FOR)
#endif
    }
    said[a] = WORD(plan[a], 5, 1, 0, a + 1 == FIRST, 0, 7 & ~(1 << a), 0)
  }
  state[FIRST - 1] = OWN
}

active proctype farm() {
  byte i, j;
  atomic {
#ifndef ANY_ORDER
    if
    :: order = 0
    :: order = 1
    fi;
#endif
    d_step { start() }
  }
  do
  :: turn(0)
  :: turn(1)
  :: turn(2)
  :: atomic {
       !WAITS(0) && !WAITS(1) && !WAITS(2) -> tick()
     }

  :: atomic {                              /* a process dies */
       faults && kills && up ->
       select (i : 0 .. 2);
       if
       :: BIT(up, i) -> d_step { fault(kills); printf("%d dies\n", i + 1); up = up & ~(1 << i); frozen = frozen & ~(1 << i); forget(i); check() }
       :: else
       fi;
       i = 0; j = 0
     }
  :: atomic {                              /* and is started again, with or without connections in its flow table */
       up != 7 ->
       select (i : 0 .. 2);
       if
       :: !BIT(up, i) && !BIT(life, i) ->
          if
          :: HELD(i) || state[i] == DRAIN -> state[i] = DRAIN
          :: state[i] = FOREIGN
          fi;
          d_step {
            printf("%d is started\n", i + 1);
            up = up | (1 << i);
            life = life | (1 << i);
            lease[i] = 0;
            comes[L(0, i)] = 0; comes[L(1, i)] = 0; comes[L(2, i)] = 0;
            calm = 0
          }
       :: else
       fi;
       i = 0; j = 0
     }
  :: atomic {                              /* a process stands still */
       faults && freezes ->
       select (i : 0 .. 2);
       if
       :: RUNS(i) -> d_step { fault(freezes); printf("%d stands still\n", i + 1); frozen = frozen | (1 << i) }
       :: else
       fi;
       i = 0; j = 0
     }
  :: atomic {                              /* and goes on */
       frozen ->
       select (i : 0 .. 2);
       if
       :: BIT(frozen, i) ->
          frozen = frozen & ~(1 << i);
          printf("%d goes on\n", i + 1);
          if                               /* with what came meanwhile still in its queue, or without */
          :: comes[L(i, (i + 1) % N)] = 0
          :: true
          fi;
          if
          :: comes[L(i, (i + 2) % N)] = 0
          :: true
          fi
       :: else
       fi;
       i = 0; j = 0
     }
  :: atomic {                              /* a link fails, in one direction */
       faults && cuts ->
       select (i : 0 .. 2);
       select (j : 0 .. 2);
       if
       :: i != j && !cut[L(i, j)] && (PARTITION || !cut[L(j, i)]) ->
          d_step { fault(cuts); printf("cut: %d to %d\n", j + 1, i + 1); cut[L(i, j)] = 1 }
       :: else
       fi;
       i = 0; j = 0
     }
#if PARTITION
  :: atomic {                              /* a node is cut off from both others, in both directions */
       faults && cuts ->
       select (i : 0 .. 2);
       d_step {
         fault(cuts);
         printf("cut off: %d\n", i + 1);
         for (a : 0 .. 2) {
           if
           :: a != i -> cut[L(i, a)] = 1; cut[L(a, i)] = 1
           :: else
           fi
         }
       };
       i = 0; j = 0
     }
  :: atomic {                              /* everything is whole again */
       d_step { printf("whole again\n"); cut[1] = 0; cut[2] = 0; cut[3] = 0; cut[5] = 0; cut[6] = 0; cut[7] = 0 }
     }
#endif
  :: atomic {                              /* one direction is repaired */
       cut[1] || cut[2] || cut[3] || cut[5] || cut[6] || cut[7] ->
       select (i : 0 .. 2);
       select (j : 0 .. 2);
       printf("repaired: %d to %d\n", j + 1, i + 1);
       cut[L(i, j)] = 0;
       i = 0; j = 0
     }
  :: atomic {                              /* a word is lost */
       faults && losses ->
       select (i : 0 .. 2);
       select (j : 0 .. 2);
       if
       :: comes[L(i, j)] -> d_step { fault(losses); printf("lost: %d to %d\n", j + 1, i + 1); comes[L(i, j)] = 0 }
       :: else
       fi;
       i = 0; j = 0
     }
  :: atomic {                              /* the administrator moves the bucket */
       faults && moves ->
       select (i : 1 .. 3);
       d_step { fault(moves); printf("wanted at %d\n", i); wanted_owner = i };
       i = 0; j = 0
     }
#if QUIET
  :: atomic { faults -> d_step { faults = 1; fault(moves) } }
#endif
  od
}

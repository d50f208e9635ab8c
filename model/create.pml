/* `snapshot create` on one device, asked for on two hosts: who may format it, until when, and who may take that back.
 *
 * Said here: the reservation c/<node> is a hold, not a promise of the lease: it goes when its owner has ended all of its
 * formatting, or after the owner was fenced; and taking the formatting back is part of the creation.
 * A snapshot that was taken has an entry as soon as anybody writes: whatever is formatted over it is lost. */
#ifndef FAULTS
#define FAULTS 1     /* crashes or stops; a lease may end for either */
#endif
#ifndef EXPIRE
#define EXPIRE 1     /* leases that end although their owner runs (etcd away) */
#endif
#ifndef FORCE
#define FORCE 0      /* --force: foreign content is no reason to refuse */
#endif
#define UP 1
#define PAUSED 2
#define DEAD 0
#define RUNS(m) (st[m]==UP && alive[m])
/* ---- the device: whose header (1 + host, 0 none), its valid flag, whether its area holds an entry */
byte owner; bit valid; bit entry;
byte fw[2];          /* in flight: 1 zero area 0, 2 header and sidecar, 3 header with valid=0 (undo) */
/* ---- etcd */
bit c[2];            /* c/<node> */
byte rec[2];         /* s/<name of that host's snapshot>: 0 none, 1 creating, 2 active */
bit alive[2]; byte ms[2]; bit tab[2];      /* ms: 0 active, 1 fencing, 2 fenced. tab: the table's CR */
/* ---- hosts */
byte st[2];
byte step[2];        /* 0 idle, 1 reserved, 2 seen to be free, 3 area zeroed, 4 header written, 5 registered, 6 taken, 7 refused, 8 undo has read the header, 9 undone, 10 over */
bit tried[2];
byte nfault, nexp;
#define WAITING(m) (rec[m]==1 && step[m]==5)

proctype host(byte m) {
end: do
  :: d_step { RUNS(m) && step[m]==0 && !tried[m] && !c[1-m] && rec[1-m]==0 -> tried[m] = 1; c[m] = 1; step[m] = 1 }
  /* the formatting happens in a thread: it looks at no deadline and ends when the device answers */
  :: d_step { st[m]==UP && step[m]==1 && (FORCE || owner==0 || !valid) -> step[m] = 2 }
  :: d_step { st[m]==UP && step[m]==1 && !FORCE && owner!=0 && valid -> step[m] = 9 }                                            /* foreign content */
  :: d_step { st[m]==UP && step[m]==2 && fw[m]==0 -> fw[m] = 1; step[m] = 3 }
  :: d_step { st[m]==UP && step[m]==3 && fw[m]==0 -> fw[m] = 2; step[m] = 4 }
  :: d_step { fw[m]==1 -> assert(rec[1-m]!=2 || !entry); entry = 0; fw[m] = 0 }
  :: d_step { fw[m]==2 -> assert(rec[1-m]!=2); owner = m+1; valid = 1; fw[m] = 0 }
  :: d_step { fw[m]==3 -> assert(rec[1-m]!=2); owner = m+1; valid = 0; fw[m] = 0 }
  /* take: only with the reservation */
  :: d_step { RUNS(m) && step[m]==4 && fw[m]==0 && c[m] && rec[1-m]==0 -> rec[m] = 1; step[m] = 5 }
  :: d_step { RUNS(m) && step[m]==4 && fw[m]==0 && (!c[m] || rec[1-m]!=0) -> step[m] = 7 }                              /* the device is another's */
  :: d_step { RUNS(m) && step[m]==5 && rec[m]==1 && (tab[1-m]==0) -> assert(owner==m+1 && valid); rec[m] = 2; step[m] = 6 }
  :: d_step { RUNS(m) && step[m]==5 && rec[m]==1 -> rec[m] = 0; step[m] = 7 }                                           /* somebody did not answer */
  :: d_step { RUNS(m) && step[m]==6 -> c[m] = 0; step[m] = 10 }
  :: d_step { rec[m]==2 && !entry && owner==m+1 && (RUNS(0) || RUNS(1)) -> entry = 1 }                                  /* a first exception */
  /* refused: take the formatting back, if the device still holds it */
#ifdef MUT_UNDO_AFTER_RELEASE
  :: d_step { RUNS(m) && step[m]==7 && c[m] -> c[m] = 0 }
#endif
  :: d_step { st[m]==UP && step[m]==7 && owner==m+1 -> step[m] = 8 }
  :: d_step { st[m]==UP && step[m]==7 && owner!=m+1 -> step[m] = 9 }
  :: d_step { st[m]==UP && step[m]==8 && fw[m]==0 -> fw[m] = 3; step[m] = 9 }
  :: d_step { RUNS(m) && step[m]==9 && fw[m]==0 -> c[m] = 0; step[m] = 10 }
  /* the table: given back when the other's grant waits, whatever a formatting thread does */
  :: d_step { RUNS(m) && tab[m] && WAITING(1-m) -> tab[m] = 0 }
  :: d_step { RUNS(m) && !tab[m] && !WAITING(1-m) -> tab[m] = 1 }
  /* faults */
  :: d_step { nfault < FAULTS && st[m]!=DEAD -> nfault++; st[m] = DEAD; step[m] = 10 }
  :: d_step { nfault < FAULTS && st[m]==UP -> nfault++; st[m] = PAUSED }
  :: d_step { st[m]==PAUSED -> st[m] = UP }
  :: d_step { alive[m] && (st[m]!=UP || nexp < EXPIRE) -> if :: st[m]==UP -> nexp++ :: else fi; alive[m] = 0;
#ifdef MUT_CREATION_ON_LEASE
       c[m] = 0
#endif
     }
  :: d_step { st[m]==UP && !alive[m] && ms[m]==0 -> alive[m] = 1 }
  :: d_step { st[m]==UP && !alive[m] && ms[m]!=0 -> st[m] = DEAD; step[m] = 10 }
  /* recovery by the other: fenced first; then its creation is undone, its holds and its reservation go */
  :: d_step { RUNS(1-m) && !alive[m] && ms[m]==0 -> ms[m] = 1;
#ifdef MUT_CREATION_CLEARED_BEFORE_FENCE
       c[m] = 0
#endif
     }
  :: d_step { RUNS(1-m) && !alive[m] && ms[m]==1 -> ms[m] = 2;
#ifndef MUT_NO_FENCE
       fw[m] = 0; if :: st[m]!=DEAD -> st[m] = DEAD; step[m] = 10 :: else fi
#endif
     }
  :: d_step { RUNS(1-m) && !alive[m] && ms[m]==2 && (c[m] || tab[m] || rec[m]==1) -> c[m] = 0; tab[m] = 0; if :: rec[m]==1 -> rec[m] = 0 :: else fi }
  od }

#if PROBE==1      /* refused, taken back, and the device used by the other's snapshot */
#define PCOND (step[0]==10 && tried[0] && st[0]==UP && rec[1]==2 && entry && rec[0]==0)
#elif PROBE==2    /* the lease was lost while formatting, revived, and the creation went on */
#define PCOND (nexp==1 && rec[0]==2 && tried[1])
#elif PROBE==3    /* after a half-done creation's owner was fenced the device is used by the other */
#define PCOND (nfault==1 && ms[0]==2 && rec[1]==2 && entry && owner==2)
#endif
#ifdef PROBE
proctype probe() { end: do :: d_step { PCOND -> assert(0) } od }
#endif
init { atomic { st[0] = UP; st[1] = UP; alive[0] = 1; alive[1] = 1; tab[0] = 1; tab[1] = 1; run host(0); run host(1);
#ifdef PROBE
  run probe();
#endif
  } }

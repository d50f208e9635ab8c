/* Taking a snapshot through the table's lock: three members, member 0 coordinates, member 2 may come later.
 *
 * Said here: the transaction that grants the table puts s/<name> and swaps the ticket for CR, so nobody ever holds EX; the
 * coordinator withdraws its ticket when its time is up, and whoever it froze too long deletes it; tickets die with the
 * lease; a member that cannot open the COW device admits nothing, so that all members have opened it before (o/) is
 * a courtesy, not what the snapshot rests on.
 * Safety: no origin write lands without a copy once the snapshot exists. Thaw: when nothing more can happen, every live
 * member is admitted again (but for one without the device). */
#ifndef FENCE
#define FENCE 0      /* 0: a dead member is never fenced, its holds stay */
#endif
#ifndef HANG
#define HANG 0       /* 1: the coordinator may hang with its ticket queued, and its lease renewed */
#endif
#ifndef NODEVICE
#define NODEVICE 0   /* 1: member 2 cannot open the COW device */
#endif
#ifndef LATE
#define LATE 0       /* 1: member 2 joins at some moment */
#endif
#ifndef WAIT
#define WAIT 1       /* the grant waits until every member has opened the device */
#endif
#define NM 3
#define NL 0
#define CR 1
#define EX 2
#define DEAD 0
#define UP 1
#define PAUSED 2
/* ---- etcd */
byte hold[NM]; byte q[NM]; bit alive[NM]; byte ms[NM]; bit member[NM];      /* q: mode of a ticket; ms: 0 active, 1 fencing, 2 fenced, 3 cleaned up */
bit snap; bit opened[NM];                                                   /* s/<name> active; o/<store>/<node> */
/* ---- members */
byte st[NM]; byte lk[NM]; bit knows[NM]; bit wrote[NM];
bit infl[NM]; bit nocopy[NM];            /* an origin write in flight; it was not preceded by a copy */
bit tried; bit queued; bit hung; byte nfault; byte i_; bool b_;
#define RUNS(m) (st[m]==UP && alive[m])
#define EX_WAITS(m) (m!=0 && q[0]==EX)
#define HOLD_BESIDE(m) ((m!=0 && hold[0]!=NL) || (m!=1 && hold[1]!=NL) || (m!=2 && hold[2]!=NL))
#define EX_BESIDE(m) ((m!=0 && hold[0]==EX) || (m!=1 && hold[1]==EX) || (m!=2 && hold[2]==EX))
#define ALL_OPENED ((!member[0] || opened[0]) && (!member[1] || opened[1]) && (!member[2] || opened[2]))
#define CAN(m) (!(NODEVICE && m==2))
#define WORKS(m) (m!=0 || !hung)
#ifdef MUT_ADMIT_WITHOUT_DEVICE
#define ADMITS(m) (lk[m]==CR)
#define COPIES(m) (knows[m] && CAN(m))
#else
#define ADMITS(m) (lk[m]==CR && (!knows[m] || CAN(m)))
#define COPIES(m) (knows[m])
#endif
proctype mem(byte m) {
end: do
 :: d_step { LATE && m==2 && !member[m] -> member[m] = 1; alive[m] = 1; st[m] = UP }
 /* origin writes */
 :: d_step { RUNS(m) && ADMITS(m) && !infl[m] && !wrote[m] && !EX_WAITS(m) -> infl[m] = 1; nocopy[m] = !COPIES(m); wrote[m] = 1 }
 :: d_step { infl[m] -> assert(!snap || !nocopy[m]); infl[m] = 0; nocopy[m] = 0 }
 /* asked back: drain, give back, queue */
#ifdef MUT_NO_DRAIN
 :: d_step { RUNS(m) && WORKS(m) && lk[m]==CR && EX_WAITS(m) -> hold[m] = NL; lk[m] = NL; q[m] = CR }
#else
 :: d_step { RUNS(m) && WORKS(m) && lk[m]==CR && EX_WAITS(m) && !infl[m] -> hold[m] = NL; lk[m] = NL; q[m] = CR }
#endif
 :: d_step { RUNS(m) && WORKS(m) && q[m]==CR && !EX_BESIDE(m) && !EX_WAITS(m) -> hold[m] = CR; lk[m] = CR; q[m] = NL;
#ifndef MUT_NO_TABLE_REREAD
      knows[m] = snap
#endif
    }
 :: d_step { RUNS(m) && WORKS(m) && member[m] && lk[m]==NL && q[m]==NL -> q[m] = CR }
 :: d_step { RUNS(m) && WORKS(m) && tried && !snap && !opened[m] && CAN(m) -> opened[m] = 1 }
#ifndef MUT_NO_FORCE
 :: d_step { RUNS(m) && m!=0 && q[m]==CR && EX_WAITS(m) -> q[0] = NL }                              /* frozen too long */
#endif
 /* the coordinator */
 :: d_step { m==0 && RUNS(m) && lk[m]==CR && !tried && !infl[m] -> tried = 1 }
 :: d_step { m==0 && RUNS(m) && !hung && lk[m]==CR && tried && !snap && !infl[m] && !queued && q[m]==NL && (ALL_OPENED || !WAIT) -> queued = 1; hold[m] = NL; lk[m] = NL; q[m] = EX }
#ifdef MUT_TWO_STEP_CREATE      /* hold EX, then put s/<name>, then come down */
 :: d_step { m==0 && RUNS(m) && !hung && q[m]==EX && !HOLD_BESIDE(m) -> hold[m] = EX; lk[m] = EX; q[m] = NL }
 :: d_step { m==0 && RUNS(m) && !hung && lk[m]==EX && !snap -> snap = 1; knows[m] = 1 }
 :: d_step { m==0 && RUNS(m) && !hung && lk[m]==EX && snap -> hold[m] = CR; lk[m] = CR }
#elif defined(MUT_GRANT_FROM_MEMORY)    /* the grant is decided from what was seen, not by conditions in the transaction */
 :: d_step { m==0 && RUNS(m) && !hung && q[m]==EX && !HOLD_BESIDE(m) -> b_ = 1 }
 :: d_step { m==0 && RUNS(m) && !hung && b_ -> b_ = 0; q[m] = NL; snap = 1; knows[m] = 1; hold[m] = CR; lk[m] = CR }
#else
 :: d_step { m==0 && RUNS(m) && !hung && q[m]==EX && !HOLD_BESIDE(m) && (ALL_OPENED || !WAIT) -> q[m] = NL; snap = 1; knows[m] = 1; hold[m] = CR; lk[m] = CR }
#endif
#ifndef MUT_NO_WITHDRAW
 :: d_step { m==0 && RUNS(m) && !hung && q[m]==EX -> q[m] = CR }                                    /* its time is up */
#endif
 :: d_step { HANG && m==0 && q[m]==EX && !hung -> hung = 1 }
 /* faults: one crash or one stop */
 :: d_step { nfault==0 && st[m]==UP -> nfault++; st[m] = DEAD; lk[m] = NL }
 :: d_step { nfault==0 && st[m]==UP -> nfault++; st[m] = PAUSED }
 :: d_step { st[m]==PAUSED -> st[m] = UP }
 :: d_step { member[m] && st[m]!=UP && alive[m] -> alive[m] = 0; q[m] = NL; opened[m] = 0;
#ifdef MUT_LEASE_HOLDS
       hold[m] = NL
#endif
     }
 :: d_step { st[m]==UP && !alive[m] && member[m] && ms[m]==0 -> alive[m] = 1 }
 :: d_step { st[m]==UP && !alive[m] && member[m] && ms[m]!=0 -> st[m] = DEAD; lk[m] = NL }
#if FENCE
 :: d_step { member[m] && !alive[m] && ms[m]==0 -> ms[m] = 1 }
 :: d_step { ms[m]==1 -> ms[m] = 2; infl[m] = 0; nocopy[m] = 0 }
 :: d_step { ms[m]==2 -> ms[m] = 3; hold[m] = NL }
#endif
 od }
proctype stuck() { end: do :: d_step { timeout -> i_ = 0; do :: i_ < NM -> assert(!RUNS(i_) || !WORKS(i_) || !member[i_] || lk[i_]==CR); i_++ :: else -> break od; i_ = 0 }; break od }
#if PROBE==1      /* taken, while a dead member was fenced */
#define PCOND (snap && st[2]==DEAD && ms[2]==3 && knows[0] && knows[1] && lk[1]==CR)
#elif PROBE==2    /* thawed by force, and everybody writes on */
#define PCOND (hung && !snap && q[0]==NL && wrote[1] && wrote[2] && lk[1]==CR && lk[2]==CR)
#elif PROBE==3    /* taken without waiting, member 2 has come and has no device */
#define PCOND (snap && member[2] && lk[2]==CR && knows[2] && !CAN(2))
#endif
#ifdef PROBE
proctype probe() { end: do :: d_step { PCOND -> assert(0) } od }
#endif
init { atomic { i_ = 0; do :: i_ < NM -> if :: LATE && i_==2 -> skip :: else -> hold[i_] = CR; lk[i_] = CR; alive[i_] = 1; st[i_] = UP; member[i_] = 1 fi; i_++ :: else -> break od; i_ = 0;
  run mem(0); run mem(1); run mem(2);
#ifdef PROBE
  run probe();
#else
  run stuck();
#endif
  } }

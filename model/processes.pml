/* One host as two processes, control and worker, beside a rival that wants the same region: messages that cross, answers
 * of etcd that are lost, either process killed or stopped alone, the lease lost and revived, a restart.
 *
 * Said here: the worker never uses more than etcd holds for it, whatever crosses; nothing is written, and no read is
 * answered, after another has the region; a new incarnation touches the old one's holds only when the lock file
 * proves that both old processes, and what they had in flight, are gone.
 *
 * The channel is ordered and loses nothing. etcd's transactions are one step; ALIVE stands in each. The deadline always
 * passes before the lease can end (the timeline in lockspace/session.py); real time is not here. */
#ifndef KILLS
#define KILLS 1      /* processes killed */
#endif
#ifndef STOPS
#define STOPS 1      /* processes stopped, to go on later */
#endif
#ifndef OUTAGES
#define OUTAGES 1    /* leases that end although control runs */
#endif
#ifndef DOUBTS
#define DOUBTS 1     /* transactions whose answer is lost */
#endif
#ifndef RESTARTS
#define RESTARTS 1
#endif
#ifndef WANTS
#define WANTS 3      /* uses that the worker's clients ask for */
#endif
#ifndef RIVALS
#define RIVALS 2     /* times that the rival queues */
#endif
#ifndef FENCE
#define FENCE 1      /* 0: fencing is never done, the rival waits */
#endif
#define NL 0
#define CR 1
#define EX 2
#define NONE 3       /* no mode asked for, or nothing given back */
#define DEAD 0
#define UP 1
#define STOPPED 2
mtype = { GRANT, REVOKE, WANT, DONE };
chan down = [4] of { mtype, byte };     /* control -> worker */
chan back = [4] of { mtype, byte };     /* worker -> control */
/* ---- etcd */
byte ha, hb, ta, tb;                    /* holds and tickets of host and rival, as modes */
bit alive; byte ms;                     /* the host's lease; 0 active, 1 fencing, 2 fenced, 3 no record: cleaned up */
/* ---- control */
byte c; byte hold, given, want, ticket, done, asked; bit renewing;
bit deadline;                           /* the shared page: 1 lies ahead */
/* ---- worker */
byte w; byte held, revoked, wanted; bit upgrading;
bit about; bit writing; bit reading; bit stale;    /* stale: the rival has written since that read began */
bit owriting;                           /* an older incarnation's, where nothing proved that it is gone */
byte late; byte v_; bit fenced_;                    /* fenced_: the storage takes no write of this host */
byte nkill, nstop, nout, ndoubt, nrestart, nwant, nrival;
#define CONF(mode) ((mode==EX && (hb!=NL || ha!=NL)) || (mode==CR && (hb==EX || ha==EX)))
#define USABLE (c==UP && alive && deadline)
#define ASKS (tb==EX -> NL : (tb==CR && given==EX -> CR : NONE))
#ifdef MUT_NO_DEADLINE
#define MAY 1
#else
#define MAY deadline
#endif
#ifdef MUT_NO_DEADLINE_AFTER_READ
#define MAY_ANSWER 1
#else
#define MAY_ANSWER MAY
#endif
#ifdef MUT_DONE_WITHOUT_DRAIN
#define USED 0
#else
#define USED (writing || reading || about)
#endif

inline give() { given = hold; want = NL; asked = NONE; down!GRANT(hold) }
inline resync() { /* the epoch was bumped: what etcd shows of this host is definitive */
  hold = ha; ticket = ta;
#ifdef MUT_NO_RESYNC
  hold = given
#endif
  if :: done!=NONE && hold <= done -> done = NONE :: else fi }
inline drained() {
  if :: revoked!=NONE -> if :: upgrading -> upgrading = 0; wanted = NL :: else fi;
        held = revoked; back!DONE(revoked); revoked = NONE
     :: revoked==NONE && upgrading -> upgrading = 0; held = NL; back!WANT(EX)
     :: else fi }
inline wreset() { held = NL; revoked = NONE; wanted = NL; upgrading = 0; reading = 0; stale = 0; about = 0 }
inline creset() { hold = NL; given = NL; want = NL; ticket = NL; done = NONE; asked = NONE; renewing = 1; deadline = 0 }

proctype control() {
end: do
  /* what the worker says */
  :: d_step { c==UP && back?[WANT,_] -> back?WANT(want); given = NL; asked = NONE }
  :: d_step { c==UP && back?[DONE,_] -> back?DONE(done); given = done; asked = NONE }
  /* the one next step (lockspace/locks.py), in its order. Each may be applied and its answer lost */
  :: d_step { USABLE && done!=NONE && hold <= done -> done = NONE }
  :: d_step { USABLE && done!=NONE && hold > done -> ha = done;
       if :: ndoubt < DOUBTS -> ndoubt++; resync() :: hold = done; done = NONE fi }
  :: d_step { USABLE && done==NONE && hold > given && hold==CR && want==EX ->
       if :: hb==NL && tb==NL -> ha = EX; if :: ndoubt < DOUBTS -> ndoubt++; resync() :: hold = EX; give() fi
          :: else -> ha = NL; ta = EX; if :: ndoubt < DOUBTS -> ndoubt++; resync() :: hold = NL; ticket = EX fi fi }
  :: d_step { USABLE && done==NONE && hold > given && !(hold==CR && want==EX) && want!=NL -> give() }          /* confirmed: read what a grant reads */
  :: d_step { USABLE && done==NONE && hold > given && want==NL -> ha = given; hold = given }                   /* nobody uses it */
  :: d_step { USABLE && done==NONE && hold <= given && ticket!=NL && ticket!=want -> ta = NL; ticket = NL }
  :: d_step { USABLE && done==NONE && hold <= given && ticket!=NL && ticket==want && ta==ticket && !CONF(want) -> ta = NL; ha = want;
       if :: ndoubt < DOUBTS -> ndoubt++; resync() :: ticket = NL; hold = want; give() fi }
  :: d_step { USABLE && done==NONE && hold <= given && ticket!=NL && ta==NL -> ticket = NL }                   /* gone with the lease */
  :: d_step { USABLE && done==NONE && hold <= given && ticket==NL && want!=NL ->
       if :: !CONF(want) && tb==NL -> ha = want; if :: ndoubt < DOUBTS -> ndoubt++; resync() :: hold = want; give() fi
          :: else -> ta = want; if :: ndoubt < DOUBTS -> ndoubt++; resync() :: ticket = want fi fi }
  :: d_step { USABLE && done==NONE && hold <= given && ticket==NL && want!=NL && ndoubt < DOUBTS -> ndoubt++; late = want;   /* not applied: still under way */
#ifndef MUT_NO_EPOCH
       late = NL
#endif
     }
  :: d_step { late!=NL && alive -> if :: !CONF(late) -> ha = late :: else fi; late = NL }
  /* somebody waits: ask the worker for it */
  :: d_step { USABLE && done==NONE && given!=NL && ASKS!=NONE && (asked==NONE || asked > ASKS) -> asked = ASKS; down!REVOKE(asked) }
  :: d_step { USABLE && given!=NL && asked!=NONE && w==STOPPED -> renewing = 0 }                                /* a TTL without an answer: never revive */
  /* the lease; the deadline is known in the page before the lease can end */
  :: d_step { c==UP && alive && renewing && !deadline && ms==0 -> deadline = 1 }
  :: d_step { deadline && (c!=UP || !renewing || nout < OUTAGES) -> if :: c==UP && renewing -> nout++ :: else fi; deadline = 0 }
  :: d_step { alive && !deadline -> alive = 0; ta = NL;
#ifdef MUT_LEASE_HOLDS
       ha = NL
#endif
     }
  :: d_step { c==UP && !alive && renewing && ms==0 -> alive = 1; resync() }                                     /* revive */
  :: d_step { c==UP && !alive && (ms!=0 || !renewing) -> c = DEAD; deadline = 0 }                               /* fenced: the end of both */
  :: d_step { c==UP && w==DEAD -> c = DEAD }                                                                    /* its pidfd tells */
  od }

proctype worker() {
end: do
  :: d_step { w==UP && down?[GRANT,_] -> down?GRANT(held); wanted = NL; assert(held <= ha || ms!=0) }
  :: d_step { w==UP && down?[REVOKE,_] -> down?REVOKE(v_);
#ifdef MUT_STALE_REVOKE_ANSWERED       /* a revoke that crossed what was given back is answered again */
       if :: revoked==NONE || revoked > v_ -> revoked = v_ :: else fi;
#else
       if :: held > v_ && (revoked==NONE || revoked > v_) -> revoked = v_ :: else fi;
#endif
       v_ = 0 }
  /* a client's request waits for a mode (regions.py, wait) */
  :: d_step { w==UP && nwant < WANTS && revoked==NONE && wanted==NL && held < CR -> nwant++; wanted = CR; back!WANT(CR) }
  :: d_step { w==UP && nwant < WANTS && revoked==NONE && wanted==NL && held < EX -> nwant++; wanted = EX;
       if :: held==CR -> upgrading = 1 :: else -> back!WANT(EX) fi }
  :: d_step { w==UP && !USED && (revoked!=NONE || upgrading) -> drained() }
  /* uses. A process may be stopped between its look at the deadline and the write: then only the fence helps */
  :: d_step { w==UP && MAY && held==EX && revoked==NONE && !upgrading && !writing && !about -> about = 1 }
  :: d_step { w==UP && about -> about = 0; writing = !fenced_ }
  :: d_step { w==UP && MAY && held >= CR && revoked==NONE && !upgrading && !reading -> reading = 1; stale = (hb==EX) }
  :: d_step { writing -> assert(hb==NL); writing = 0 }
  :: d_step { owriting -> assert(hb==NL); owriting = 0 }
  :: d_step { w==UP && reading -> if :: MAY_ANSWER -> assert(!stale) :: else fi;            /* late: thrown away, read again */
       reading = 0; stale = 0 }
  :: d_step { w==DEAD && writing -> writing = 0 }
  /* the channel has closed, or the kernel kills it with its parent */
  :: d_step { w!=DEAD && c==DEAD -> w = DEAD; wreset() }
  od }

/* the other host, always well; and recovery, which fences first */
proctype rival() {
end: do
  :: d_step { tb==NL && hb==NL && nrival < RIVALS -> nrival++; tb = EX }
  :: d_step { tb==NL && hb==NL && nrival < RIVALS -> nrival++; tb = CR }
  :: d_step { tb!=NL && ((tb==EX && ha==NL) || (tb==CR && ha!=EX)) -> hb = tb; tb = NL }
  :: d_step { hb==EX && reading && !stale -> stale = 1 }
  :: d_step { hb!=NL -> hb = NL }
  :: d_step { !alive && ms==0 && tb!=NL -> ms = 1 }
#if FENCE
  :: d_step { ms==1 -> ms = 2;
#ifndef MUT_NO_FENCE
       writing = 0; owriting = 0; fenced_ = 1
#endif
     }
#endif
  :: d_step { ms==2 -> ms = 3; ha = NL }
#ifdef MUT_HOLDS_BEFORE_FENCE
  :: d_step { ms==1 -> ha = NL }
#endif
  od }

proctype host() { /* faults, and a new incarnation */
end: do
  :: d_step { nkill < KILLS && c!=DEAD -> nkill++; c = DEAD }
  :: d_step { nkill < KILLS && w!=DEAD -> nkill++; w = DEAD; wreset() }
  :: d_step { nstop < STOPS && c==UP -> nstop++; c = STOPPED }
  :: d_step { nstop < STOPS && w==UP -> nstop++; w = STOPPED }
  :: d_step { c==STOPPED -> c = UP }
  :: d_step { w==STOPPED -> w = UP }
  /* the lock file is free when the last process that had it has ended, and a process ends after its I/O has */
#ifdef MUT_NO_LOCK_FILE
  :: d_step { nrestart < RESTARTS && c==DEAD && (ms==0 || ms==3) -> owriting = writing; writing = 0;
#elif defined(MUT_LOCK_OF_CONTROL_ONLY)
  :: d_step { nrestart < RESTARTS && c==DEAD && w==DEAD && (ms==0 || ms==3) -> owriting = writing; writing = 0;
#else
  :: d_step { nrestart < RESTARTS && c==DEAD && w==DEAD && !writing && (ms==0 || ms==3) ->
#endif
       nrestart++;
       do :: down?[GRANT,_] -> down?GRANT(v_) :: down?[REVOKE,_] -> down?REVOKE(v_) :: else -> break od;
       do :: back?[WANT,_] -> back?WANT(v_) :: back?[DONE,_] -> back?DONE(v_) :: else -> break od; v_ = 0;
       ha = NL; ta = NL; alive = 1; ms = 0; fenced_ = 0; creset(); wreset(); c = UP; w = UP }
  od }

/* When nothing more can happen and both processes run, no client of the worker waits. */
proctype stuck() { end: do :: d_step { timeout -> assert(!(c==UP && w==UP && renewing && ms==0) || (wanted==NL && !upgrading)); assert(tb==NL || (FENCE==0 && ms!=0)) }; break od }

#if PROBE==1      /* the messages crossed: a revoke came when the CR was already given up for EX */
#define PCOND (down?[REVOKE,_] && held==NL && wanted==EX && back?[WANT,_])
#elif PROBE==2    /* revived with a hold kept, and the worker writes on */
#define PCOND (nout==1 && alive && held==EX && writing && given==EX && nkill==0)
#elif PROBE==3    /* a stopped worker wakes up fenced, with a read in flight that has become wrong */
#define PCOND (nstop==1 && w==UP && reading && stale)
#elif PROBE==4    /* restarted by the proof of the lock file, nobody having fenced */
#define PCOND (nrestart==1 && ms==0 && held==EX && writing && nrival==2)
#elif PROBE==5    /* control is dead, the worker still writes before its deadline */
#define PCOND (c==DEAD && w==UP && writing && deadline)
#endif
#ifdef PROBE
proctype probe() { end: do :: d_step { PCOND -> assert(0) } od }
#endif
init { atomic { alive = 1; creset(); wreset(); deadline = 1; c = UP; w = UP; run control(); run worker(); run rival(); run host();
#ifdef PROBE
    run probe();
#else
    run stuck();
#endif
  } }

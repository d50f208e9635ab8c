/* Invalidating and deleting, with the table's EX held: two snapshots of one chunk, OLD reads through NEW.
 *
 * Said here: nobody skips a copy before valid=0 is durable and the record says so; a snapshot in `deleting` works until
 * it is gone; a crash after any step is made good by whoever meets what is left; whatever writes to a COW device is a use
 * of the table; nothing lands on a device after its record is gone (it may be somebody else's by then).
 *
 * A copy-out and its commit are one step here (core.pml takes them apart), the region's lock is a mutex that outlives its
 * holder until recovery. Header writes may fail: then the record counts. */
#ifndef M
#define M 2          /* members */
#endif
#ifndef FAULTS
#define FAULTS 1     /* crashes or stops, together */
#endif
#ifndef REJOIN
#define REJOIN 1     /* restarts of a member that was recovered */
#endif
#ifndef DELETES
#define DELETES 1    /* asked for by an operator */
#endif
#ifndef LOSSES
#define LOSSES 1     /* copies that fail: the snapshot is lost */
#endif
#ifndef ZEROES
#define ZEROES 1     /* take-overs of a tail: writes that no client's request waits for */
#endif
#ifndef BAD
#define BAD 1        /* header writes that fail */
#endif
#define OLD 0
#define NEW 1
#define GONE 0       /* states of a record; a device of a record that is gone may be anybody's */
#define LIVE 1
#define DELETING 2
#define INVALID 3
#define NL 0
#define CR 1
#define EX 2
#define UP 1
#define PAUSED 2
#define DEAD 0
#define ACTIVE 0     /* steps of a member's recovery */
#define FENCING 1
#define FENCED 2
#define S(m,s) ((m)*2+(s))
#define WORKS(s) (rec[s]==LIVE || rec[s]==DELETING)
#define RUNS(m) (st[m]==UP && alive[m])
#define DELETE(s) (1+(s))
#define INVALIDATE(s) (3+(s))
#define DELETES_IT(m) (work[m]==1 || work[m]==2)
#define SUBJECT(m) ((work[m]-1)%2)

/* ---- devices */
bit org;                                /* the origin's chunk: 0 as when both snapshots were taken, 1 changed */
bit own[2]; bit valid[2]; bit bad[2];   /* the exception is durable; the header; a header that could not be written */
byte cw[M]; bit ow[M]; byte zw[M]; byte hw[M];   /* in flight: copy, origin, zeroes, header; 1 + store. They outlive the sender */
/* ---- etcd */
byte rec[2]; byte by[2];                /* s/<name>; 1 + the member that deletes it */
byte hold[M]; bit q[M];                 /* the table: hold, ticket for EX */
bit alive[M]; byte ms[M]; byte reg;     /* reg: 1 + who holds the region, EX */
/* ---- members */
byte st[M]; byte lk[M]; bit sees[M*2];  /* the table as it was granted */
bit lost[M*2]; bit fresh[M]; bit shut[M];   /* fresh: no device open yet; shut: a store would not load, nothing is admitted */
byte ph[M]; byte work[M]; byte todo[M]; /* ph: 1 routed, 2 copying, 3 writing. todo: headers to write, a bit each */
byte nfault, nrejoin, ndelete, nlost, nzero, nbad, nwrite;
byte i_; bool b_, e_;

inline resolve(s) { /* b_: a reader of s gets what s was taken of */
  if :: own[s] -> b_ = 1
     :: else -> if :: s==OLD && WORKS(NEW) && own[NEW] -> b_ = 1 :: else -> b_ = !org fi fi }
inline check() {
  i_ = 0; do :: i_ < 2 ->
     if :: WORKS(i_) || (valid[i_] && !bad[i_] && rec[i_] != GONE) -> resolve(i_); assert(b_)
        :: else fi; i_++ :: else -> break od;
  assert(rec[OLD] != GONE || !valid[OLD] || bad[OLD]); assert(rec[NEW] != GONE || !valid[NEW] || bad[NEW]);
  i_ = 0; b_ = 0 }
#define OTHERS_HOLD(m) (e_)
inline others(m) { e_ = 0; i_ = 0; do :: i_ < M -> if :: i_ != m && hold[i_] != NL -> e_ = 1 :: else fi; i_++ :: else -> break od; i_ = 0 }
#if M==2
#define TICKET (q[0] || q[1])
#define HOLD_BESIDE(m) (hold[1-(m)] != NL)
#define EX_BESIDE(m) (hold[1-(m)] == EX)
#define HELPER(d) RUNS(1-(d))
#else
#define TICKET (q[0] || q[1] || q[2])
#define HOLD_BESIDE(m) (hold[((m)+1)%3] != NL || hold[((m)+2)%3] != NL)
#define EX_BESIDE(m) (hold[((m)+1)%3] == EX || hold[((m)+2)%3] == EX)
#define HELPER(d) (RUNS(((d)+1)%3) || RUNS(((d)+2)%3))
#endif
#define NEWEST(m) (sees[S(m,NEW)] -> NEW : (sees[S(m,OLD)] -> OLD : 2))
#define BLOCKED(m) (shut[m] || (sees[S(m,NEW)] && lost[S(m,NEW)]) || (!sees[S(m,NEW)] && sees[S(m,OLD)] && lost[S(m,OLD)]))
#ifdef MUT_ZEROES_BESIDE_TABLE      /* zeroing is nobody's request: it is not waited for, and may begin later */
#define DRAINED(m) (ph[m]==0)
#define MAY_ZERO(m) (RUNS(m))
#elif defined(MUT_NO_DRAIN)
#define DRAINED(m) 1
#define MAY_ZERO(m) (RUNS(m) && lk[m]==CR)
#else
#define DRAINED(m) (ph[m]==0 && zw[m]==0)
#define MAY_ZERO(m) (RUNS(m) && lk[m]==CR)
#endif
#ifdef MUT_AFFECTED_SKIPS_DELETING  /* what is being deleted is left out when a newer one is lost */
#define AFFECTED(s) (rec[s]==LIVE)
#else
#define AFFECTED(s) WORKS(s)
#endif
#ifdef MUT_OLDER_SKIPS_DELETING     /* `deleting` taken for gone: the newer one may be deleted before it */
#define OLDER_WORKS (rec[OLD]==LIVE)
#elif defined(MUT_ANY_MAY_BE_DELETED)
#define OLDER_WORKS 0
#else
#define OLDER_WORKS WORKS(OLD)
#endif

inline forget(m) { lk[m] = NL; ph[m] = 0; work[m] = 0; todo[m] = 0; lost[S(m,0)] = 0; lost[S(m,1)] = 0; sees[S(m,0)] = 0; sees[S(m,1)] = 0; shut[m] = 0 }
inline dropwrites(m) { cw[m] = 0; ow[m] = 0; zw[m] = 0; hw[m] = 0 }
inline load(m) { /* the table as the granting transaction read it */
  shut[m] = 0;
  i_ = 0; do :: i_ < 2 ->
     sees[S(m,i_)] = WORKS(i_);
     if :: !sees[S(m,i_)] -> lost[S(m,i_)] = 0
        :: sees[S(m,i_)] && fresh[m] && !valid[i_] -> lost[S(m,i_)] = 1; shut[m] = 1   /* who meets such a header begins again */
        :: else fi; i_++ :: else -> break od;
  fresh[m] = shut[m]; i_ = 0 }
inline apply(m) { /* what the transaction puts that comes down from EX (or, for an invalid one, is granted) */
  if :: DELETES_IT(m) -> rec[SUBJECT(m)] = GONE; by[SUBJECT(m)] = 0
     :: else -> i_ = 0; do :: i_ <= SUBJECT(m) -> if :: AFFECTED(i_) -> rec[i_] = INVALID; by[i_] = 0 :: else fi; i_++ :: else -> break od; i_ = 0 fi }

proctype mem(byte m) {
end: do
  /* one origin write, routed again after each step */
  :: d_step { RUNS(m) && lk[m]==CR && !TICKET && ph[m]==0 && reg==0 && !BLOCKED(m) && nwrite < 2 -> nwrite++; reg = m+1; ph[m] = 1 }
  :: d_step { RUNS(m) && ph[m]==1 && (NEWEST(m)==2 || own[NEWEST(m)%2]) -> ph[m] = 3; ow[m] = 1 }
  :: d_step { RUNS(m) && ph[m]==1 && NEWEST(m)!=2 && !own[NEWEST(m)%2] -> ph[m] = 2; cw[m] = NEWEST(m)+1 }
  :: d_step { RUNS(m) && ph[m]==1 && NEWEST(m)!=2 && !own[NEWEST(m)%2] && nlost < LOSSES -> nlost++; lost[S(m,NEWEST(m)%2)] = 1;
#ifdef MUT_SKIP_WHEN_LOST
       ph[m] = 3; ow[m] = 1
#else
       ph[m] = 0; reg = 0; nwrite--     /* it waits until the table says otherwise */
#endif
     }
  :: d_step { cw[m]!=0 -> assert(rec[cw[m]-1] != GONE); own[cw[m]-1] = 1; cw[m] = 0; if :: ph[m]==2 -> ph[m] = 1 :: else fi; check() }
  :: d_step { ow[m] -> org = 1; ow[m] = 0; if :: ph[m]==3 -> ph[m] = 0; reg = 0 :: else fi; check() }
  /* a stale tail is zeroed, because a counter was marked */
  :: d_step { MAY_ZERO(m) && zw[m]==0 && NEWEST(m)!=2 && nzero < ZEROES -> nzero++; zw[m] = NEWEST(m)+1 }
  :: d_step { zw[m]!=0 -> assert(rec[zw[m]-1] != GONE); zw[m] = 0 }

  /* the table: asked back, granted again */
  :: d_step { RUNS(m) && lk[m]==CR && TICKET && DRAINED(m) -> lk[m] = NL; hold[m] = NL }
  :: d_step { RUNS(m) && lk[m]==NL && !q[m] && !TICKET && !EX_BESIDE(m) -> lk[m] = CR; hold[m] = CR; load(m); check() }

  /* work for the table's EX */
  :: d_step { RUNS(m) && lk[m]==CR && work[m]==0 && ndelete < DELETES && (rec[OLD]==LIVE || rec[OLD]==INVALID) -> ndelete++; work[m] = DELETE(OLD); q[m] = 1 }
  :: d_step { RUNS(m) && lk[m]==CR && work[m]==0 && ndelete < DELETES && (rec[NEW]==LIVE || rec[NEW]==INVALID) && !OLDER_WORKS -> ndelete++; work[m] = DELETE(NEW); q[m] = 1 }
#ifndef MUT_NOBODY_DELETES_ANEW
  :: d_step { RUNS(m) && lk[m]==CR && work[m]==0 && rec[OLD]==DELETING && by[OLD]==0 -> work[m] = DELETE(OLD); q[m] = 1 }
  :: d_step { RUNS(m) && lk[m]==CR && work[m]==0 && rec[NEW]==DELETING && by[NEW]==0 -> work[m] = DELETE(NEW); q[m] = 1 }
#endif
  :: d_step { RUNS(m) && lk[m]==CR && work[m]==0 && lost[S(m,OLD)] && WORKS(OLD) -> work[m] = INVALIDATE(OLD); q[m] = 1 }
  :: d_step { RUNS(m) && lk[m]==CR && work[m]==0 && lost[S(m,NEW)] && WORKS(NEW) -> work[m] = INVALIDATE(NEW); q[m] = 1 }
  :: d_step { RUNS(m) && q[m] && DELETES_IT(m) && rec[SUBJECT(m)]!=DELETING && nfault==FAULTS && ndelete==DELETES -> q[m] = 0; work[m] = 0 }   /* its time is up */
  /* the granting transaction; a delete says so in the record */
  :: d_step { RUNS(m) && q[m] && lk[m]==NL && !HOLD_BESIDE(m) -> q[m] = 0; todo[m] = 0;
       if :: (DELETES_IT(m) && rec[SUBJECT(m)]==GONE) || (!DELETES_IT(m) && !WORKS(SUBJECT(m))) -> lk[m] = CR; hold[m] = CR; work[m] = 0; load(m)
          :: DELETES_IT(m) && rec[SUBJECT(m)]==INVALID -> apply(m); lk[m] = CR; hold[m] = CR; work[m] = 0; load(m)
          :: else -> lk[m] = EX; hold[m] = EX;
             if :: DELETES_IT(m) -> todo[m] = 1 << SUBJECT(m);
#ifdef MUT_GONE_BEFORE_HEADER       /* the record goes in the granting transaction, the header is written afterwards */
                   rec[SUBJECT(m)] = GONE
#else
                   rec[SUBJECT(m)] = DELETING; by[SUBJECT(m)] = m+1
#endif
                :: else -> i_ = 0; do :: i_ <= SUBJECT(m) -> if :: AFFECTED(i_) -> todo[m] = todo[m] | (1 << i_) :: else fi; i_++ :: else -> break od; i_ = 0;
#ifdef MUT_RECORD_BEFORE_HEADER
                   i_ = 0; do :: i_ <= SUBJECT(m) -> if :: AFFECTED(i_) -> rec[i_] = INVALID :: else fi; i_++ :: else -> break od; i_ = 0
#endif
             fi fi; check() }
  /* valid=0, with FUA, one header after the other */
  :: d_step { RUNS(m) && lk[m]==EX && hw[m]==0 && (todo[m] & 1) -> hw[m] = OLD+1; todo[m] = todo[m] & 2 }
  :: d_step { RUNS(m) && lk[m]==EX && hw[m]==0 && (todo[m] & 2) -> hw[m] = NEW+1; todo[m] = todo[m] & 1 }
  :: d_step { hw[m]!=0 ->
#ifndef MUT_GONE_BEFORE_HEADER
       assert(rec[hw[m]-1] != GONE);
#endif
       valid[hw[m]-1] = 0; hw[m] = 0; check() }
  :: d_step { hw[m]!=0 && nbad < BAD -> nbad++; bad[hw[m]-1] = 1; hw[m] = 0 }
#ifdef MUT_DOWN_BEFORE_HEADER       /* the transaction does not wait for the headers */
  :: d_step { RUNS(m) && lk[m]==EX && todo[m]==0 -> apply(m); lk[m] = CR; hold[m] = CR; work[m] = 0; load(m); check() }
#elif defined(MUT_RECORD_AFTER_DOWN)    /* the holder takes its own word for the record: it writes without copying */
  :: d_step { RUNS(m) && lk[m]==EX && todo[m]==0 && hw[m]==0 -> lk[m] = CR; hold[m] = CR;
       i_ = 0; do :: i_ < 2 -> sees[S(m,i_)] = WORKS(i_) && !(i_ <= SUBJECT(m)); i_++ :: else -> break od; i_ = 0 }
  :: d_step { RUNS(m) && lk[m]==CR && work[m]!=0 && !q[m] && todo[m]==0 && hw[m]==0 -> apply(m); work[m] = 0; load(m); check() }
#else
  :: d_step { RUNS(m) && lk[m]==EX && todo[m]==0 && hw[m]==0 -> apply(m); lk[m] = CR; hold[m] = CR; work[m] = 0; load(m); check() }
#endif

  /* faults */
  :: d_step { nfault < FAULTS && st[m]!=DEAD -> nfault++; st[m] = DEAD; forget(m) }
  :: d_step { nfault < FAULTS && st[m]==UP -> nfault++; st[m] = PAUSED }
  :: d_step { st[m]==PAUSED -> st[m] = UP }
  :: d_step { st[m]!=UP && alive[m] -> alive[m] = 0; q[m] = 0;
       if :: work[m]!=0 && lk[m]!=EX -> work[m] = 0 :: else fi;
#ifdef MUT_LEASE_HOLDS
       hold[m] = NL; if :: reg==m+1 -> reg = 0 :: else fi
#endif
     }
  :: d_step { st[m]==UP && !alive[m] && ms[m]==ACTIVE -> alive[m] = 1 }
  :: d_step { st[m]==UP && !alive[m] && ms[m]!=ACTIVE -> st[m] = DEAD; forget(m) }
  :: d_step { st[m]==DEAD && (cw[m]!=0 || ow[m] || zw[m]!=0 || hw[m]!=0) -> dropwrites(m) }    /* what was in flight may be lost */
  /* recovery, by any survivor: fence, holds, and what it was about: a delete is left to whoever looks */
  :: d_step { HELPER(m) && !alive[m] && ms[m]==ACTIVE && (st[m]!=UP || hold[m]!=NL) && nfault > 0 -> ms[m] = FENCING }
  :: d_step { HELPER(m) && !alive[m] && ms[m]==FENCING -> ms[m] = FENCED;
#ifndef MUT_NO_FENCE
       dropwrites(m)
#endif
     }
  :: d_step { HELPER(m) && !alive[m] && ms[m]==FENCED && (hold[m]!=NL || reg==m+1 || by[OLD]==m+1 || by[NEW]==m+1) ->
       hold[m] = NL; if :: reg==m+1 -> reg = 0 :: else fi;
       if :: by[OLD]==m+1 -> by[OLD] = 0 :: else fi; if :: by[NEW]==m+1 -> by[NEW] = 0 :: else fi }
  :: d_step { nrejoin < REJOIN && st[m]==DEAD && !alive[m] && ms[m]==FENCED && hold[m]==NL && reg!=m+1 && by[OLD]!=m+1 && by[NEW]!=m+1 && cw[m]==0 && !ow[m] && zw[m]==0 && hw[m]==0 -> nrejoin++; st[m] = UP; alive[m] = 1; ms[m] = ACTIVE; fresh[m] = 1 }
  od }

/* When nothing more can happen: every live member has the table, nothing is half done, nothing lost is still called live. */
proctype stuck() { end: do :: d_step { timeout ->
    i_ = 0; do :: i_ < M -> if :: RUNS(i_) && !(HELPER(i_) == 0 && nfault > 0) -> assert(lk[i_]==CR && work[i_]==0);
                               assert(!(lost[S(i_,0)] && WORKS(0)) && !(lost[S(i_,1)] && WORKS(1))) :: else fi; i_++ :: else -> break od; i_ = 0;
    assert(!(RUNS(0) && RUNS(1)) || (rec[OLD]!=DELETING && rec[NEW]!=DELETING)) }; break od }

#if PROBE==1      /* a delete was finished by another than the one that began it */
#define PCOND (rec[OLD]==GONE && nfault==1 && st[0]==DEAD && org && own[NEW])
#elif PROBE==2    /* a restarted member met a header that says invalid, and the snapshot became so */
#define PCOND (nrejoin==1 && rec[NEW]==INVALID && rec[OLD]==INVALID && nlost==1 && fresh[1]==0 && org && !own[NEW])
#elif PROBE==3    /* a snapshot in `deleting` is read while its deleter is dead */
#define PCOND (rec[OLD]==DELETING && by[OLD]==0 && !valid[OLD] && org && RUNS(1) && lk[1]==CR)
#elif PROBE==4    /* both are gone and the origin is written without a copy */
#define PCOND (rec[OLD]==GONE && rec[NEW]==GONE && org && !own[OLD] && !own[NEW])
#endif
#ifdef PROBE
proctype probe() { end: do :: d_step { PCOND -> assert(0) } od }
#endif
init { byte a;
  atomic {
    valid[0] = 1; valid[1] = 1; rec[0] = LIVE; rec[1] = LIVE;
    a = 0; do :: a < M -> st[a] = UP; alive[a] = 1; lk[a] = CR; hold[a] = CR; sees[S(a,0)] = 1; sees[S(a,1)] = 1; run mem(a); a++ :: else -> break od; a = 0;
#ifdef PROBE
    run probe();
#else
    run stuck();
#endif
  } }

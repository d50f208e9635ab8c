/* One store of one snapshot that was taken before: region and tail locks, cached and asked back; the counter; extents; group
 * commit, write by write; snapshot reads; crash, SIGSTOP, a lease that ends, fencing, recovery, revival, restart.
 *
 * Said here, after every write that lands: a visible entry's COW chunk holds what the snapshot was taken of; no two entries
 * share an old or a new chunk; a changed origin chunk is owned. At every grant: a counter that says nothing new
 * means that nothing is unknown in that region, or at the tail. At every reply: the snapshot's content.
 *
 * A counter is a revision and a value: entries committed, or UNTRUSTED. A numeric one is re-read exactly that far, an
 * untrusted one under the tail to the end, and what lies behind is zeroed. A re-read is one step; so is a transaction, but
 * releases are under way for any time, of the tail and of one region at once. */
#ifndef M
#define M 2          /* members */
#endif
#ifndef C
#define C 2          /* origin chunks */
#endif
#ifndef R
#define R 2          /* regions; chunk c lies in region c % R */
#endif
#ifndef X
#define X 1          /* extent size: COW chunks reserved at once */
#endif
#ifndef K
#define K 5          /* COW data chunks 1..K */
#endif
#ifndef CRASH
#define CRASH 1
#endif
#ifndef VICTIMS
#define VICTIMS 255  /* bit m: member m may crash */
#endif
#ifndef PAUSE
#define PAUSE 1      /* SIGSTOPs */
#endif
#ifndef EXPIRE
#define EXPIRE 1     /* lease expiries (of paused, dead or cut-off members) */
#endif
#ifndef REJOIN
#define REJOIN 1
#endif
#ifndef REMARK
#define REMARK 0     /* times that counters are marked once more in a recovery */
#endif
#ifndef READS
#define READS 1      /* snapshot reads on/off */
#endif
#ifndef WMASK
#define WMASK 255    /* bit m*C+c: member m may write chunk c (once) */
#endif
#ifndef RMASK
#define RMASK 255    /* bit m*C+c: member m may read chunk c of the snapshot (any number of times) */
#endif
#define NE (C+M)     /* metadata slots */
#define TAIL R
#define NRES (R+1)
#define NL 0
#define CR 1
#define EX 2
#define UP 1
#define PAUSED 2
#define DEAD 0
#define ACTIVE 1
#define FENCING 2
#define FENCED 3
#define BAD 15
#define REG(c) ((c)%R)
#define L(m,r) ((m)*NRES+(r))
#define P(m,c) ((m)*C+(c))
#define UNTRUSTED 254
#define NOTHING 255  /* no count: the release owes nothing */

/* ---- shared LUN */
bit  org[C];             /* 0 = content at snapshot time, 1 = changed */
byte cow[K+1];           /* c+1 = the snapshot's content of c; 0 garbage; BAD = content after the change */
byte eo[NE]; byte en[NE];/* metadata list: old+1, new; 0 = empty slot */
/* in-flight device writes; they outlive their process and are dropped by fencing */
byte dwk[M*C]; byte dwv[M*C];      /* COW data write: chunk, value */
byte mws[M*C]; byte mwn[M*C];      /* metadata entry write: slot+1, new chunk */
bit  ow[M*C];                      /* origin write */
/* ---- etcd */
byte hold[M*NRES]; byte want[M*NRES];
byte ctr = 1; byte cval;           /* the counter: revision, value */
bit  alive[M]; byte ms[M]; bit fenced[M];
byte gh[M];                        /* recorded extents: first chunk after it */
/* ---- member memory */
byte st[M];
byte lk[M*NRES]; byte map[M*C]; byte n[M]; byte last[M];
bit rr[M]; byte nctr[M]; byte nval[M];   /* to be re-read: up to which counter */
byte ph[M*C]; byte nk[M*C]; byte base[M]; byte cnt[M];
byte xl[M]; byte xh[M];
byte relp[M]; byte relm[M]; byte reln[M]; bit relt[M];   /* a region's release under way: mode left, entries committed, still that grant of the tail */
bit trel[M]; byte tren[M]; byte trex[M];                  /* the tail's: entries, extents */
byte rd[M]; byte rds[M];                                  /* snapshot read in flight: c+1; source 0 origin, else COW chunk */
bit  wr[M*C];                                             /* write budget: each member writes each chunk once */
byte rb[M];
byte ncrash, npause, nexp, nrej, nremark;
bit marked[M];                                            /* counters were marked in this recovery */
byte i_, j_, k_, t_, v_; bool b_;                         /* scratch, always reset */

inline vis() { /* v_ = number of visible entries */
  v_ = 0; do :: v_ < NE && eo[v_] != 0 -> v_++ :: else -> break od }

inline check() { /* I1 on stable storage, I3 */
  vis();
  i_ = 0; do :: i_ < v_ ->
      assert(cow[en[i_]] == eo[i_]);                       /* referenced COW chunk holds the old content */
      j_ = i_+1; do :: j_ < v_ -> assert(eo[i_] != eo[j_]); assert(en[i_] != en[j_]); j_++ :: else -> break od;
      i_++ :: else -> break od;
  i_ = 0; do :: i_ < C ->
      if :: org[i_] == 1 ->
             b_ = 0; j_ = 0; do :: j_ < v_ -> if :: eo[j_] == i_+1 -> b_ = 1 :: else fi; j_++ :: else -> break od;
             assert(b_)                                    /* a changed origin chunk is owned by the snapshot */
         :: else fi; i_++ :: else -> break od;
  i_ = 0; j_ = 0; v_ = 0; b_ = 0 }

inline i4(m, r) { /* counter equal to the last seen => nothing unknown in the region / at the tail */
  vis();
  if :: r == TAIL -> assert(n[m] == v_)
     :: else -> i_ = 0; do :: i_ < v_ -> if :: REG(eo[i_]-1) == r -> assert(map[P(m,eo[i_]-1)] != 0) :: else fi; i_++ :: else -> break od fi;
  i_ = 0; v_ = 0 }

inline forget(m) { /* lose memory */
  i_ = 0; do :: i_ < C -> map[P(m,i_)] = 0; ph[P(m,i_)] = 0; nk[P(m,i_)] = 0; i_++ :: else -> break od;
  i_ = 0; do :: i_ < NRES -> lk[L(m,i_)] = NL; i_++ :: else -> break od;
  n[m] = 0; last[m] = 0; rr[m] = 0; nctr[m] = 0; nval[m] = 0; base[m] = 0; cnt[m] = 0; xl[m] = 0; xh[m] = 0;
  rd[m] = 0; rds[m] = 0; i_ = 0 }

inline norelease(m) { relp[m] = 0; relm[m] = 0; reln[m] = 0; relt[m] = 0; trel[m] = 0; tren[m] = 0; trex[m] = 0 }
inline dropwrites(m) { i_ = 0; do :: i_ < C -> dwk[P(m,i_)] = 0; dwv[P(m,i_)] = 0; mws[P(m,i_)] = 0; mwn[P(m,i_)] = 0; ow[P(m,i_)] = 0; i_++ :: else -> break od; i_ = 0 }


#if M==2
#define OANY(e1,e2) (e1)
#define O1(m) (1-(m))
#define O2(m) (1-(m))
#else
#define OANY(e1,e2) ((e1)||(e2))
#define O1(m) (((m)+1)%3)
#define O2(m) (((m)+2)%3)
#endif
#define W(m,r) want[L(m,r)]
#define H(m,r) hold[L(m,r)]
#define LK(m,r) lk[L(m,r)]
#define BAST(m,r) ((LK(m,r)==EX && OANY(W(O1(m),r)!=NL, W(O2(m),r)!=NL)) || (LK(m,r)==CR && OANY(W(O1(m),r)==EX, W(O2(m),r)==EX)))
#define BASTEX(m,r) (OANY(W(O1(m),r)==EX, W(O2(m),r)==EX))
#define CONF(m,r,mode) ((mode==EX && OANY(H(O1(m),r)!=NL, H(O2(m),r)!=NL)) || (mode==CR && OANY(H(O1(m),r)==EX, H(O2(m),r)==EX)))
#define QUEUED(m,r) OANY(W(O1(m),r)!=NL, W(O2(m),r)!=NL)
#define PH(m,c) ph[P(m,c)]
#if C==2
#define ALLC(e0,e1,e2) ((e0)&&(e1))
#define ANYC(e0,e1,e2) ((e0)||(e1))
#else
#define ALLC(e0,e1,e2) ((e0)&&(e1)&&(e2))
#define ANYC(e0,e1,e2) ((e0)||(e1)||(e2))
#endif
#define BETW(m,c,a,b) (PH(m,c)>=a && PH(m,c)<=b)
#define INREG(m,r,a,b) ANYC(REG(0)==r && BETW(m,0,a,b), REG(1)==r && BETW(m,1,a,b), REG(2)==r && BETW(m,2,a,b))
#define ANYPH(m,a) ANYC(PH(m,0)==a, PH(m,1)==a, PH(m,2)==a)
#define LIVE(m) (st[m]==UP && alive[m])      /* running and the deadline has not passed */
#define RDREG(m,r) (rd[m]!=0 && rds[m]==0 && REG(rd[m]-1)==r)   /* an origin read in flight under region r */
#define INFL(m) ANYC(dwk[P(m,0)]||mws[P(m,0)]||ow[P(m,0)], dwk[P(m,1)]||mws[P(m,1)]||ow[P(m,1)], dwk[P(m,2)]||mws[P(m,2)]||ow[P(m,2)])
#define NEEDX(m,r) ANYC(REG(0)==r && PH(m,0)==1 && map[P(m,0)]==0, REG(1)==r && PH(m,1)==1 && map[P(m,1)]==0, REG(2)==r && PH(m,2)==1 && map[P(m,2)]==0)
#ifdef MUT_BUMP_BEFORE_FLUSH
#define BUSY_LO 2
#define BUSY_HI 3
#define TBUSY(m) 0
#elif defined(MUT_REL_BEFORE_COMMIT)
#define BUSY_LO 2
#define BUSY_HI 2
#define TBUSY(m) ANYPH(m,4)
#elif defined(MUT_REL_BEFORE_PUBLISH)
#define BUSY_LO 2
#define BUSY_HI 4
#define TBUSY(m) ANYPH(m,4)
#else
#define BUSY_LO 2
#define BUSY_HI 5
#define TBUSY(m) ANYPH(m,4)
#endif

#ifdef MUT_REREAD_MIDBATCH
#define REREAD_OK(m) 1
#else
#define REREAD_OK(m) (!ANYPH(m,4))
#endif

#ifdef MUT_DRAIN_AFTER_PUBLISH   /* design.md step 5 as written */
#define DRAINED(m) 1
#define ADMITRD(m,c) 1
#elif defined(MUT_NO_READ_DRAIN)
#define DRAINED(m) 1
#define ADMITRD(m,c) 1
#else                            /* fixed: local origin reads of c end before c's entry can be seen by anybody */
#define DRAINED(m) !(rd[m]!=0 && rds[m]==0 && PH(m,rd[m]-1)==3)
#define ADMITRD(m,c) (PH(m,c)<4 || PH(m,c)==7)
#endif

#define MAYRD(m,c) (((RMASK) >> P(m,c)) & 1)
#define RDN(m,c,r) (REG(c)==r && MAYRD(m,c) && map[P(m,c)]==0)
#define RDNEED(m,r) ANYC(RDN(m,0,r), RDN(m,1,r), RDN(m,2,r))
#ifdef MUT_ZERO_MIDBATCH
#define ZERO_OK(m) 1
#else
#define ZERO_OK(m) (!ANYPH(m,4))
#endif
#ifdef MUT_BUMP_BEFORE_FLUSH
#define COUNT(m) (n[m]+cnt[m])
#else
#define COUNT(m) n[m]
#endif
/* grant of resource r in mode md to m: the transaction reads the counter */
inline granted(m, r, md) {
  H(m,r) = md; LK(m,r) = md; W(m,r) = NL;
#ifdef MUT_NO_REREAD
  last[m] = ctr
#else
  if :: ctr > last[m] && !rr[m] && cval != UNTRUSTED && cval <= n[m] -> last[m] = ctr; i4(m, r)   /* its own bump */
     :: ctr > last[m] && !(!rr[m] && cval != UNTRUSTED && cval <= n[m]) -> if :: !rr[m] || ctr > nctr[m] -> rr[m] = 1; nctr[m] = ctr; nval[m] = cval; marked[m] = 0; nval[m] = cval :: else fi
     :: else -> if :: rr[m]==0 -> i4(m, r) :: else fi fi
#endif
}
inline known(m) { if :: nctr[m] > last[m] -> last[m] = nctr[m] :: else fi; rr[m] = 0; nctr[m] = 0; nval[m] = 0; i_ = 0; v_ = 0 }
inline reread(m) { /* exactly as far as the counter says */
  vis(); assert(nval[m] <= v_);
  i_ = 0; do :: i_ < nval[m] -> map[P(m,eo[i_]-1)] = en[i_]; i_++ :: else -> break od;
  if :: nval[m] > n[m] -> n[m] = nval[m] :: else fi;
  known(m) }
inline zerotail() { vis(); i_ = v_; do :: i_ < NE -> eo[i_] = 0; en[i_] = 0; i_++ :: else -> break od; i_ = 0; v_ = 0; check() }
inline takeover(m) { /* under the tail: to the end, and what lies behind is zeroed */
  vis(); i_ = 0; do :: i_ < v_ -> map[P(m,eo[i_]-1)] = en[i_]; i_++ :: else -> break od;
  if :: v_ > n[m] -> n[m] = v_ :: else fi;
  known(m); zerotail() }
inline owe(m, count) { /* a release puts the counter, under the tail that etcd still shows as ours; what we put we know */
  if :: count != NOTHING && H(m,TAIL)==EX && (cval==UNTRUSTED || count > cval) -> ctr++; cval = count; if :: st[m]!=DEAD -> last[m] = ctr :: else fi
     :: else fi }
inline mark() { ctr++;
#ifndef MUT_NO_TAIL_FLAG
  cval = UNTRUSTED
#endif
}
inline nextfree() { /* t_ = next free COW chunk: behind every entry on disk and every recorded extent */
  vis(); t_ = 0;
  i_ = 0; do :: i_ < v_ -> if :: en[i_] > t_ -> t_ = en[i_] :: else fi; i_++ :: else -> break od; t_++;
  i_ = 0; do :: i_ < M -> if :: gh[i_] > t_ -> t_ = gh[i_] :: else fi; i_++ :: else -> break od;
  i_ = 0; v_ = 0 }

/* ---- one origin write of member m to chunk c */
proctype pipe(byte m; byte c) {
end: do
  :: d_step { st[m]==UP && PH(m,c)==0 && !wr[P(m,c)] -> PH(m,c) = 1; wr[P(m,c)] = 1 }
  :: d_step { LIVE(m) && PH(m,c)==1 && map[P(m,c)]!=0 -> PH(m,c) = 7; ow[P(m,c)] = 1 }         /* owned: straight through */
  :: d_step { LIVE(m) && PH(m,c)==1 && map[P(m,c)]==0 && LK(m,REG(c))==EX && !rr[m] && !BAST(m,REG(c)) && xl[m]<xh[m] ->
       k_ = xl[m]; xl[m]++; nk[P(m,c)] = k_;
       /* I3: no other member that could still write has it reserved or in flight */
       i_ = 0; do :: i_ < M -> if :: i_ != m && (st[i_]!=DEAD) && !fenced[i_] -> assert(!(xl[i_] <= k_ && k_ < xh[i_])) :: else fi; i_++ :: else -> break od; i_ = 0;
       dwk[P(m,c)] = k_; if :: org[c]==0 -> dwv[P(m,c)] = c+1 :: else -> dwv[P(m,c)] = BAD fi; k_ = 0;
       PH(m,c) = 2 }
  :: d_step { dwk[P(m,c)]!=0 -> cow[dwk[P(m,c)]] = dwv[P(m,c)]; dwk[P(m,c)] = 0; dwv[P(m,c)] = 0;   /* lands, whatever became of the process */
       if :: st[m]!=DEAD && PH(m,c)==2 -> PH(m,c) = 3 :: else fi; check() }
  :: d_step { mws[P(m,c)]!=0 -> eo[mws[P(m,c)]-1] = c+1; en[mws[P(m,c)]-1] = mwn[P(m,c)]; mws[P(m,c)] = 0; mwn[P(m,c)] = 0; check() }
  :: d_step { st[m]==UP && PH(m,c)==5 -> map[P(m,c)] = nk[P(m,c)]; PH(m,c) = 6 }                /* publish */
#ifdef MUT_NO_READ_DRAIN
  :: d_step { LIVE(m) && PH(m,c)==6 -> PH(m,c) = 7; nk[P(m,c)] = 0; ow[P(m,c)] = 1 }
#else
  :: d_step { LIVE(m) && PH(m,c)==6 && !(rd[m]==c+1 && rds[m]==0) -> PH(m,c) = 7; nk[P(m,c)] = 0; ow[P(m,c)] = 1 }
#endif
  :: d_step { ow[P(m,c)] -> org[c] = 1; ow[P(m,c)] = 0; if :: st[m]!=DEAD && PH(m,c)==7 -> PH(m,c) = 0 :: else fi; check() }
  :: d_step { (st[m]==DEAD) && (dwk[P(m,c)]!=0 || mws[P(m,c)]!=0 || ow[P(m,c)]) ->                 /* or is lost */
       dwk[P(m,c)] = 0; dwv[P(m,c)] = 0; mws[P(m,c)] = 0; mwn[P(m,c)] = 0; ow[P(m,c)] = 0 }
#if READS
  :: d_step { MAYRD(m,c) && st[m]==UP && rd[m]==0 && map[P(m,c)]!=0 -> rd[m] = c+1; rds[m] = map[P(m,c)] }
#ifdef MUT_READ_WITHOUT_LOCK
  :: d_step { MAYRD(m,c) && st[m]==UP && rd[m]==0 && map[P(m,c)]==0 -> rd[m] = c+1; rds[m] = 0 }
#else
  :: d_step { MAYRD(m,c) && LIVE(m) && rd[m]==0 && map[P(m,c)]==0 && LK(m,REG(c))!=NL && !rr[m] && !BAST(m,REG(c)) && ADMITRD(m,c) -> rd[m] = c+1; rds[m] = 0 }
#endif
#ifdef MUT_NO_DEADLINE_AFTER_READ
  :: d_step { st[m]==UP && rd[m]==c+1 -> 
#else
  :: d_step { st[m]==UP && rd[m]==c+1 && !alive[m] -> rd[m] = 0; rds[m] = 0 }                       /* thrown away; retried after revival */
  :: d_step { LIVE(m) && rd[m]==c+1 ->
#endif
       if :: rds[m]==0 -> assert(org[c]==0) :: else -> assert(cow[rds[m]]==c+1) fi; rd[m] = 0; rds[m] = 0 }   /* I1 */
#endif
  od }

/* ---- member m's locks on region r */
proctype region(byte m; byte r) {
end: do
  :: d_step { LIVE(m) && LK(m,r)==NL && relp[m]!=r+1 && W(m,r)==NL && NEEDX(m,r) -> W(m,r) = EX }
#if READS
  :: d_step { LIVE(m) && LK(m,r)==NL && relp[m]!=r+1 && RDNEED(m,r) && W(m,r)==NL && rd[m]==0 && !NEEDX(m,r) -> W(m,r) = CR }
#endif
  :: d_step { alive[m] && st[m]==UP && W(m,r)!=NL && !CONF(m,r,W(m,r)) -> granted(m, r, W(m,r)) }
  /* up-conversion */
#ifdef MUT_UPCONV_NODRAIN
  :: d_step { LIVE(m) && LK(m,r)==CR && relp[m]!=r+1 && NEEDX(m,r) ->
#else
  :: d_step { LIVE(m) && LK(m,r)==CR && relp[m]!=r+1 && NEEDX(m,r) && !RDREG(m,r) ->
#endif
       if :: !CONF(m,r,EX) && !QUEUED(m,r) -> LK(m,r) = EX; H(m,r) = EX
          :: else -> LK(m,r) = NL; H(m,r) = NL; W(m,r) = EX fi }
  /* bast: drain, then release or demote */
  :: d_step { LIVE(m) && relp[m]==0 && BAST(m,r) && !INREG(m,r,BUSY_LO,BUSY_HI) && !RDREG(m,r) ->
       relp[m] = r+1; reln[m] = (LK(m,TAIL)==EX && !rr[m] -> COUNT(m) : NOTHING); relt[m] = 1;
       if :: LK(m,r)==EX && !BASTEX(m,r) -> relm[m] = CR :: else -> relm[m] = NL fi;
       LK(m,r) = NL }
  od }

proctype mem(byte m) {
end: do
  /* a release reaches etcd: also when its sender is stopped or dead, as long as the epoch stands. What the tail's release
   * owes, a region's owes too until etcd has it; a count from an older grant of the tail says nothing */
  :: d_step { relp[m]!=0 && alive[m] ->
#ifndef MUT_COUNT_OF_AN_OLDER_TAIL
       if :: relt[m] -> owe(m, reln[m]) :: else fi;
#else
       owe(m, reln[m]);
#endif
#ifndef MUT_TAIL_OWES_ALONE
       if :: trel[m] -> owe(m, tren[m]) :: else fi;
#endif
       H(m,relp[m]-1) = relm[m]; if :: relm[m]!=NL && st[m]!=DEAD -> LK(m,relp[m]-1) = relm[m] :: else fi;
       relp[m] = 0; relm[m] = 0; reln[m] = 0; relt[m] = 0 }
  :: d_step { trel[m] && alive[m] -> owe(m, tren[m]); H(m,TAIL) = NL;
#ifndef MUT_NO_EXT_REC
       if :: trex[m] > gh[m] -> gh[m] = trex[m] :: else fi;
#endif
       trel[m] = 0; tren[m] = 0; trex[m] = 0; relt[m] = 0 }
  :: d_step { st[m]==UP && rr[m] && nval[m]!=UNTRUSTED && REREAD_OK(m) -> reread(m) }
  :: d_step { LIVE(m) && rr[m] && nval[m]==UNTRUSTED && LK(m,TAIL)==EX && ZERO_OK(m) -> takeover(m) }
  /* tail */
  :: d_step { LIVE(m) && LK(m,TAIL)==NL && W(m,TAIL)==NL && !trel[m] && (ANYPH(m,3) || (ANYPH(m,1) && xl[m]>=xh[m]) || (rr[m] && nval[m]==UNTRUSTED)) -> W(m,TAIL) = EX }
  :: d_step { LIVE(m) && W(m,TAIL)==EX && !CONF(m,TAIL,EX) -> granted(m, TAIL, EX) }
  :: d_step { LIVE(m) && LK(m,TAIL)==EX && !rr[m] && xl[m]>=xh[m] && ANYPH(m,1) ->      /* reserve */
       nextfree(); if :: xh[m] > t_ -> t_ = xh[m] :: else fi;
       if :: t_ > K -> i_ = 0; do :: i_ < C -> if :: PH(m,i_)==1 -> PH(m,i_) = 0 :: else fi; i_++ :: else -> break od; i_ = 0   /* no space: give up */
          :: else -> xl[m] = t_; xh[m] = t_+X; if :: xh[m] > K+1 -> xh[m] = K+1 :: else fi fi; t_ = 0 }
  :: d_step { LIVE(m) && LK(m,TAIL)==EX && !rr[m] && ANYPH(m,3) && !ANYPH(m,4) && DRAINED(m) ->       /* data flushed; submit the entries of the batch */
       vis(); assert(n[m]==v_); v_ = 0; cnt[m] = 0; base[m] = n[m];      /* the append position is the end */
       i_ = 0; do :: i_ < C -> if :: PH(m,i_)==3 -> assert(n[m]+cnt[m] < NE); mws[P(m,i_)] = n[m]+cnt[m]+1; mwn[P(m,i_)] = nk[P(m,i_)]; PH(m,i_) = 4; cnt[m]++ :: else fi; i_++ :: else -> break od; i_ = 0;
       }
  :: d_step { st[m]==UP && cnt[m]!=0 && ANYPH(m,4) && ALLC(mws[P(m,0)]==0, mws[P(m,1)]==0, mws[P(m,2)]==0) ->   /* all landed and flushed */
       i_ = 0; do :: i_ < C -> if :: PH(m,i_)==4 -> PH(m,i_) = 5 :: else fi; i_++ :: else -> break od; i_ = 0;
       n[m] = base[m]+cnt[m]; cnt[m] = 0; base[m] = 0 }
  :: d_step { LIVE(m) && !trel[m] && BAST(m,TAIL) && !TBUSY(m) && !rr[m] -> trel[m] = 1; tren[m] = COUNT(m); trex[m] = xh[m]; LK(m,TAIL) = NL }
  /* faults */
  :: d_step { ncrash < CRASH && ((VICTIMS >> m) & 1) && st[m]!=DEAD -> ncrash++; st[m] = DEAD; forget(m) }
  :: d_step { npause < PAUSE && st[m]==UP -> npause++; st[m] = PAUSED }
  :: d_step { st[m]==PAUSED -> st[m] = UP }
  :: d_step { alive[m] && (st[m]==DEAD || nexp < EXPIRE) -> 
       if :: st[m]!=DEAD -> nexp++ :: else fi;
       alive[m] = 0; i_ = 0; do :: i_ < NRES -> W(m,i_) = NL; 
#ifdef MUT_LEASE_HOLDS
            H(m,i_) = NL;
#endif
            i_++ :: else -> break od; i_ = 0;
#ifdef MUT_EXT_ON_LEASE
       gh[m] = 0;
#endif
       if :: st[m]==DEAD -> norelease(m) :: else fi }
  /* revive: nobody has recovered me. Releases under way are void: what I read in etcd is still mine */
  :: d_step { st[m]==UP && !alive[m] && ms[m]==ACTIVE -> alive[m] = 1;
       if :: relp[m]!=0 ->
#ifdef MUT_RELEASE_WITHOUT_COUNTER
              H(m,relp[m]-1) = relm[m];
#endif
              LK(m,relp[m]-1) = H(m,relp[m]-1) :: else fi;
       if :: trel[m] ->
#ifdef MUT_RELEASE_WITHOUT_COUNTER
              H(m,TAIL) = NL; if :: trex[m] > gh[m] -> gh[m] = trex[m] :: else fi;
#endif
              LK(m,TAIL) = H(m,TAIL) :: else fi;
       norelease(m) }
  /* I was recovered: fenced; exit */
  :: d_step { st[m]==UP && !alive[m] && ms[m]!=ACTIVE -> st[m] = DEAD; forget(m); norelease(m) }
  /* rejoin: clean slate, or same host: old process proven gone; cleans up its own holds as a recovery would */
  :: d_step { nrej < REJOIN && st[m]==DEAD && !alive[m] && ms[m]==0 && !INFL(m) -> nrej++;
       st[m] = UP; alive[m] = 1; ms[m] = ACTIVE; fenced[m] = 0; rr[m] = 1; nctr[m] = ctr; nval[m] = cval; marked[m] = 0;
#ifdef MUT_ZERO_WITHOUT_TAIL
       zerotail();
#endif
       }
  :: d_step { nrej < REJOIN && st[m]==DEAD && !alive[m] && ms[m]!=0 && !INFL(m) -> nrej++; rb[m] = 0;
       i_ = 0; do :: i_ < NRES -> H(m,i_) = NL; i_++ :: else -> break od; i_ = 0; gh[m] = 0;
#ifndef MUT_REJOIN_NO_UNTRUST
       mark();
#endif
       st[m] = UP; alive[m] = 1; ms[m] = ACTIVE; fenced[m] = 0; rr[m] = 1; nctr[m] = ctr; nval[m] = cval; marked[m] = 0;
#ifdef MUT_ZERO_WITHOUT_TAIL
       zerotail();
#endif
       }
  od }

#ifdef MUT_NO_UNTRUST
#define MARKS 0
#else
#define MARKS 1
#endif
#ifdef MUT_HOLDS_BEFORE_MARKS
#define MAY_CLEAN(d) 1
#else
#define MAY_CLEAN(d) (marked[d] || !MARKS)
#endif
/* ---- recovery of d by any live member (coordinators may change at any step) */
#define COORD(d) (LIVE(O1(d)) || (M==3 && LIVE(O2(d))))
proctype recover(byte d) {
end: do
  :: d_step { COORD(d) && !alive[d] && ms[d]==ACTIVE -> ms[d] = FENCING }
  :: d_step { COORD(d) && ms[d]==FENCING && !alive[d] -> ms[d] = FENCED;
#ifndef MUT_NO_FENCE
       fenced[d] = 1; dropwrites(d)
#endif
       }
#ifndef MUT_NO_UNTRUST
#ifdef MUT_HOLDS_BEFORE_MARKS
  :: d_step { COORD(d) && ms[d]==FENCED && !alive[d] && !marked[d] && rb[d]==NRES -> marked[d] = 1; mark() }
#else
  :: d_step { COORD(d) && ms[d]==FENCED && !alive[d] && !marked[d] -> marked[d] = 1; mark() }
#endif
  :: d_step { COORD(d) && ms[d]==FENCED && !alive[d] && marked[d] && nremark < REMARK -> nremark++; mark() }      /* by who took over */
#endif
  :: d_step { COORD(d) && ms[d]==FENCED && !alive[d] && rb[d] < NRES && MAY_CLEAN(d) -> H(d,rb[d]) = NL; rb[d]++ }    /* one hold a step */
  :: d_step { COORD(d) && ms[d]==FENCED && !alive[d] && rb[d] == NRES && (marked[d] || !MARKS) -> ms[d] = 0; gh[d] = 0; rb[d] = 0; marked[d] = 0 }
  od }

/* vacuity probes: each situation must be reachable, i.e. the assertion must fail */
#define IDLE(m) (ALLC(PH(m,0)==0, PH(m,1)==0, PH(m,2)==0))
#if PROBE==1      /* everybody finished, two exceptions, two members took extents */
#define PCOND (eo[1]!=0 && gh[0]!=0 && gh[1]!=0 && IDLE(0) && IDLE(1) && wr[0] && wr[P(1,0)] && org[0] && org[1])
#elif PROBE==2    /* a recovered member's region is used by the survivor after a torn append was zeroed */
#define PCOND (ncrash==1 && st[1]==DEAD && ms[1]==0 && rb[1]==0 && cval!=UNTRUSTED && eo[1]!=0 && org[0] && org[1] && IDLE(0) && ctr>1)
#elif PROBE==3    /* revived with a hold kept */
#define PCOND (nexp==1 && npause==1 && alive[0] && alive[1] && st[0]==UP && st[1]==UP && LK(0,0)==EX && org[0])
#elif PROBE==4    /* rejoined and committed */
#define PCOND (nrej==1 && st[1]==UP && alive[1] && gh[1]!=0 && org[0])
#elif PROBE==5    /* hole on disk: torn batch of a dead member */
#define PCOND (eo[0]==0 && eo[1]!=0 && ncrash==1)
#elif PROBE==6    /* a fenced member wakes up with a copy under way */
#define PCOND (st[0]==UP && !alive[0] && fenced[0] && PH(0,0)==2 && eo[0]!=0)
#elif PROBE==7    /* a stopped member has an origin read in flight while its region belongs to another */
#define PCOND (st[0]==UP && rd[0]==1 && rds[0]==0 && org[0] && H(1,0)==EX)
#elif PROBE==8    /* a region is another's while the release of the tail is still under way */
#define PCOND (trel[0] && tren[0]!=0 && H(1,0)==EX && LK(0,0)==NL)
#endif
#ifdef PROBE
proctype probe() { end: do :: d_step { PCOND -> assert(0) } od }
#endif
#ifdef LIVENESS
proctype stuck() { end: do :: d_step { timeout ->   /* nothing else can move */
     i_ = 0; do :: i_ < M -> if :: LIVE(i_) -> j_ = 0; do :: j_ < C -> assert(PH(i_,j_)==0); j_++ :: else -> break od; j_ = 0 :: else fi; i_++ :: else -> break od; i_ = 0 };
     break od }
#endif

init { byte a; byte q;
  atomic {
    a = 0; do :: a < M -> st[a] = UP; alive[a] = 1; ms[a] = ACTIVE; last[a] = 1; q = 0; do :: q < C -> wr[P(a,q)] = !(((WMASK) >> P(a,q)) & 1); q++ :: else -> break od; q = 0; a++ :: else -> break od;
    a = 0; do :: a < M -> q = 0; do :: q < C -> run pipe(a, q); q++ :: else -> break od;
                         q = 0; do :: q < R -> run region(a, q); q++ :: else -> break od;
                         run mem(a); run recover(a); a++ :: else -> break od; a = 0; q = 0;
#ifdef PROBE
    run probe();
#endif
#ifdef LIVENESS
    run stuck();
#endif
  } }

/* etcd restored from a backup: one origin chunk, a snapshot S1, later a second one, S2; hosts that load, write, take, delete.
 *
 * A backup may be made at any moment and restored at any later one. The runbook: every host is stopped, etcd is restored,
 * counters are marked untrusted, locks and members are removed, hosts are started.
 * Said here: what the backup does not know of is found on the devices. The grant that takes S2 raises the generation in
 * every live record; each host writes that generation into the sidecar of each live store before it admits I/O
 * under the new table, so nothing was written without a copy into S1 unless S1's device says that S2 exists. A
 * store whose sidecar is newer than its record is refused. A counter that is absent tells nothing: like a marked one.
 * -DCOORDINATOR_SEALS: who takes S2 writes the sidecars before the grant, the record in `creating` explains them, and who
 * undoes it raises the live records. Then the device looks the same before and after the grant: a backup of
 * the moment between would be believed, unless such a record is deleted when etcd is restored.
 *
 * Two hosts. Region and tail are one mutex here: whoever has it may append, gives it back with a bump, gets it with the
 * counters. Entries become durable at once (core.pml takes that apart). */
#ifndef WRITES
#define WRITES 4
#endif
#ifndef RESTORES
#define RESTORES 1
#endif
#ifdef MUT_CREATING_EXPLAINS     /* ... and a restored record in `creating` explains a newer sidecar too */
#define COORDINATOR_SEALS
#define CREATING_RESTORED
#endif
#define NONE 0
#define CREATING 1
#define ACTIVE 2
#define UNTRUSTED 7
#define ABSENT 6
#define K(m,s) ((m)*2+(s))
/* ---- devices; store 0 is S1, 1 is S2 */
byte org;                        /* the origin's content: 0, 1, 2 ... */
bit own[2]; byte val[2];         /* entry of the chunk, and what its COW chunk holds */
byte sc[2]; bit valid[2];        /* sidecar's generation; header */
byte base[2];                    /* what the snapshot was taken of */
/* ---- etcd, and the backup */
byte rec[2]; byte gen[2]; byte ctr[2]; byte reg;
byte brec[2]; byte bgen[2]; byte bctr[2]; bit kept;
/* ---- hosts */
bit up[2]; bit held[2]; bit adm[2];      /* has the table (CR); admits I/O */
bit open_[4]; bit sees[4]; bit map[4]; byte seen[4]; bit dirty[4]; bit target[4];
byte taker; bit ticket;                  /* 1 + who takes S2; its ticket for the table */
byte nwrite, nrestore, ntake, ndel, nleave;
byte i_, j_; bool b_;
#define BOTH_DOWN (!up[0] && !up[1])
#define NEWEST(m) (sees[K(m,1)] -> 1 : (sees[K(m,0)] -> 0 : 2))

inline reads(m) { /* what a reader on m gets of each snapshot, under the region's lock */
  i_ = 0; do :: i_ < 2 ->
     if :: sees[K(m,i_)] ->
           if :: map[K(m,i_)] -> assert(val[i_]==base[i_])
              :: !map[K(m,i_)] && i_==0 && sees[K(m,1)] && map[K(m,1)] -> assert(val[1]==base[0])
              :: else -> assert(org==base[i_]) fi
        :: else fi; i_++ :: else -> break od; i_ = 0 }
inline told(m, s) { /* a counter comes with a grant; this host may read the list, it has the tail too */
  if :: ctr[s]==UNTRUSTED || ctr[s]==ABSENT ->
#ifdef MUT_ABSENT_MOVES_NOTHING  /* a counter that is not there is not compared with anything */
        if :: ctr[s]==ABSENT && seen[K(m,s)]!=0 -> skip
           :: else -> map[K(m,s)] = own[s]; seen[K(m,s)] = 9; if :: ctr[s]!=ABSENT -> dirty[K(m,s)] = 1 :: else fi fi
#else
        map[K(m,s)] = own[s]; seen[K(m,s)] = 9; dirty[K(m,s)] = 1
#endif
     :: else -> if :: ctr[s] > 0 && own[s] -> map[K(m,s)] = 1 :: else fi; seen[K(m,s)] = 1+ctr[s] fi }
inline owed(m) { /* a release puts what was committed */
  i_ = 0; do :: i_ < 2 ->
     if :: sees[K(m,i_)] && dirty[K(m,i_)] ->
#ifdef MUT_ABSENT_MOVES_NOTHING
           if :: ctr[i_]!=ABSENT -> ctr[i_] = map[K(m,i_)] :: else fi;
#else
           ctr[i_] = map[K(m,i_)];
#endif
           dirty[K(m,i_)] = 0
        :: else fi; i_++ :: else -> break od; i_ = 0 }
inline forget(m) { up[m] = 0; held[m] = 0; adm[m] = 0; if :: reg==m+1 -> reg = 0 :: else fi;
  i_ = 0; do :: i_ < 2 -> open_[K(m,i_)] = 0; sees[K(m,i_)] = 0; map[K(m,i_)] = 0; seen[K(m,i_)] = 0; dirty[K(m,i_)] = 0; i_++ :: else -> break od; i_ = 0;
  if :: taker==m+1 -> taker = 0; ticket = 0 :: else fi }

proctype host(byte m) {
end: do
  /* stopped, or dead while it held nothing: nothing is owed (whatever else a death leaves: core.pml) */
  :: d_step { up[m] && nrestore < RESTORES && kept && reg!=m+1 -> forget(m) }
#if RESTORES==0
  :: d_step { up[m] && nleave < 1 && reg!=m+1 && taker!=m+1 -> nleave++; forget(m) }
#endif
  :: d_step { !up[m] && (RESTORES==0 || nrestore==RESTORES) -> up[m] = 1 }
  /* the table's CR: whatever is not open yet is opened and verified; one that will not open keeps the host from serving */
  :: d_step { up[m] && !held[m] && !ticket -> b_ = 1;
       i_ = 0; do :: i_ < 2 ->
#ifdef COORDINATOR_SEALS
          if :: rec[i_]==ACTIVE && !open_[K(m,i_)] && valid[i_] && sc[i_] > gen[i_] && !(i_==0 && rec[1]==CREATING && gen[1]==sc[0]) -> b_ = 0 :: else fi;
#elif defined(MUT_GENERATION_IGNORED)
          skip;
#else
          if :: rec[i_]==ACTIVE && !open_[K(m,i_)] && valid[i_] && sc[i_] > gen[i_] -> b_ = 0 :: else fi;
#endif
          i_++ :: else -> break od; i_ = 0;
       if :: b_ -> held[m] = 1; j_ = 0;
               do :: j_ < 2 ->
                     sees[K(m,j_)] = (rec[j_]==ACTIVE && valid[j_]);      /* a header that says invalid: not served, ending.pml */
                     if :: sees[K(m,j_)] && !open_[K(m,j_)] -> open_[K(m,j_)] = 1; told(m, j_)
                        :: else fi; j_++ :: else -> break od; j_ = 0; b_ = 0
          :: else fi }
#ifdef MUT_SEALED_BY_ONE        /* the taker writes the sidecars when it is granted; the others do not wait for it */
  :: d_step { up[m] && held[m] && !adm[m] -> adm[m] = 1 }
  :: d_step { up[m] && adm[m] && taker==m+1 && !ticket && rec[1]==ACTIVE && rec[0]==ACTIVE && valid[0] && sc[0] < gen[0] -> sc[0] = gen[0]; taker = 0 }
#elif defined(COORDINATOR_SEALS) || defined(MUT_NOT_SEALED)
  :: d_step { up[m] && held[m] && !adm[m] -> adm[m] = 1 }
#else
  :: d_step { up[m] && held[m] && !adm[m] && rec[0]==ACTIVE && valid[0] && sc[0] < gen[0] -> sc[0] = gen[0] }
  :: d_step { up[m] && held[m] && !adm[m] && !(rec[0]==ACTIVE && valid[0] && sc[0] < gen[0]) -> adm[m] = 1 }
#endif
  :: d_step { up[m] && held[m] && ticket && reg!=m+1 -> held[m] = 0; adm[m] = 0 }
  /* the region (and the tail): granted with the counters, given back with what is owed */
  :: d_step { up[m] && adm[m] && !ticket && reg==0 && (nwrite < WRITES) -> reg = m+1;
       j_ = 0; do :: j_ < 2 -> if :: sees[K(m,j_)] -> told(m, j_) :: else fi; j_++ :: else -> break od; j_ = 0; reads(m) }
  :: d_step { up[m] && reg==m+1 && nwrite < WRITES -> nwrite++; j_ = NEWEST(m);
       if :: j_ < 2 && !map[K(m,j_%2)] -> assert(!own[j_%2]); own[j_%2] = 1; val[j_%2] = org; map[K(m,j_%2)] = 1; dirty[K(m,j_%2)] = 1 :: else fi;
       j_ = 0; org++; reads(m) }
  :: d_step { up[m] && reg==m+1 -> owed(m); reg = 0 }
  /* S2 is taken: creating, (sidecars,) ticket, grant */
  :: d_step { up[m] && adm[m] && taker==0 && ntake < 2 && rec[1]==NONE && rec[0]==ACTIVE && !own[1] -> ntake++; taker = m+1; rec[1] = CREATING; gen[1] = gen[0]+1; sc[1] = gen[1]; valid[1] = 1 }
#ifdef COORDINATOR_SEALS    /* the taker writes the sidecar before the grant; the record in `creating` explains it */
  :: d_step { up[m] && adm[m] && taker==m+1 && rec[1]==CREATING && valid[0] && sc[0] < gen[1] -> sc[0] = gen[1] }
  :: d_step { up[m] && adm[m] && taker==m+1 && rec[1]==CREATING && sc[0]==gen[1] && !ticket && reg!=m+1 -> ticket = 1 }
#else
  :: d_step { up[m] && adm[m] && taker==m+1 && rec[1]==CREATING && !ticket && reg!=m+1 -> ticket = 1 }
#endif
  :: d_step { up[m] && taker==m+1 && ticket && !held[0] && !held[1] && rec[1]==CREATING -> ticket = 0;
       rec[1] = ACTIVE; ctr[1] = 0; base[1] = org;
#ifndef MUT_RECORDS_NOT_RAISED
       gen[0] = gen[1];
#endif
#ifndef MUT_SEALED_BY_ONE
       taker = 0
#endif
     }
  :: d_step { up[m] && taker==m+1 && rec[1]==CREATING -> rec[1] = NONE; taker = 0; ticket = 0;                                    /* refused */
#ifdef COORDINATOR_SEALS
       gen[0] = gen[1]
#endif
     }
  /* what nobody is about any more is undone */
  :: d_step { up[m] && adm[m] && rec[1]==CREATING && taker==0 -> rec[1] = NONE;
#ifdef COORDINATOR_SEALS
       gen[0] = gen[1];
#endif
       gen[1] = 0 }
  /* S1 is deleted: valid=0, then the record (one step: ending.pml takes it apart) */
  :: d_step { up[m] && held[m] && !held[1-m] && taker==0 && reg==0 && ndel < 1 && rec[0]==ACTIVE -> ndel++;
#ifndef MUT_DELETED_WITHOUT_HEADER
       valid[0] = 0;
#endif
       rec[0] = NONE; ctr[0] = ABSENT; sees[K(m,0)] = 0 }
  od }

proctype etcd() {
end: do
  :: d_step { !kept && RESTORES > 0 -> kept = 1; brec[0] = rec[0]; brec[1] = rec[1]; bgen[0] = gen[0]; bgen[1] = gen[1]; bctr[0] = ctr[0]; bctr[1] = ctr[1] }
#ifdef MUT_HOST_FORGOTTEN        /* one host was not stopped: what it has in its memory goes on */
  :: d_step { kept && nrestore < RESTORES && (!up[0] || !up[1]) -> nrestore++; reg = 0;
#else
  :: d_step { kept && nrestore < RESTORES && BOTH_DOWN -> nrestore++;
#endif
       i_ = 0; do :: i_ < 2 -> rec[i_] = brec[i_]; gen[i_] = bgen[i_];
#if defined(COORDINATOR_SEALS) && !defined(CREATING_RESTORED)
            if :: rec[i_]==CREATING -> rec[i_] = NONE :: else -> skip fi;     /* the runbook deletes it, and raises nothing */
#endif
#ifdef MUT_COUNTERS_AS_SAVED
            ctr[i_] = bctr[i_];
#elif defined(MUT_ABSENT_MOVES_NOTHING) || defined(COUNTERS_DELETED)
            ctr[i_] = ABSENT;
#else
            if :: rec[i_]==ACTIVE -> ctr[i_] = UNTRUSTED :: else -> ctr[i_] = ABSENT fi;
#endif
            i_++ :: else -> break od; i_ = 0; taker = 0; ticket = 0; kept = 0 }
  od }

#if PROBE==1      /* a backup of before S2 is refused, because of S1's sidecar */
#define PCOND (nrestore==1 && rec[1]==NONE && rec[0]==ACTIVE && valid[0] && sc[0]==2 && gen[0]==1 && up[0] && up[1])
#elif PROBE==2    /* restored, loaded, written on both hosts, S2 taken after the restore */
#define PCOND (nrestore==1 && ntake==2 && rec[1]==ACTIVE && own[1] && adm[0] && adm[1] && nwrite==WRITES)
#elif PROBE==3    /* a backup of before S1's deletion meets the header */
#define PCOND (nrestore==1 && ndel==1 && rec[0]==ACTIVE && !valid[0] && org > 0 && adm[0])
#endif
#ifdef PROBE
proctype probe() { end: do :: d_step { PCOND -> assert(0) } od }
#endif
init { atomic {
    rec[0] = ACTIVE; gen[0] = 1; sc[0] = 1; valid[0] = 1; ctr[1] = ABSENT; up[0] = 1; up[1] = 1; run host(0); run host(1); run etcd();
#ifdef PROBE
    run probe();
#endif
  } }

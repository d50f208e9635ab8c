/* Members of different versions: joining, coming back as another version, and raising the protocol in force.
 *
 * A version v speaks protocols 1 to v. Version 1 is csnap 0.1: it looks at `format` when it starts and does not compare
 * it when it joins, and does not say what it speaks when it takes a record over. So one that has started before protocol 2
 * may be a member under 2; that it is still starting when 3 comes is left out here, and by docs/architecture.md to people.
 * Said here: nobody else is ever a member under a protocol that it does not speak. */
#ifndef M
#define M 2
#endif
#ifndef STARTS
#define STARTS 2     /* of each host, each time in any version */
#endif
#define FIRST(m) (v[m]==1)
#define DOWN 0
#define SAW 1        /* has read `format` and the records; decides by them */
#define CLEANS 2     /* has taken the record of its older incarnation over */
#define MEMBER 3
#define IN(m) (st[m]==MEMBER || st[m]==CLEANS)
/* ---- etcd */
byte fmt = 1;        /* format.protocol: as it only rises, it stands for the key's revision too */
byte rev;
byte rec[M];         /* m/<node>: 0 none, 1 active, 2 fenced: its successor cleans up */
byte says[M]; byte mrev[M];
/* ---- hosts */
byte st[M]; byte v[M]; byte seen[M]; byte nstart[M];
bit judged[M]; byte jfmt[M]; byte jrev[M];
bit slipped; bit refused;
byte i;

#define SPOKEN(m) (fmt <= v[m] || (FIRST(m) && fmt==2))
inline check() { for (i : 0 .. M-1) { assert(!IN(i) || SPOKEN(i)) } i = 0 }
#ifdef MUT_JOIN_UNCOMPARED
#define STILL(m) 1
#else
#define STILL(m) (FIRST(m) || seen[m]==fmt)
#endif
#ifdef MUT_RAISE_UNCOMPARED
#define UNCHANGED(m) 1
#elif M==2
#define UNCHANGED(m) (SINCE(0,m) && SINCE(1,m))
#else
#define UNCHANGED(m) (SINCE(0,m) && SINCE(1,m) && SINCE(2,m))
#endif
#define SINCE(n,m) (rec[n]==0 || mrev[n]<=jrev[m])
/* a 0.1 that is still starting while 2 is in force: 3 has to wait for it */
#define STARTING(n) (st[n]==SAW && FIRST(n))
#if M==2
#define STALE(m) (fmt==2 && (STARTING(0) || STARTING(1)))
#else
#define STALE(m) (fmt==2 && (STARTING(0) || STARTING(1) || STARTING(2)))
#endif

proctype host(byte m) {
end: do
  :: d_step { st[m]==DOWN && nstart[m] < STARTS -> nstart[m]++; v[m] = 1; st[m] = SAW; seen[m] = fmt }
  :: d_step { st[m]==DOWN && nstart[m] < STARTS -> nstart[m]++; v[m] = 2; st[m] = SAW; seen[m] = fmt }
  :: d_step { st[m]==DOWN && nstart[m] < STARTS -> nstart[m]++; v[m] = 3; st[m] = SAW; seen[m] = fmt }
  /* it does not speak what it saw: refused, by name */
  :: d_step { st[m]==SAW && seen[m] > v[m] -> st[m] = DOWN; refused = 1 }
  /* join; or what it saw is not so any more, and it looks again */
  :: d_step { st[m]==SAW && seen[m] <= v[m] && rec[m]==0 && STILL(m) -> rec[m] = 1; says[m] = v[m]; rev++; mrev[m] = rev; st[m] = MEMBER; if :: FIRST(m) && fmt==2 -> slipped = 1 :: else fi; check() }
  :: d_step { st[m]==SAW && seen[m] <= v[m] && rec[m]!=0 && STILL(m) -> rec[m] = 2; rev++; mrev[m] = rev; st[m] = CLEANS;
#ifndef MUT_CLEANS_AS_ITS_PREDECESSOR
       if :: !FIRST(m) -> says[m] = v[m] :: else fi;
#endif
       check() }
  :: d_step { st[m]==SAW && seen[m] <= v[m] && !STILL(m) -> seen[m] = fmt }
  :: d_step { st[m]==CLEANS -> rec[m] = 1; says[m] = v[m]; rev++; mrev[m] = rev; st[m] = MEMBER }
  /* the end: in order, or its record stays until another has recovered it, or its successor takes it over */
  :: d_step { st[m]==MEMBER -> rec[m] = 0; st[m] = DOWN; judged[m] = 0 }
  :: d_step { IN(m) -> st[m] = DOWN; judged[m] = 0 }
  :: d_step { st[m]==MEMBER && rec[(m+1)%M]!=0 && !IN((m+1)%M) -> rec[(m+1)%M] = 0 }
  /* raise: judge by what is there, then the transaction */
  :: d_step { st[m]==MEMBER && !judged[m] && fmt < v[m] && !STALE(m) ->
       judged[m] = 1; jfmt[m] = fmt; jrev[m] = rev;
       for (i : 0 .. M-1) { if :: rec[i]!=0 && says[i] < fmt+1 -> judged[m] = 0 :: else fi;
#ifndef MUT_CLEANS_AS_ITS_PREDECESSOR
         if :: rec[i]==2 -> judged[m] = 0 :: else fi;
#endif
       } i = 0 }
  :: d_step { judged[m] -> judged[m] = 0; if :: fmt==jfmt[m] && UNCHANGED(m) && !STALE(m) -> fmt++; rev++; check() :: else fi }
  od }

#if PROBE==1      /* a mixed cluster, and later the newest protocol */
#define PCOND (fmt==3 && nstart[0]>=2 && st[0]==MEMBER && st[1]==MEMBER)
#elif PROBE==2    /* refused under the newest */
#define PCOND (fmt==3 && refused)
#elif PROBE==3    /* the window of csnap 0.1 */
#define PCOND (slipped)
#endif
#ifdef PROBE
proctype probe() { end: do :: d_step { PCOND -> assert(0) } od }
#endif
init { atomic { for (i : 0 .. M-1) { run host(i) } i = 0;
#ifdef PROBE
  run probe();
#endif
  } }

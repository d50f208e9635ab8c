/* Read-through in a stack of two snapshots, S1 (older) and S2 (newer), of one chunk c in region X.
 * Member A writes the origin; member B reads S1. Each store has its own tail, counter and list.
 * Said here: falling through a level needs X's lock, whose grant compares the counter of every store of the stack. A hit
 * in the local map of the level being read needs none; a hit in a newer store does. */
byte org;                        /* origin version of c: 0, then 1, 2 */
byte era = 1;                    /* newest store: S1, then S2 (taken under the table's EX) */
byte s2base;                     /* origin version when S2 was taken */
byte own[3]; byte val[3];        /* on the devices */
byte ctr[3]; bit dirty[3];
byte hA = 2; byte hB = 0;        /* region X: 0 NL 1 CR 2 EX */
bit mA[3]; bit mB[3]; byte lB[3]; bit kn2;   /* maps; B's counters; B has loaded S2 */

active proctype all() {
 do
 /* A: origin write under X EX: copy into the newest store, commit, publish, write */
 :: d_step { hA==2 && org < 2 && (mA[era] || own[era]) -> mA[era] = 1; org++ }
 :: d_step { hA==2 && org < 2 && !own[era] -> own[era] = 1; val[era] = org; mA[era] = 1; dirty[era] = 1; org++ }
 /* A: gives the tail of a store to B (bast): bumps that store's counter only */
 :: d_step { dirty[1] -> dirty[1] = 0; ctr[1]++ }
 :: d_step { dirty[2] -> dirty[2] = 0; ctr[2]++ }
 /* S2 is taken */
 :: d_step { era==1 -> era = 2; s2base = org; kn2 = 1; lB[2] = 0 }
 /* B: some other region or a tail is granted to it: compares counters, re-reads what moved */
 :: d_step { ctr[1] != lB[1] -> mB[1] = own[1]; lB[1] = ctr[1] }
 :: d_step { ctr[2] != lB[2] && kn2 -> mB[2] = own[2]; lB[2] = ctr[2] }
 /* X goes from A to B and back; a release bumps what is dirty, a grant compares all counters */
 :: d_step { hA==2 && hB==0 -> if :: dirty[1] -> dirty[1] = 0; ctr[1]++ :: else fi; if :: dirty[2] -> dirty[2] = 0; ctr[2]++ :: else fi;
             hA = 0; hB = 1; mB[1] = own[1]; mB[2] = own[2]; lB[1] = ctr[1]; lB[2] = ctr[2] }
 :: d_step { hB==1 -> hB = 0; hA = 2 }
 /* B reads S1 */
 :: d_step { mB[1] -> assert(val[1]==0) }
#ifdef MUT_HIT_BELOW_IS_FREE
 :: d_step { !mB[1] && era==2 && mB[2] -> assert(val[2]==0) }
#else
 :: d_step { hB==1 && !mB[1] && era==2 && mB[2] -> assert(val[2]==0) }
#endif
 :: d_step { hB==1 && !mB[1] && !mB[2] -> assert(org==0) }
 od }

/* Secure aggregation: who may learn what, whatever the coordinator does. docs/spec/secure-aggregation.md, Model.
 *
 *   spin -a secagg.pml && cc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan -m100000          safety
 *   spin -a -DLIVE secagg.pml && cc -O2 -DNOREDUCE -DNFAIR=3 -o pan pan.c && ./pan -a -f -N comes   a sum comes
 *
 * Four workers, 0 to 3; worker 3 is the coordinator's. Two neighbours of three open a seed (LIVE: six, all honest,
 * and three of five: with fewer nobody can drop and another be silent). Cryptography is ideal:
 * a statement is signed or it is not, shares under the threshold say nothing. Wrong variants, each of which must
 * be refuted: -DUNSIGNED_SET, -DUNSIGNED_ROSTER, -DANSWER_FIRST, -DFORGETFUL, -DNO_NONCE, -DREPEATED_ROUND,
 * -DBOTH, -DLOW_THRESHOLD; and with -DLIVE, -DOWN_SEED_ONLY.
 */

#ifdef LIVE
#define N 6
#define T 3
#else
#define N 4
#define ROUNDS 2
#define HONEST 7 /* workers 0, 1, 2 */
#ifdef LOW_THRESHOLD
#define T 1
#else
#define T 2
#endif
#endif

#define IN(set, w) (((set) >> (w)) & 1)
#define SIZE4(set) (IN(set, 0) + IN(set, 1) + IN(set, 2) + IN(set, 3))
#ifdef LIVE
#define SIZE(set) (SIZE4(set) + IN(set, 4) + IN(set, 5))
#else
#define SIZE(set) SIZE4(set)
#endif
#define SUBSET(a, b) (((a) & (b)) == (a))
/* Each survivor has so many alive neighbours as open its seed: rosters are complete graphs here. */
#define ENOUGH(alive) (SIZE(alive) - 1 >= T)

#ifdef UNSIGNED_SET
#define SET_SIGNED(s, alive) true
#else
#define SET_SIGNED(s, alive) ((answers[(s) / 2] >> (alive)) & 1)
#endif
#ifdef UNSIGNED_ROSTER
#define ROSTER_SIGNED(s) true
#else
#define ROSTER_SIGNED(s) ((s) % 2 == 0)
#endif
#ifdef REPEATED_ROUND
#define NEW_ROUND(r, w) true
#else
#define NEW_ROUND(r, w) ((r) > seen[w])
#endif
#ifdef NO_NONCE
#define NONCE_FITS(s, w) true
#else
#define NONCE_FITS(s, w) (!IN(stale[s], w))
#endif
#ifdef OWN_SEED_ONLY
#define PAIR_OPENS(i) false
#else
#define PAIR_OPENS(i) OPENS(i)
#endif

#ifndef LIVE

/* Roster slots: of round r, slot 2(r-1) is what the countersigner opened, the next is the coordinator's own. */
#define SLOT(r, k) (2 * ((r) - 1) + (k))
#define NONE 255

byte members[4]; /* of a slot; 0: not made */
byte stale[4];   /* members that have changed their nonce since the slot was made */

/* Countersigner. What is durable outlives a restart; pending does not. */
byte opened;             /* durable: last round that was opened */
byte recorded[2];        /* durable: survivor set of a round; 0: none */
byte pending, pending_r; /* a request that is half done */
int answers[2];         /* what has left it: a bit for each set, by round */
byte restarts;

/* Honest workers. */
byte seen[4];
byte slot[4] = NONE; /* the round that is masked and not answered */
byte boots;

/* What went out, by slot. */
byte masked[4];      /* who sent a masked update */
byte self_of[16];    /* 4 · slot + p: which honest workers opened their share of p's self seed */
byte dropped_of[4];  /* peers of which seeds or shares of pair seeds were opened */
byte masked_round[2]; /* who has sent a masked update in a round, in any boot */

byte r, w, p, alive, m, s;

inline end_round(who) {
    slot[who] = NONE;
    /* A roster that is made later has the new nonce. */
    stale[0] = (stale[0] | (1 << who)) & members[0];
    stale[1] = (stale[1] | (1 << who)) & members[1];
    stale[2] = (stale[2] | (1 << who)) & members[2];
    stale[3] = (stale[3] | (1 << who)) & members[3];
}

/* Some value for which `wanted` holds; or `high`, whatever it is. */
inline pick(var, low, high, wanted) {
    var = low;
    do
    :: var < high -> var++
    :: wanted || var == high -> break
    od
}

/* A worker's own checks of a roster, and what it sends. */
inline mask_update() {
    pick(w, 0, 2, true); pick(s, 0, 3, IN(members[s], w) && ROSTER_SIGNED(s) && NEW_ROUND(s / 2 + 1, w));
    r = s / 2 + 1;
    if
    :: IN(members[s], w) && ROSTER_SIGNED(s) && NEW_ROUND(r, w) && NONCE_FITS(s, w) ->
        /* The roster is no older than the worker's last answer, and the round was never masked, in no boot. */
        assert(!IN(stale[s], w));
        assert(!IN(masked_round[r - 1], w));
        seen[w] = r; slot[w] = s;
        masked[s] = masked[s] | (1 << w);
        masked_round[r - 1] = masked_round[r - 1] | (1 << w);
        /* Whoever masks in a round does it for the same roster. */
        assert(!((masked[s] & HONEST) && (masked[s ^ 1] & HONEST)));
    :: else
    fi
}

/* A worker's answer to a survivor set; once, since it ends the round. */
inline unmask() {
    pick(w, 0, 2, slot[w] != NONE);
    s = slot[w];
    if
    :: s != NONE -> pick(alive, 1, 15, IN(alive, w) && SET_SIGNED(s, alive))
    :: else
    fi;
    if
    :: s != NONE && SUBSET(alive, members[s]) && IN(alive, w) && ENOUGH(alive) && SET_SIGNED(s, alive) ->
        p = 0;
        do
        :: p < N ->
            if
            :: p != w && IN(alive, p) -> self_of[4 * s + p] = self_of[4 * s + p] | (1 << w)
            :: p != w && IN(members[s], p) && !IN(alive, p) ->
                dropped_of[s] = dropped_of[s] | (1 << p);
#ifdef BOTH
                self_of[4 * s + p] = self_of[4 * s + p] | (1 << w)
#endif
            :: else
            fi;
            p++
        :: else -> break
        od;
        end_round(w);
        check(s)
    :: else
    fi
}

/* i's update lies open: its self seed, and the seeds of its pairs with all honest members but itself. */
#define SHARES(s, i) (SIZE(self_of[4 * (s) + (i)]) + IN(members[s], 3))
#define HIDING(s, i) (members[s] & HONEST & ~(1 << (i)) & ~dropped_of[s])
#define BARE(s, i) \
    (IN(masked[s], i) && SHARES(s, i) >= T && (IN(dropped_of[s], i) || HIDING(s, i) == 0))

inline check(at) {
    p = 0;
    do
    :: p < N ->
        /* Of one peer never both, by nobody. */
        assert(!(self_of[4 * at + p] != 0 && IN(dropped_of[at], p)));
        p++
    :: else -> break
    od;
    assert(!BARE(at, 0) && !BARE(at, 1) && !BARE(at, 2));
    /* Nothing is opened where nothing was countersigned. */
    assert(answers[at / 2] != 0)
}

inline open_round() {
    pick(m, 7, 15, SIZE(m) >= 3);
    if
    :: SIZE(m) >= 3 ->
        opened++;
        members[SLOT(opened, 0)] = m
    :: else
    fi
}

/* A survivor set: checked and recorded, then answered. A restart in between loses the answer, not the record. */
inline ask_set() {
    r = opened; pick(alive, 1, 15, SUBSET(alive, members[SLOT(r, 0)]) && ENOUGH(alive));
    if
    :: SUBSET(alive, members[SLOT(r, 0)]) && ENOUGH(alive) &&
       (recorded[r - 1] == 0 || recorded[r - 1] == alive) ->
        pending = alive; pending_r = r;
#ifdef ANSWER_FIRST
        answers[r - 1] = answers[r - 1] | (1 << alive)
#else
        recorded[r - 1] = alive
#endif
    :: else
    fi
}

inline finish_set() {
#ifdef ANSWER_FIRST
    recorded[pending_r - 1] = pending;
#else
    answers[pending_r - 1] = answers[pending_r - 1] | (1 << pending);
    /* One set a round leaves. */
    assert((answers[pending_r - 1] & (answers[pending_r - 1] - 1)) == 0);
#endif
    pending = 0; pending_r = 0
}

inline restart_countersigner() {
    restarts++;
    pending = 0; pending_r = 0;
#ifdef FORGETFUL
    recorded[0] = 0; recorded[1] = 0
#endif
}

/* A worker that restarts has other keys and another nonce, and the broker says from where it takes part. */
inline restart_worker() {
    pick(w, 0, 2, true);
    boots++;
    end_round(w);
#ifdef NO_FIRST_ROUND
    seen[w] = 0
#else
    seen[w] = opened
#endif
}

#ifdef UNSIGNED_ROSTER
inline own_roster() {
    pick(r, 1, ROUNDS, true); pick(m, 7, 15, SIZE(m) >= 3);
    if
    :: members[SLOT(r, 1)] == 0 && SIZE(m) >= 3 -> members[SLOT(r, 1)] = m
    :: else
    fi
}
#endif

inline hello() {
    pick(w, 0, 2, slot[w] != NONE);
    if
    :: slot[w] != NONE -> end_round(w)
    :: else
    fi
}

inline clean() { retire(); r = 0; w = 0; p = 0; alive = 0; m = 0; s = 0 }

#define GONE(s) SUBSET(members[s] & HONEST, stale[s])
/* A round that nobody can mask or answer any more is over: what it was makes no difference. */
inline retire() {
    if
    :: opened == 2 && pending_r != 1 && slot[0] > 1 && slot[1] > 1 && slot[2] > 1 &&
       GONE(0) && GONE(1) && members[1] == 0 ->
        members[0] = 0; stale[0] = 0; masked[0] = 0; dropped_of[0] = 0;
        self_of[0] = 0; self_of[1] = 0; self_of[2] = 0; self_of[3] = 0;
        recorded[0] = 0; answers[0] = 0
    :: else
    fi
}
#define ANY_SLOT (slot[0] != NONE || slot[1] != NONE || slot[2] != NONE)

active proctype adversary() {
end:
    do
#ifdef UNSIGNED_ROSTER
    :: atomic { own_roster(); clean() }
#endif
    :: atomic { opened < ROUNDS -> open_round(); clean() }
    :: atomic { opened > 0 -> mask_update(); clean() }
    :: atomic { pending == 0 && opened > 0 -> ask_set(); clean() }
    :: atomic { pending != 0 -> finish_set() }
    :: atomic { ANY_SLOT -> unmask(); clean() }
    :: atomic { restarts < 1 -> restart_countersigner() }
    :: atomic { boots < 1 -> restart_worker(); clean() }
    :: atomic { ANY_SLOT -> hello(); clean() }
    od
}

#else /* LIVE: an honest coordinator, workers that are silent when they like, a countersigner that restarts */

chan ask = [0] of { byte };
chan answer = [0] of { byte };
byte alive, answered, own_seeds, restarts, i;
bool fixed, asked, sum, given_up, done;

active proctype countersigner() {
    byte record, set;
end:
    do
    :: ask ? set ->
        if
        :: record == 0 -> record = set
        :: else
        fi;
        if
        :: answer ! record
        :: restarts < 2 -> restarts++; answer ! 0 /* it went away: ask again */
        fi
    od
}

#define OPENS(i) (SIZE(answered & ~(1 << (i))) >= T)
#define FINE(i) (!IN(alive, i) || OPENS(i))
#define ALL_OPEN (FINE(0) && FINE(1) && FINE(2) && FINE(3) && FINE(4) && FINE(5))
/* A sum comes where enough answer. */
#define enough (done && ALL_OPEN)

active proctype coordinator() {
    byte set, seeds, missing;
    /* Who sends a masked update. */
    i = 0;
    do
    :: i < N -> if :: alive = alive | (1 << i) :: skip fi; i++
    :: else -> break
    od;
    if
    :: !ENOUGH(alive) -> given_up = true; goto end_round
    :: else
    fi;
    do
    :: ask ! alive; answer ? set; if :: set != 0 -> break :: else fi
    od;
    assert(set == alive);
    /* Who answers the set. */
    i = 0;
    do
    :: i < N -> if :: IN(alive, i) -> answered = answered | (1 << i) :: skip fi; i++
    :: else -> break
    od;
    done = true;
    /* The seeds that are to be had: self seeds from shares; of pairs with the dropped, from the worker or from shares. */
    i = 0;
    do
    :: i < N ->
        if
        :: IN(alive, i) && !OPENS(i) -> missing++
        :: IN(alive, i) && OPENS(i) && alive != 63 && !IN(answered, i) && !PAIR_OPENS(i) -> missing++
        :: else
        fi;
        i++
    :: else -> break
    od;
    if
    :: missing == 0 -> sum = true
    :: else -> given_up = true
    fi;
end_round:
    skip
}

ltl comes { [] (enough -> <> sum) }
ltl ends { <> (sum || given_up) }

#endif

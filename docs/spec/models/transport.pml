/* Sealed transport: to whom a client seals, and how often its request is acted upon. docs/spec/transport.md, Model.
 *
 *   spin -a transport.pml && cc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan -m100000
 *
 * One client with one request, which it may seal twice; one enclave; a relay that delivers, drops, replays and
 * reorders, and sets when the enclave stops taking requests. Time passes; a host makes enclave time late by what it
 * likes, and a renewed lease makes it true again. Cryptography is ideal. Wrong variants, each of which must be
 * refuted: -DNO_POLICY, -DNO_BINDING, -DNO_NONCE, -DNO_CACHE, -DNO_DATE, -DTIME_BACK, -DNO_BAR, -DBAR_STARTED,
 * -DBAR_UNDATED, -DRETRY.
 */

#define SEALINGS 2
#define END 4    /* of time */
#define LATE 2   /* at most, of enclave time */
#define WINDOW 1 /* either side */

#ifdef NO_POLICY
#define ALLOWED(code) true
#else
#define ALLOWED(code) ((code) == 0)
#endif
#ifdef NO_BINDING
#define BOUND(quoted, stated) true
#else
#define BOUND(quoted, stated) ((quoted) == (stated))
#endif
#ifdef NO_NONCE
#define FRESH(asked) true
#else
#define FRESH(asked) (asked)
#endif

byte now, late;
byte latest;   /* enclave time, as the cache has seen it */

/* Client. Keysets: 0 is the enclave's, 1 the adversary's; code: 0 is what the trust file allows. */
bool asked;    /* the enclave has quoted for this client's nonce */
bool accepted;
byte sealed;   /* how often */
byte date[SEALINGS];

/* Enclave. */
byte entry[SEALINGS]; /* 0: none, 1: started, 2: barred */
bool said[SEALINGS];  /* a not-started statement exists */
bool stopping;
byte acted;

byte e, code, k, fresh;

#define ENCLAVE_TIME (now + late)
#ifdef TIME_BACK
#define CLOCK ENCLAVE_TIME
#else
#define CLOCK (latest > ENCLAVE_TIME -> latest : ENCLAVE_TIME)
#endif
#ifdef NO_DATE
#define DATED(e) true
#else
#define DATED(e) (date[e] <= CLOCK + WINDOW && CLOCK <= date[e] + WINDOW)
#endif
#ifdef BAR_UNDATED
#define BAR_DATED(e) true
#else
#define BAR_DATED(e) DATED(e)
#endif

inline some(var, high) {
    var = 0;
    do
    :: var < high -> var++
    :: break
    od
}

inline accept() {
    some(code, 1); some(k, 1); some(fresh, 1);
    if
    /* Allowed code quotes its own keyset alone, for this client if it was asked; changed code whatever it likes. */
    :: (code == 1 || !fresh || asked) && ALLOWED(code) && (code == 1 || BOUND(0, k)) && (code == 1 || FRESH(fresh)) ->
        accepted = true;
        assert(code == 0 && k == 0); /* secrecy: only allowed code has the key that the request is sealed to */
        assert(asked)                /* and it has quoted since the client asked */
    :: else
    fi
}

inline seal() {
    date[sealed] = now; sealed++
}

/* What a date window has closed over is forgotten. */
inline look() {
    latest = CLOCK;
    if
    :: entry[0] && latest > date[0] + WINDOW -> entry[0] = 0
    :: else
    fi;
    if
    :: entry[1] && latest > date[1] + WINDOW -> entry[1] = 0
    :: else
    fi
}

inline deliver() {
    some(e, SEALINGS - 1);
    if
    :: e < sealed && !stopping && DATED(e) ->
        look();
        if
#ifdef NO_CACHE
        :: entry[e] != 2 ->
#else
        :: entry[e] == 0 ->
#endif
            entry[e] = 1; acted++;
            /* The client's one request is acted upon once, however often it was sealed and delivered. */
            assert(acted <= 1)
        :: else
        fi
    :: e < sealed && stopping && BAR_DATED(e) ->
        look();
        if
#ifdef BAR_STARTED
        :: true -> entry[e] = 2; said[e] = true
#else
        :: entry[e] != 1 ->
#ifndef NO_BAR
            entry[e] = 2;
#endif
            said[e] = true
        :: else
#endif
        fi
    :: else
    fi
}

inline clean() { e = 0; code = 0; k = 0; fresh = 0 }

active proctype adversary() {
end:
    do
    :: atomic { now < END -> now++ }
    :: atomic { late < LATE -> late++ }
    :: atomic { late > 0 -> late = 0 }
    :: atomic { !asked -> asked = true }
    :: atomic { !accepted -> accept(); clean() }
    :: atomic { accepted && sealed == 0 -> seal() }
#ifdef RETRY
    :: atomic { sealed == 1 -> seal() }
#else
    :: atomic { sealed == 1 && said[0] -> seal() }
#endif
    :: atomic { stopping = !stopping }
    :: atomic { deliver(); clean() }
    od
}

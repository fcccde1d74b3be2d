/* Key release and lease: who gets a key and until when, whatever network, host and database do. docs/spec/key-release.md, Model.
 *
 *   spin -a release.pml && cc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan -m100000
 *
 * One broker, one tenant's key, one honest enclave, two sessions, a changed enclave that quotes what it likes.
 * The adversary delivers, holds back, replays and reorders everything, restarts the broker, restores the database
 * or the log of before a revocation. Cryptography is ideal. Wrong variants, each of which must be refuted:
 * -DNO_POLICY, -DNO_BINDING, -DNO_NONCE, -DNO_ROOT, -DNO_HOLDER, -DNO_RECHECK, -DNO_LEASE_END, -DANSWER_FIRST,
 * -DNONCE_AGAIN, -DNO_EAR_NONCE, -DFROM_ARRIVAL, -DNO_WIPE.
 */

#define SESSIONS 2
#define END 5   /* of time */
#define LEASE 2
#define NONE 255
#define IN(set, s) (((set) >> (s)) & 1)

/* Keysets: 0 is the honest enclave's, 1 the adversary's. Code: 0 is what the policy allows, 1 is changed. */
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
#define FRESH(quoted, s) true
#else
#define FRESH(quoted, s) ((quoted) == (s))
#endif
/* What log, database and holder say of the key: 0 active, 1 revoked. All agree, or nothing is decided. */
#ifdef NO_ROOT
#define ROWS_FIT true
#else
#define ROWS_FIT (row == logged)
#endif
#ifdef NO_HOLDER
#define LOG_FITS true
#else
#define LOG_FITS (logged == held)
#endif
#define ACTIVE (ROWS_FIT && LOG_FITS && !row)

byte now;

/* Broker. */
byte state[SESSIONS];     /* 0: none, 1: challenged, 2: nonce used up, 3: attested */
byte keyset[SESSIONS];    /* attested */
byte since[SESSIONS], until[SESSIONS]; /* the lease; until 0: none */
byte granted[SESSIONS];   /* 1: may have the key, which is being unwrapped; 2: decided, on its way into the log */
byte epoch_of[SESSIONS];  /* of the rows, when it was granted */
byte out;                 /* bit s: a release left for session s */
byte recorded;            /* bit s: its decision is in the log */
bool row, logged, held;
bool revoking, revoked;   /* begun; answered */
byte revoked_at;

/* The honest enclave quotes its own keyset only, for nonces it was given. */
byte quoted;              /* bit s: for the nonce of session s */

/* Honest enclave. */
byte nonce = NONE, used, got_at;
byte lease_since, lease_until, lease_at; /* until 0: no lease */
bool key;

/* Its time: what the lease began with, and what has passed since it had the nonce. */
#ifdef FROM_ARRIVAL
#define ENCLAVE_TIME (lease_since + (now - lease_at))
#else
#define ENCLAVE_TIME (lease_since + (now - got_at))
#endif

byte s, code, k, q;

inline some(var, high) {
    var = 0;
    do
    :: var < high -> var++
    :: break
    od
}

inline tick() {
    now++;
#ifndef NO_WIPE
    if
    :: lease_until && ENCLAVE_TIME >= lease_until -> key = false; lease_until = 0; lease_since = 0; lease_at = 0
    :: else
    fi
#endif
}

inline auth() {
    some(s, SESSIONS - 1);
    if
    :: state[s] == 0 && (s == 0 || state[s - 1] != 0) -> state[s] = 1
    :: else
    fi
}

/* The host gives the enclave the nonce of a session, which nobody could know before. */
inline challenge() {
    some(s, SESSIONS - 1);
    if
#ifdef NONCE_AGAIN
    :: state[s] != 0 ->
#else
    :: state[s] != 0 && !IN(used, s) ->
#endif
        used = used | (1 << s);
        nonce = s; got_at = now;
        quoted = quoted | (1 << s);
        key = false; lease_until = 0; lease_since = 0; lease_at = 0
    :: else
    fi
}

/* Any evidence that exists, with any keyset stated beside it, to any session. */
inline attest() {
    some(s, SESSIONS - 1); some(code, 1); some(k, 1); some(q, SESSIONS - 1);
    if
    :: state[s] == 1 && (code == 1 || IN(quoted, q)) ->
        state[s] = 2;
        if
        /* Changed code quotes whatever keyset and nonce it likes. */
        :: ALLOWED(code) && (code == 1 || BOUND(0, k)) && (code == 1 || FRESH(q, s)) ->
            state[s] = 3; keyset[s] = k;
            /* Agreement: allowed code with this keyset has quoted in this very session. */
            assert(code == 0 && k == 0 && IN(quoted, s))
        :: else
        fi
    :: else
    fi
}

inline lease() {
    some(s, SESSIONS - 1);
    if
    :: state[s] == 3 && until[s] == 0 && ACTIVE ->
        since[s] = now; until[s] = now + LEASE;
        assert(!revoked)
    :: else
    fi
}

#ifdef NO_LEASE_END
#define LEASED(s) (until[s] != 0)
#else
#define LEASED(s) (until[s] != 0 && now < until[s])
#endif

inline ask_key() {
    some(s, SESSIONS - 1);
    if
    :: state[s] == 3 && LEASED(s) && ACTIVE && granted[s] == 0 -> granted[s] = 1; epoch_of[s] = row
    :: else
    fi
}

/* The key was unwrapped meanwhile, without the lock. */
inline seal() {
    some(s, SESSIONS - 1);
    if
#ifdef NO_RECHECK
    :: granted[s] == 1 && LEASED(s) ->
#else
    :: granted[s] == 1 && (!LEASED(s) || !ACTIVE || epoch_of[s] != row) -> granted[s] = 0
    :: granted[s] == 1 && LEASED(s) && ACTIVE && epoch_of[s] == row ->
#endif
        granted[s] = 2;
        /* No key to what was not attested, after a revocation, or past the lease. */
        assert(keyset[s] == 0);
        assert(!revoked);
        assert(now < until[s]);
#ifdef ANSWER_FIRST
        out = out | (1 << s)
#endif
    :: else
    fi
}

inline settle() {
    some(s, SESSIONS - 1);
    if
    :: granted[s] == 2 ->
        granted[s] = 0;
        recorded = recorded | (1 << s);
        out = out | (1 << s)
    :: else
    fi
}

/* What was on its way is gone; sessions are kept. */
inline crash() {
    granted[0] = 0; granted[1] = 0;
    /* No release that the log does not hold. */
    assert((out & ~recorded) == 0)
}

inline revoke() {
    if
    :: !revoking -> revoking = true; logged = true
    :: else -> held = true; row = true; revoked = true; revoked_at = now
    fi
}

/* The host gives the enclave any lease that was signed. */
inline take_lease() {
    some(s, SESSIONS - 1);
    if
#ifdef NO_EAR_NONCE
    :: nonce != NONE && until[s] != 0 && keyset[s] == 0 ->
#else
    :: nonce != NONE && until[s] != 0 && keyset[s] == 0 && s == nonce ->
#endif
        lease_since = since[s]; lease_until = until[s]; lease_at = now;
        if
        :: ENCLAVE_TIME >= lease_until -> lease_until = 0; lease_since = 0; lease_at = 0; key = false
        :: else
        fi
    :: else
    fi
}

inline take_key() {
    some(s, SESSIONS - 1);
    if
    :: IN(out, s) && keyset[s] == 0 && nonce == s && lease_until != 0 -> key = true
    :: else
    fi
}

inline serve() {
    /* Nothing is served past the end of the lease it rests on, nor longer than a lease after a revocation. */
    assert(now < lease_until);
    assert(!revoked || now < revoked_at + LEASE)
}

inline clean() { s = 0; code = 0; k = 0; q = 0 }

active proctype adversary() {
end:
    do
    :: atomic { now < END -> tick() }
    :: atomic { auth(); clean() }
    :: atomic { challenge(); clean() }
    :: atomic { attest(); clean() }
    :: atomic { lease(); clean() }
    :: atomic { ask_key(); clean() }
    :: atomic { seal(); clean() }
    :: atomic { settle(); clean() }
    :: atomic { granted[0] || granted[1] -> crash() }
    :: atomic { !revoked -> revoke() }
    :: atomic { revoked && row -> row = false }        /* the database of before */
    :: atomic { revoked && logged -> logged = false }  /* the log of before */
    :: atomic { take_lease(); clean() }
    :: atomic { take_key(); clean() }
    :: atomic { key -> serve() }
    od
}

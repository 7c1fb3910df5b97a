/* A connection: one socket to a server, full duplex, made anew when it breaks.
 *
 * Its state, moved by rds_conn_move() alone:
 *
 *                                                      +--> SECURING --+
 *                                                      |  (with TLS)   v
 *   IDLE --a command--> CREDENTIALS --> RESOLVING --> CONNECTING --> HANDSHAKE
 *    ^  ^                   |               |              |             |
 *    |  |                   +---------------+------+-------+-------------+
 *    |  |                                          | failed              | ok
 *    |  +--no more tries: commands fail-- BACKOFF <+                     v
 *    +--closed by the server while idle, or broken -------------------- READY
 *
 *   any --channel or pool closes--> CLOSED
 *
 * Nothing here blocks: the socket is non-blocking from the start, waiting is the
 * poller's, and a lookup has its own thread (rds_resolve.h).
 *
 * Who works on it.  `owner` is a lock that nobody waits for (rds_owner.h): a
 * worker holds it while it serves the connection, a submitting thread for the
 * length of one send (write-through).
 *
 * Why no command is left behind: a submitter pushes onto the inbox and then
 * attends to the source (or enters); the holder takes the inbox after it was
 * called and before it leaves. */
#ifndef RDS_CONN_H
#define RDS_CONN_H

#include <hiredis/hiredis.h>

#include "rds_channel.h"
#include "rds_owner.h"
#include "rds_resolve.h"
#include "rds_tls.h"

enum rds_conn_state {
    RDS_CONN_IDLE = 0,    /* no socket, and nobody asks for one */
    RDS_CONN_CREDENTIALS, /* the owner looks for credentials */
    RDS_CONN_RESOLVING,   /* a lookup is under way */
    RDS_CONN_CONNECTING,  /* connect() is under way */
    RDS_CONN_SECURING,    /* the handshake of TLS is under way */
    RDS_CONN_HANDSHAKE,   /* HELLO, AUTH, SELECT ... are under way */
    RDS_CONN_READY,       /* commands flow */
    RDS_CONN_BACKOFF,     /* the last try failed, the next is due */
    RDS_CONN_CLOSED,      /* for good */
};

#define RDS_STEPS 7 /* of a handshake, at most */

struct rds_conn {
    struct rt_source source;
    struct rds_channel *channel;
    struct rds_lease *lease;      /* what it is the connection of, or NULL: a channel's */
    struct rt_stack inbox;        /* submitted, not taken yet */
    _Atomic uint32_t owner;       /* RDS_FREE, RDS_BUSY, RDS_AGAIN */
    _Atomic uint32_t notes;       /* enum rt_what for the holder */
    _Atomic uint32_t state;       /* enum rds_conn_state */
    _Atomic uint64_t submitted;   /* commands taken in */
    _Atomic uint64_t finished;    /* commands sent home */
    _Atomic int sock;             /* the open socket, or -1: for a forked child */
    _Atomic uint32_t wanted;      /* 1: open it, though no command waits for that */
    _Atomic uint32_t disconnect;  /* 1: close it when it is quiet */

    /* All below: who holds `owner`. */
    struct rt_joblist pending;    /* not appended yet, in order */
    struct rt_joblist inflight;   /* appended, reply due, in order */
    size_t head_sent;             /* bytes of pending's head appended already */
    struct rt_joblist home;       /* finished, to be posted; one mailbox */
    size_t tombstones;            /* in inflight */

    struct rds_stream *stream;    /* with TLS, from SECURING on */
    redisContext *ctx;
    redisContextFuncs funcs;      /* hiredis's, with our read and write */
    struct rds_builder builder;
    struct rds_arena scratch;     /* replies to our own commands */
    uint64_t appended, written;   /* bytes of the stream so far */
    uint64_t skip;                /* bytes of an over-long string to drop */
    ssize_t last_read;            /* of the last read call */
    uint64_t quiet_since;         /* last byte read, or first command sent */
    bool readable, hung_up, watch_write;
    bool delays_acks;             /* asked for (rds_wire_heard()) */
    struct rt_loan *loan;         /* the socket is lent to a mailbox (rds_loan.c) */
    const void *company;          /* the mailbox of the last command taken */
    uint64_t company_run;         /* commands in a row that were its */
    uint64_t read_through;        /* reads by the mailbox's owner */
    uint64_t read_through_seen;   /* of them at the last tick */
    unsigned small_reads;         /* in a row, by workers */
    bool pinging;                 /* a health check is under way */
    bool spoiled;                 /* a command of it went home unwanted */

    struct rds_resolve *resolve;
    const struct addrinfo *address; /* the next to try */
    int fd;                       /* while connecting; then it is ctx's */
    uint64_t connect_by, retry_at;
    unsigned failures;            /* in a row */
    uint64_t answers_seen;        /* channel->answers when it asked for credentials */
    bool asking;                  /* counted in channel->asking */
    bool single_auth;             /* AUTH takes one argument here */
    char *username, *password;    /* for the next handshake */
    uint32_t identity;            /* channel->identity at the last handshake */
    uint8_t steps[RDS_STEPS];     /* handshake replies awaited */
    unsigned step, step_count;
    int last_error;               /* errno of the last try */
    unsigned jitter;              /* state of the back-off's random numbers */
};

int rds_conn_new(struct rds_channel *channel, struct rds_conn **out);
/* The same on zeroed memory of the caller's. */
void rds_conn_init(struct rds_conn *conn, struct rds_channel *channel);
void rds_conn_free(struct rds_conn *conn);

/* Try to hold conn.  When false, the holder goes round once more.
 * Thread: any.  Blocks: no. */
bool rds_conn_enter(struct rds_conn *conn, uint32_t note);

/* Let go.  False: somebody left a note, and conn is still held. */
bool rds_conn_leave(struct rds_conn *conn);

static inline enum rds_conn_state rds_conn_state(const struct rds_conn *conn)
{
    return (enum rds_conn_state)atomic_load(&conn->state);
}

static inline const struct rds_options *rds_conn_options(const struct rds_conn *conn)
{
    return &conn->channel->options;
}

/* Whether the channel or its pool is being closed. */
bool rds_conn_closing(const struct rds_conn *conn);

/* Whether it is the one beside the shared one (rds_aside.h). */
static inline bool rds_conn_is_aside(const struct rds_conn *conn)
{
    return conn == conn->channel->aside.conn;
}

/* Whether it is to be closed when it is quiet; what comes is sent on a new one. */
static inline bool rds_conn_leaving(const struct rds_conn *conn)
{
    return atomic_load(&conn->disconnect) != 0;
}

/* Handle what has come for conn.  Thread: worker. */
void rds_conn_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker);

/* Send at once what the inbox holds, if nobody else is at the connection.
 * Thread: the submitter.  GIL: may be held.  Blocks: no. */
void rds_conn_write_through(struct rds_conn *conn);

/* The same where it is ready; otherwise a worker makes it so.  Thread: any.  Blocks: no. */
static inline void rds_conn_send(struct rds_conn *conn)
{
    if (rds_conn_state(conn) == RDS_CONN_READY)
        rds_conn_write_through(conn);
    else
        rt_source_attend(&conn->source, 0);
}

/* Put a job, which is queued, into the inbox, or fail it when conn is closed; it may be
 * home already when this returns.  Returns whether conn is open.  Thread: any. */
bool rds_conn_accept(struct rds_conn *conn, struct rt_job *job);

/* Fail what is in the inbox of a closed connection.  Thread: any. */
void rds_conn_refuse(struct rds_conn *conn);

/* ---- rds_connect.c: from nothing to READY ------------------------------- */

void rds_conn_move(struct rds_conn *conn, enum rds_conn_state to);
/* mailbox is of a command that is there, whose owner can be asked for credentials; NULL
 * where they are not asked for. */
void rds_connect_begin(struct rds_conn *conn, struct rt_mailbox *mailbox, uint64_t now);
void rds_connect_step(struct rds_conn *conn, uint32_t what, uint64_t now,
                      struct rt_worker *worker);
/* This try failed with err; text is for the person. */
void rds_connect_failed(struct rds_conn *conn, int err, const char *text, uint64_t now);
/* The same for an errno. */
void rds_connect_failed_errno(struct rds_conn *conn, int error, uint64_t now);
/* Close the socket and whatever belongs to it. */
void rds_connect_close(struct rds_conn *conn);

/* ---- rds_login.c: credentials ------------------------------------------- */

/* Ask the owner of mailbox for them.  0, or what is wrong. */
int rds_login_ask(struct rds_conn *conn, struct rt_mailbox *mailbox);
/* The owner's answer, copied.  0; RT_EFULL: not there yet; or what is wrong. */
int rds_login_answer(struct rds_conn *conn);
/* conn does not wait for them any more; the last one wipes them. */
void rds_login_stop_asking(struct rds_conn *conn);
/* Those for this handshake: the configured ones, later ones in their place, or the
 * owner's answer.  False: no memory. */
bool rds_login_take(struct rds_conn *conn);
/* Wipe them. */
void rds_login_forget(struct rds_conn *conn);

/* ---- rds_handshake.c: what is said first --------------------------------- */

/* The socket is connected, and secured: say it. */
void rds_handshake_begin(struct rds_conn *conn, uint64_t now);
/* A reply to our own command has come, in conn->scratch. */
void rds_handshake_reply(struct rds_conn *conn);

/* ---- rds_exchange.c: commands out, replies in --------------------------- */

/* Take the inbox into pending. */
void rds_exchange_take(struct rds_conn *conn);
/* Write what the socket takes.  Returns whether any progress was made; the
 * connection may be lost afterwards. */
bool rds_exchange_write(struct rds_conn *conn);
/* Read what has come and send finished jobs home. */
bool rds_exchange_read(struct rds_conn *conn, struct rt_worker *worker);
/* The same, a single read by no worker.  Returns its bytes. */
size_t rds_exchange_read_once(struct rds_conn *conn);
/* Where replies go, and our read and write for hiredis. */
void rds_exchange_attach(struct rds_conn *conn);

/* ---- rds_wire.c: reading and writing the socket --------------------------- */

/* Our read and write for hiredis. */
void rds_wire_attach(struct rds_conn *conn);
/* The peer sent something so many ns after the last time, unasked.  Who only listens is
 * taken by Linux for one who receives a bulk, and has it acknowledge each read by a
 * segment of its own, the dearest part of a read on a loopback: ask for delayed
 * acknowledgements, one for two messages.  tcp(7), TCP_QUICKACK. */
void rds_wire_heard(struct rds_conn *conn, uint64_t pause);

/* ---- rds_settle.c: how jobs leave a connection ----------------------------- */

/* The job is done with err: it goes home with the next rds_settle_flush(). */
void rds_settle(struct rds_conn *conn, struct rds_job *job, int err);
/* The same, failed, with a text that says to which endpoint and what may have run. */
void rds_settle_failed(struct rds_conn *conn, struct rds_job *job, int err, bool maybe_run,
                       const char *text);
/* Post what is finished. */
void rds_settle_flush(struct rds_conn *conn);
/* The connection broke: keep what was not sent, fail what was. */
void rds_settle_lost(struct rds_conn *conn, int err, const char *why);
/* Fail what was not sent; fail everything. */
void rds_settle_pending(struct rds_conn *conn, int err, const char *text);
void rds_settle_all(struct rds_conn *conn, int err, const char *what);
/* Fail what is past its deadline; tell the poller of the next one. */
void rds_settle_expired(struct rds_conn *conn, uint64_t now);

/* ---- rds_loan.c: replies read by the thread that waits for them ---------- */

/* A read of so many bytes: lend the socket if that pays from here on. */
void rds_loan_consider(struct rds_conn *conn, size_t bytes, uint64_t now);
/* A held lease has received something: reader is told of it, if there is one. */
void rds_loan_heard(struct rds_conn *conn, const struct rt_job *reader);
/* Take the socket back if its holder waits elsewhere now.  Thread: worker. */
void rds_loan_look(struct rds_conn *conn);
/* Take the socket back, to the poller. */
void rds_loan_recall(struct rds_conn *conn);
/* Take it back to be closed. */
void rds_loan_end(struct rds_conn *conn);
/* A deadline passed: what is lent is read first; a loan that is not used ends, but for
 * a held lease's.  Thread: worker. */
void rds_loan_tick(struct rds_conn *conn, uint64_t now);

#if RT_DEBUG
/* Plant a bug in the matching of replies, for the test that must catch it. */
extern _Atomic bool rds_mutant_match;
#endif

#endif

/* A channel: one Redis endpoint as the pool sees it.
 *
 * It has the endpoint's options and one full-duplex connection (rds_conn.h),
 * which all commands share, but for those that need one for themselves
 * (rds_lease.h), and reads of large values (rds_aside.h).  Any thread submits.  Whoever submits sends as well,
 * when nobody else is at the connection just then; the worker that serves the
 * connection reads the replies, and sends what is left over.
 *
 * Options are copied.  The passwords are wiped from memory with the channel. */
#ifndef RDS_CHANNEL_H
#define RDS_CHANNEL_H

#include "../runtime/rt_pool.h"
#include "rds_aside.h"
#include "rds_job.h"

struct rds_options {
    const char *host; /* TCP, unless path is given */
    int port;
    const char *path; /* Unix socket */
    const char *username;
    const char *password; /* NULL: no authentication */
    const char *client_name;
    const char *lib_name, *lib_version; /* for CLIENT SETINFO, NULL: not sent */
    int db;
    int protocol;             /* 2 or 3 */
    bool ask_credentials;     /* ask the owner for them before each connect */
    bool keepalive;
    int keep_idle, keep_interval, keep_count; /* seconds, seconds, probes; 0: system's */
    uint64_t connect_timeout; /* ns for one attempt, RT_NEVER: none */
    uint64_t health_interval; /* ns idle before a PING goes first, 0: never */
    int connect_retries;      /* attempts after the first, -1: for ever */
    uint64_t backoff_base, backoff_cap; /* ns between attempts */
    bool backoff_jitter;
    uint64_t max_reply;       /* bytes of one reply */
    const struct rds_tls_options *tls; /* NULL: not encrypted; not kept */
    uint32_t max_leases;      /* connections for one caller each */
    uint64_t lease_wait;      /* ns to wait for one, 0: fail at once */
};

/* Counters; relaxed, read by anybody. */
struct rds_stats {
    _Atomic uint64_t replies;    /* matched to their command */
    _Atomic uint64_t batches;    /* reads that brought replies */
    _Atomic uint64_t writes;     /* sends */
    _Atomic uint64_t inline_sends; /* of them by the submitting thread */
    _Atomic uint64_t inline_reads; /* reads by the thread that waits for the replies */
    _Atomic uint64_t loans;      /* times the socket was lent to it */
    _Atomic uint64_t bytes_in, bytes_out;
    _Atomic uint64_t errors;     /* commands that failed in the client */
    _Atomic uint64_t timeouts;   /* of them by their deadline */
    _Atomic uint64_t cancelled;  /* commands that nobody waited for any more */
    _Atomic uint64_t dropped;    /* replies that nobody waited for any more */
    _Atomic uint64_t pipelines, pipelined; /* jobs that are one; commands in them */
    _Atomic uint64_t pushes;     /* out-of-band messages dropped */
    _Atomic uint64_t connects;   /* connections made */
    _Atomic uint64_t connect_failures;
    _Atomic uint64_t tls_handshakes; /* done */
    _Atomic uint64_t tls_resumed; /* of them with an earlier session */
    _Atomic uint64_t losses;     /* connections that broke */
    _Atomic uint64_t retained;   /* commands kept over a broken connection */
    _Atomic uint64_t high_water; /* most commands outstanding on one connection */
};

struct rds_conn;
struct rds_tls;
struct rds_tls_options;
struct rds_lessor;
struct rds_credentials;

struct rds_channel {
    struct rt_pool *pool;
    struct rds_options options; /* with copies of the strings */
    struct rds_tls *tls;        /* or NULL */
    _Atomic uint32_t refs;
    _Atomic uint32_t added;     /* 1: the connection is a source of the poller */
    _Atomic uint32_t closing;   /* 1: no new commands */
    _Atomic uint64_t close_at;  /* what is not done by then fails */
    _Atomic uint64_t held_since; /* what was pushed is kicked soon; 0: nothing is */
    struct rds_stats stats;
    struct rds_conn *conn;
    struct rds_aside aside;
    struct rds_lessor *lessor;
    _Atomic uint32_t parts;     /* what is to be closed with the channel */
    /* Called by a worker that needs credentials; answered, sooner or later, by
     * rds_channel_credentials().  The mailbox is that of a command that waits:
     * its owner can be asked.  Set before the first submit. */
    int (*credentials_needed)(void *user, struct rt_mailbox *mailbox);
    void *user;
    void (*user_free)(void *user);
    /* The last answer, for every connection that had asked before it came. */
    struct rds_credentials *_Atomic credentials;
    _Atomic uint64_t answers; /* so far */
    _Atomic uint32_t asking;  /* connections that wait for one */
    _Atomic uint32_t identity; /* counted up when later connections are somebody else's */
    struct rds_credentials *login; /* in place of the options' ones; under login_lock */
    atomic_flag login_lock;        /* held for a copy of two strings, never longer */
    struct rt_job *_Atomic close_job;
};

/* An answer; err is not 0 when the owner could not find any. */
struct rds_credentials {
    int err;
    char *username, *password; /* username may be NULL */
};

/* Answer a call of credentials_needed.  The strings are copied.
 * 0 or RT_ENOMEM.  Thread: any.  GIL: may be held.  Blocks: no. */
int rds_channel_credentials(struct rds_channel *channel, int err, const char *username,
                            const char *password);
void rds_credentials_free(struct rds_credentials *credentials);

/* Log in as somebody else from the next connection on.  The shared one is as it is;
 * those of blocking commands are not used again.  The strings are copied.  0 or RT_ENOMEM.
 * Thread: any.  GIL: may be held.  Blocks: no. */
int rds_channel_login(struct rds_channel *channel, const char *username, const char *password);

/* Connections that blocking commands have used are not used again: whoever answers
 * credentials_needed has new ones now.  Thread: any.  Blocks: no. */
void rds_channel_renewed(struct rds_channel *channel);

/* 0, RT_EINVAL or RT_ENOMEM.  Thread: any.  Keeps a reference to pool. */
int rds_channel_new(struct rt_pool *pool, const struct rds_options *options,
                    struct rds_channel **out);

/* Take in job's command, to be sent by the next rds_channel_kick().  Several
 * may be pushed before one kick, so that they leave in one write.  One that goes
 * aside is sent at once.
 * 0 or RT_ECLOSED, RT_ESYS (no threads); the job is the channel's only on 0.
 * Thread: any.  GIL: may be held.  Blocks: no. */
int rds_channel_push(struct rds_channel *channel, struct rds_job *job);

/* Send what was pushed, at once and from this thread when nobody else is at the
 * connection (write-through: one non-blocking send, which saves a thread hop),
 * otherwise by whoever is.
 * Thread: any.  GIL: may be held.  Blocks: no. */
void rds_channel_kick(struct rds_channel *channel);

/* What was pushed now is kicked soon: by RDS_HOLD after `now` a worker sends it at
 * the latest, if one has anything to do with the connection, and a millisecond
 * later in any case.  Several may hold; the first kick ends it for all.
 * Thread: any.  GIL: may be held.  Blocks: no. */
void rds_channel_hold(struct rds_channel *channel, uint64_t now);

#define RDS_HOLD (200 * RT_US)

/* As rds_channel_kick(), for a single command: written through when it is the
 * only one outstanding, and left to the worker otherwise, which is rung once for
 * any number of them. */
void rds_channel_kick_one(struct rds_channel *channel);

/* Whether a command that was just pushed is the only one outstanding.  When it is
 * not, a worker will look at the connection without being told, at the latest
 * when the reply comes that is waited for: see rds_channel.c. */
bool rds_channel_alone(const struct rds_channel *channel);

/* Push and kick. */
int rds_channel_submit(struct rds_channel *channel, struct rds_job *job);

/* Nobody waits for job's reply any more: see rt_job_cancel().
 * Thread: the job's owner.  Blocks: no. */
bool rds_channel_cancel(struct rds_channel *channel, struct rds_job *job);

/* Refuse new commands, finish what there is until close_at, fail the rest,
 * close the connection.  `job`, if given, is posted to its mailbox when that is
 * done; only the first such job is taken, RT_ECLOSED refuses another.
 * Thread: any.  Blocks: no. */
int rds_channel_close(struct rds_channel *channel, uint64_t close_at, struct rt_job *job);

/* The owner lets go; every job has come home.  Thread: any.  Blocks: no. */
void rds_channel_release(struct rds_channel *channel);

/* Close the shared connection where it is idle, and the one beside it, so that the next
 * command makes a new one; commands under way are finished first.
 * Thread: any.  Blocks: no. */
void rds_channel_disconnect(struct rds_channel *channel);

/* In a forked child: close the sockets, leave the rest as it is. */
void rds_channel_abandon(struct rds_channel *channel);

/* Commands submitted and not finished; connections open, without leases.  Hints. */
uint64_t rds_channel_depth(const struct rds_channel *channel);
uint64_t rds_channel_submitted(const struct rds_channel *channel);
unsigned rds_channel_connections(const struct rds_channel *channel);

/* "host:port" or the path, for messages.  Never the password. */
const char *rds_channel_endpoint(const struct rds_channel *channel);

/* For rds_conn.c and the leases. */
void rds_channel_part_opens(struct rds_channel *channel);
void rds_channel_part_closed(struct rds_channel *channel);
/* Make a source of the channel one of the poller's, once; `added` says whether it
 * is.  0 or an enum rt_err.  Thread: any.  Blocks: for microseconds (a list). */
int rds_channel_add_part(struct rds_channel *channel, _Atomic uint32_t *added,
                         struct rt_source *source);
void rds_channel_ref(struct rds_channel *channel);
void rds_channel_unref(struct rds_channel *channel);

#endif

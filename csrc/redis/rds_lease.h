/* Leases: connections that serve one caller at a time.
 *
 * A command that waits on the server (BLPOP, XREAD BLOCK ...) would hold up every
 * other one on a shared connection.  It is given a connection for itself: an idle
 * one, or a new one while the channel has fewer than max_leases; else it waits for
 * its turn, in order.  Waiting for the server is the poller's business, as with
 * every connection, so that a lease costs an epoll entry and a few kilobytes, and
 * no thread.
 *
 *     rds_lease_submit(channel, job);     as rds_channel_submit()
 *     rds_channel_cancel(channel, job);
 *
 * A lease (rds_lease.c) is a connection with a state:
 *
 *   TAKEN --its command went home, all is well--> IDLE --given again--> TAKEN
 *     |                                            |
 *     | cancelled, timed out, lost,                | lost, channel closes
 *     v could not connect                          v
 *   DEAD <-----------------------------------------+    closed, never used again
 *
 * or it is given for good, and TAKEN or SPARE until its end: see rds_held.h.
 *
 * Whose reply it is: a lease goes back to IDLE only when exactly one command was
 * sent and exactly its reply has come, and its caller was still there.  In every
 * other case the connection is closed, so that what the server may have popped for
 * a caller who is gone is lost with the connection, and reaches nobody else.
 *
 * The lessor (rds_lessor.c), one for each channel, gives out leases.  Its lists
 * belong to whoever holds `owner` (rds_owner.h), so neither a submitter nor a
 * worker ever waits for another.  What happened to a lease reaches it through
 * `reports`.  A lease that has become free, or dead, is reported before its
 * command goes home: who calls again at once finds the connection, or the room.
 *
 * Lifetimes.  A lease is kept by the lessor until its end was reported, by the
 * poller, and by each command that it was given, until its owner has done with it:
 * so an owner that cancels may touch the lease at any time. */
#ifndef RDS_LEASE_H
#define RDS_LEASE_H

#include "rds_conn.h"
#include "rds_held.h"
#include "rds_slots.h"

enum rds_lease_state { RDS_LEASE_TAKEN = 0, RDS_LEASE_IDLE, RDS_LEASE_DEAD, RDS_LEASE_SPARE };

struct rds_lease {
    struct rds_conn conn;
    struct rds_lessor *lessor;
    struct rt_node report;      /* in lessor->reports */
    _Atomic uint32_t refs;
    _Atomic uint32_t state;     /* enum rds_lease_state */
    _Atomic uint32_t reported;  /* 1: in lessor->reports, or about to be */
    _Atomic uint32_t dialed;    /* 1: its first try to connect is over */
    struct rds_held held;

    /* Who holds the lessor. */
    struct rds_lease *older, *newer; /* idle ones, by when they came back */
    struct rds_lease **slot;         /* its place in the lessor's table */
    bool listed;                     /* among the idle ones */
    bool dialing;                    /* counted in lessor->dialing */
};

/* Whether the lease (NULL: none) is held.  Thread: the owner of its connection. */
static inline bool rds_lease_is_held(const struct rds_lease *lease)
{
    return lease != NULL && atomic_load_explicit(&lease->held.on, memory_order_relaxed);
}

struct rds_lessor {
    struct rt_source source; /* for what waits: deadlines, cancels, the end */
    struct rds_channel *channel;
    struct rt_stack inbox;   /* commands submitted */
    struct rt_stack reports; /* leases with news */
    _Atomic uint32_t added;  /* as rds_channel's */
    _Atomic uint32_t owner;  /* rds_owner.h */
    _Atomic uint32_t notes;  /* enum rt_what, and what follows */
    _Atomic uint32_t closed; /* 1: for good */
    struct rds_resolve *_Atomic address; /* of the last lookup; for a second */
    _Atomic uint64_t address_until;

    /* Who holds `owner`. */
    struct rt_joblist waiting;
    struct rds_lease *newest; /* idle ones: the last to come back */
    struct rds_slots slots;
    uint32_t dialing;         /* leases on their first try to connect */
    bool by_name;             /* the endpoint's host must be looked up */
    bool told;                /* every lease was told to close */

    /* Written by who holds `owner`, read by anybody. */
    _Atomic uint64_t open, idle, queued;
    _Atomic uint64_t open_high, opened, commands;
    /* By anybody. */
    _Atomic uint64_t held, spares, pushes; /* held leases, of them SPARE; pushes for them */
    _Atomic uint64_t dying; /* dead ones, or about to be, that still count as open */
};

/* ---- for callers -------------------------------------------------------- */

/* Hand a command to a connection of its own.  0 or RT_ECLOSED, RT_ESYS, RT_ENOMEM;
 * the job is the channel's only on 0.  It comes home with RT_EFULL when all
 * connections are in use and the channel does not wait for one, or has waited.
 * job->patience counts from when it is sent; its deadline is not looked at.
 * Thread: any.  GIL: may be held.  Blocks: no. */
int rds_lease_submit(struct rds_channel *channel, struct rds_job *job);

/* Close the connections that are idle, and with in_use the others too: their
 * commands fail with RT_ELOST.  Thread: any.  Blocks: no. */
void rds_lease_disconnect(struct rds_channel *channel, bool in_use);

/* ---- for rds_channel.c -------------------------------------------------- */

int rds_lessor_new(struct rds_channel *channel, struct rds_lessor **out);
void rds_lessor_free(struct rds_lessor *lessor);

/* job was cancelled: close the connection that it has.
 * Thread: the job's owner.  Blocks: no. */
void rds_lease_cancelled(struct rds_channel *channel, struct rds_job *job);

/* The channel is closing. */
void rds_lessor_close(struct rds_lessor *lessor);

/* An answer came: look at the connections that wait for credentials. */
void rds_lessor_tell_asking(struct rds_lessor *lessor);

/* In a forked child: close the sockets. */
void rds_lessor_abandon(struct rds_lessor *lessor);

/* ---- for the connection that is a lease's ------------------------------- */

/* After each look of a worker.  Thread: who holds the connection. */
void rds_lease_look(struct rds_lease *lease);

/* After a reply that its caller has read himself (rds_loan.c).
 * Thread: the caller, who does not hold the connection. */
void rds_lease_was_read(struct rds_lease *lease);

/* A command is about to be sent: its time counts from here. */
void rds_lease_sending(struct rds_lease *lease, struct rds_job *job);

/* Its command is about to go home. */
void rds_lease_finished(struct rds_lease *lease);

/* Whether the address was looked up by another a moment ago; then it is in
 * conn->resolve. */
bool rds_lease_known_address(struct rds_lease *lease, uint64_t now);

/* conn->resolve has the result of a lookup. */
void rds_lease_looked_up(struct rds_lease *lease);

/* ---- between the two ---------------------------------------------------- */

/* A new lease, TAKEN, a source of the poller.  0 or RT_ENOMEM, RT_ESYS, RT_ECLOSED. */
int rds_lease_new(struct rds_lessor *lessor, struct rds_lease **out);
void rds_lease_ref(struct rds_lease *lease);
void rds_lease_unref(struct rds_lease *lease);

/* Tell the lessor that there is news of lease; somebody has to serve soon.
 * Thread: any.  Blocks: no. */
void rds_lease_report(struct rds_lease *lease);

/* Have lease closed by a worker.  Thread: any.  Blocks: no. */
void rds_lease_kill(struct rds_lease *lease);

/* The same, to be closed by whoever looks at it next. */
void rds_lease_let_die(struct rds_lease *lease);

/* Give up memory that larger replies needed, but for so many bytes.
 * Thread: who holds the connection. */
void rds_lease_shrink(struct rds_conn *conn, size_t keep);

static inline bool rds_lease_move(struct rds_lease *lease, uint32_t from, uint32_t to)
{
    /* Partner: the same line in another thread; one of them wins. */
    return atomic_compare_exchange_strong(&lease->state, &from, to);
}

/* The same to DEAD.  The lessor, which may look before the report is there, sees
 * from `dying` that room is coming. */
static inline bool rds_lease_end(struct rds_lease *lease, uint32_t from)
{
    atomic_fetch_add(&lease->lessor->dying, 1);
    if (rds_lease_move(lease, from, RDS_LEASE_DEAD))
        return true;
    atomic_fetch_sub(&lease->lessor->dying, 1);
    return false;
}

/* Give out what can be given out, unless somebody is at it: he goes round again.
 * Thread: any.  GIL: may be held.  Blocks: no. */
void rds_lessor_serve(struct rds_lessor *lessor);

#endif

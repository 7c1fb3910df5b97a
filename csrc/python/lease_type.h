/* offloop._core.Lease: a connection that one Python object has for itself.
 *
 * For: offloop.redis.Connection, and so pub/sub, MONITOR, WATCH and whatever else
 * belongs to a connection.  channel.hold() gives one, connected and logged in.
 *
 *     lease.write(b"...")           # None; or an awaitable where it was not sent yet
 *     while (reply := lease.take(False)) is ...:
 *         if not await lease.wait(timeout):
 *             break                 # nothing came in time; nothing is lost
 *     lease.close()
 *
 * Correct: a reply is handed over by take() and is never in a future, so a task that is
 * cancelled between being woken and running leaves it where it was.  A lease keeps its
 * channel, as rds_held.h wants it.  In a forked child it is its parent's: it is not
 * usable, and nothing of it is touched. */
#ifndef OFFLOOP_LEASE_TYPE_H
#define OFFLOOP_LEASE_TYPE_H

#include "bridge.h"
#include "channel_type.h"
#include "core.h"

struct rds_lease;

struct core_lease {
    PyObject_HEAD
    struct core_state *st;
    struct core_channel *channel; /* owned */
    struct rds_lease *rds;        /* NULL once it is closed */
    uint64_t generation;          /* of the pool that rds belongs to */
    struct core_job *reading;     /* who waits for a reply, or NULL */
    struct core_job *writing;     /* who waits until most is sent, or NULL */
    unsigned streak;              /* messages taken without a wait (messages.c) */
};

extern PyType_Spec core_lease_spec;
extern PyType_Spec core_push_spec;

/* A connection of its own to where channel leads: a future of a Lease, or NULL with an
 * exception set.  Thread: one that runs a loop.  GIL: held.  Blocks: no. */
PyObject *core_lease_hold(struct core_channel *channel);

/* The future of job, which waits for op, was cancelled.  True: the job is the caller's
 * again. */
bool core_lease_withdraw(PyObject *op, struct core_job *job);

/* Whether it is open, and this process's. */
bool core_lease_usable(const struct core_lease *lease);

/* Lease.wait(). */
PyObject *core_lease_wait(PyObject *op, PyObject *timeout);

/* A reply as an object; a push as a Push; an error as an exception instance. */
PyObject *core_lease_reply(struct core_lease *lease, const struct rds_arena *arena, bool raw);

#endif

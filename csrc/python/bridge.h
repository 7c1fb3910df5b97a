/* The loop bridge: one mailbox in one event loop's selector, for one pool.
 *
 * For: bringing finished jobs to the loop that made them.  A bridge is made at
 * the first call from a loop into a pool: it adds its mailbox's eventfd to the
 * loop with add_reader, once.  Its drain turns every finished job into a settled
 * future in one C call.
 *
 * Used: core_bridge_of(pool) gives the bridge of the running loop; a job is taken
 * from it with core_bridge_job(), submitted by its maker, and comes back to the
 * drain, which calls the job's `finish`.
 *
 * Correct: everything of a bridge is touched by its loop's thread alone, but for
 * the mailbox's own lock-free side.  The loop holds the bridge (through its
 * reader), the bridge holds the pool, and while jobs are out the bridge holds
 * itself, so a mailbox outlives every job that is to come home to it.  The loop is
 * known by a weak reference: the address of a closed loop is soon another's. */
#ifndef OFFLOOP_BRIDGE_H
#define OFFLOOP_BRIDGE_H

#include "../redis/rds_job.h"
#include "core.h"
#include "busy_poll.h"
#include "dues.h"
#include "future.h"

struct core_bridge;
struct core_channel;
struct core_pool;
struct core_job;

/* Turn a job that came home into a settled future.  `fut` is the job's owner,
 * taken off it: owned by the callee; NULL when nobody waits any more.  The callee
 * gives the job back with core_bridge_recycle() before it settles, since
 * settling runs other code.  Returns 0, or -1 as core_future_settle_result(). */
typedef int core_finish_fn(struct core_wake_ctx *w, struct core_bridge *bridge,
                           struct core_job *job, PyObject *fut);

/* A job that a worker made to tell the loop something: it is not counted, and its
 * finish function frees it (fut and w are NULL when the loop is gone). */
#define CORE_JOB_VISITOR 1

/* A job as the Python layer makes it.  base.owner is its future, or NULL. */
struct core_job {
    struct rds_job rds;
    core_finish_fn *finish;
    PyObject *empty_response; /* owned; the EMPTY_RESPONSE option, or NULL */
    PyObject *keep;           /* owned; what must outlive the job */
    struct core_bridge *bridge; /* whose job it is; it outlives the job */
    int (*send)(struct core_job *job); /* submit it: 0 or an enum rt_err */
    struct core_call *call;   /* owned; of a Python function, or NULL */
    uint64_t due;             /* when something is to be done about the call */
    uint32_t due_place;       /* in bridge->dues, from 1; 0: it is not in */
    struct core_job *prev_call, *next_call; /* of the calls that are out */
    bool raw;                 /* NEVER_DECODE */
    bool waits;               /* on the server, maybe for ever: it takes no room */
};

struct core_bridge {
    PyObject_HEAD
    struct core_state *st;
    struct core_pool *pool;   /* owned */
    PyObject *loop_ref;       /* weak reference */
    PyObject *reader_ref;     /* weak reference to the loop's callback, or NULL */
    struct rt_mailbox *mailbox;
    struct core_bridge *next; /* in the pool's list */
    struct core_bridge *next_orphan;
    bool listed, reading;
    bool orphan;              /* in the host's list */
    bool debug;               /* loop.get_debug() at the last drain */
    uint64_t outstanding;     /* jobs submitted and not home */
    uint64_t waiting;         /* of them those that wait on a server */
    uint64_t high_water;      /* most outstanding */
    uint64_t drains;
    struct core_channel *held; /* owned: commands were pushed and not kicked */
    uint64_t held_since;
    uint64_t held_count;      /* of those commands */
    uint64_t clock;           /* rt_now() when a command was last made, */
    bool ticked;              /* in the step of a task that is not over */
    unsigned draining;        /* drains on the stack */
    PyObject *mark;           /* owned, in a drain: what says that its loop runs here */
    struct rt_joblist parked; /* over the loop's bound, in order */
    struct rt_joblist unqueued; /* calls that the pool's queue had no room for, before those */
    uint64_t unwanted;        /* how many were cancelled there since the last sweep */
    struct core_job *seeker;  /* it is out, and home when the queue has room; or NULL */
    struct core_dues dues;    /* deadlines of calls */
    struct core_busy_poll busy_poll;
    struct core_job *calls;   /* those that are out */
    struct core_job *free;    /* through rds.base.next */
    unsigned free_count;
};

/* The bridge of the running loop, made if need be.  A borrowed reference, valid
 * until the next call into Python; NULL without an exception when no loop runs
 * in this thread, NULL with one on failure. */
struct core_bridge *core_bridge_of(struct core_pool *pool, PyObject **loop);

/* A fresh job, or NULL with MemoryError set. */
struct core_job *core_bridge_job(struct core_bridge *bridge, uint64_t deadline);

/* Give back a job that is not out. */
void core_bridge_recycle(struct core_bridge *bridge, struct core_job *job);

/* Send a job for fut (borrowed), now or when there is room.  One that waits on the
 * server is sent at once: it must not hold up the one that it waits for.  0, or -1
 * with an exception set and the job given back. */
int core_bridge_send(struct core_bridge *bridge, struct core_job *job, PyObject *fut);

/* Send many jobs, futs[i] (borrowed) for jobs[i], as core_bridge_send(); those that
 * there is room for by one call of send_all.  On -1 all are given back. */
int core_bridge_send_all(struct core_bridge *bridge, struct core_job **jobs, PyObject **futs,
                         size_t count, int (*send_all)(struct core_job *first,
                                                       struct rt_joblist *jobs));

/* A command was pushed into channel: have it kicked.  At once when it is the only
 * one outstanding.  In a drain the others wait for company: they leave with those
 * of the tasks that are woken next, after HOLD_NS at the latest, counted in whole
 * steps of tasks, or when the drain ends.  A task that computes for long after it
 * made a command does not delay it: the worker that reads the reply which is
 * waited for anyway takes it along. */
void core_bridge_kick(struct core_bridge *bridge, struct core_channel *channel);

/* Send a job at once, whatever else is out.  RT_OK, or an enum rt_err and the job
 * given back. */
int core_bridge_send_now(struct core_bridge *bridge, struct core_job *job, PyObject *fut);

/* The reader's callback, `_drain`: settle the future of every job that came home. */
PyObject *core_bridge_drain(PyObject *bridge, PyObject *unused);

/* Drop a job, and its future with it, that waits at a lease in a loop that is closed. */
void core_bridge_forget(struct core_job *job);
/* Whether the bridge's loop is closed or gone, and drop what came home for it.
 * Thread: any, GIL held. */
bool core_bridge_is_homeless(struct core_bridge *bridge);
void core_bridge_discard(struct core_bridge *bridge);

/* The same for all bridges whose loop was found gone while jobs were out. */
void core_bridge_discard_orphans(struct core_host *host);

/* Between bridge_send.c and bridge.c.  A job came home, or was not sent after all; its
 * future was cancelled; send what waited for room (0, or -1 with an exception set). */
void core_bridge_count_home(struct core_bridge *bridge, struct core_job *job);
void core_bridge_cancelled(struct core_state *st, PyObject *fut, void *job);
int core_bridge_unpark(struct core_wake_ctx *w, struct core_bridge *bridge);

/* The future knows of no job any more; the job's reference is the caller's, or dropped. */
static inline void core_loosen(PyObject *fut)
{
    struct core_future *f = (struct core_future *)fut;

    f->link.job = NULL;
    f->link.cancelled = NULL;
}

static inline void core_untie(PyObject *fut)
{
    core_loosen(fut);
    Py_DECREF(fut);
}

static inline struct core_job *core_job_of(struct rt_job *base)
{
    return RT_CONTAINER_OF(rds_job_of(base), struct core_job, rds);
}

/* Calls and commands that were sent and are not home. */
static inline uint64_t core_bridge_under_way(const struct core_bridge *bridge)
{
    return bridge->outstanding - (bridge->seeker != NULL);
}

/* Calls and commands that wait for room. */
static inline uint64_t core_bridge_unsent(const struct core_bridge *bridge)
{
    return bridge->parked.count + bridge->unqueued.count;
}

/* One of them is not wanted any more: they are swept out when there are many, so that a
 * pool that stands still does not gather them. */
void core_bridge_unwanted(struct core_bridge *bridge);

/* Drop them, and their futures with them. */
void core_bridge_drop_unsent(struct core_bridge *bridge);

/* The pool was closed: refuse them.  0, or -1 as core_future_settle_exception(). */
int core_bridge_refuse_unsent(struct core_wake_ctx *w, struct core_bridge *bridge);

/* Drop what came home to bridges whose loop is closed.  Thread: any, GIL held. */
void core_bridge_reap(struct core_pool *pool);

/* Take the bridge's reader off its loop; from any thread. */
int core_bridge_detach(struct core_bridge *bridge);

/* Have the bridge's loop fail the calls that are out (core_call_give_up()); from any
 * thread. */
int core_bridge_give_up(struct core_bridge *bridge);

extern PyType_Spec core_bridge_spec;

#endif

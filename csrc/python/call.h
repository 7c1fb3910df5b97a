/* A call of a Python function on a worker.
 *
 * For: Pool.call() and all that is like it.  A call is a job of the bridge whose run
 * function enters Python (host.h), calls the function in a copy of the caller's
 * context, keeps what came of it, and goes home; the drain settles the future.
 *
 * Correct: what a call refers to is touched by one thread at a time and under the GIL:
 * by the loop's before it is sent, by the worker's while it runs, by the loop's again
 * once it is home.  The function and its arguments are let go by the worker as soon as
 * the function has returned.
 *
 * An interrupt is called by the loop's thread, with the GIL held, while the function
 * of a call that was given up has not returned.  The worker needs the GIL to return,
 * so an interrupt that does not release it meets the right call and never the next. */
#ifndef OFFLOOP_CALL_H
#define OFFLOOP_CALL_H

#include "bridge.h"
#include "core.h"

struct rt_worker;
struct core_pool;
struct core_lane;

#define CORE_CALL_FEW 8 /* arguments kept in the call itself */

struct core_call {
    struct core_call *next_free;
    PyObject *fn;      /* owned, like all of these; NULL once it has run */
    PyObject *context; /* where it runs, or NULL: in the thread's own */
    PyObject *kwnames; /* or NULL */
    PyObject *interrupt; /* called when it is given up while it runs, or NULL */
    uint64_t patience;   /* ns until it is called again */
    PyObject *outcome; /* what it returned or raised */
    bool raised;
    bool inside;       /* the function was called and has not returned */
    bool unwanted;     /* it was given up just before, and is not called at all */
    Py_ssize_t nargs;  /* positional ones */
    PyObject **args;   /* the first place is free, for a bound method's self */
    PyObject *few[CORE_CALL_FEW + 1];
};

/* Whom a call is made through: a pool, a lane of it, with a limit in time. */
struct core_way {
    PyObject *self;         /* borrowed: has the method `call` */
    struct core_pool *pool; /* borrowed */
    struct core_lane *lane; /* borrowed, or NULL */
    uint64_t timeout;       /* ns, or RT_NEVER */
    PyObject *interrupt;    /* borrowed, or NULL */
};

/* A call as a vectorcall gives it: args[0] is the function.  NULL with an exception
 * set.  Thread: any, GIL held. */
struct core_call *core_call_new(struct core_state *st, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames);
void core_call_free(struct core_state *st, struct core_call *call);
void core_call_drop_free_list(struct core_native_state *native);

/* A call that was running is given up: interrupt it, and again, more and more seldom,
 * until its function returns: it may have been about to begin what can be interrupted.
 * An exception is written and dropped.  Other code may run.
 * Thread: the loop's, GIL held. */
void core_call_interrupt(struct core_job *job);

/* Call it, once; the outcome is in the call then.  Thread: worker, GIL held. */
void core_call_invoke(struct core_call *call);

/* The awaitable of a call made by `way.call(fn, *args, **kwargs)`. */
PyObject *core_call_start(const struct core_way *way, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *kwnames);

/* A list of the futures of many calls, (fn, args) each, submitted as one. */
PyObject *core_call_start_all(const struct core_way *way, PyObject *calls);

/* Fail every call of the bridge that is out: its pool was closed.  0, or -1 as
 * core_future_settle_exception().  Thread: the loop's. */
int core_call_give_up(struct core_wake_ctx *w, struct core_bridge *bridge);

/* Set the exception of a pool whose initializer failed.  Returns -1. */
int core_raise_broken_pool(struct core_state *st);

/* Seconds as ns; None is RT_NEVER.  False with an exception set. */
bool core_timeout_of(PyObject *seconds, uint64_t *out);

#endif

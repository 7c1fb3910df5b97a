/* Workers inside Python: their thread states, and the gate they go in by.
 *
 * For: pool jobs that run Python code.  Such a job begins with core_host_enter(),
 * which gives the worker's thread its thread state, made at its first entry and kept
 * for its life, and takes the GIL.  The worker keeps the GIL from one such job to the
 * next and lets go of it before it does anything else (rt_worker.h).
 *
 * The gate.  The interpreter may end at any moment, while workers are anywhere.  Who
 * is in is counted, and the gate can be shut: then nobody goes in any more, and those
 * who are in are waited for, with a limit.  A worker that is still in, in a call that
 * does not return, is treated by CPython as it treats a daemon thread: it never gets
 * the GIL again, and ends when it asks for it.
 *
 * Correct: `inside` is raised before `shut` is looked at, and `shut` is set before
 * `inside` is looked at, both seq_cst, so either the worker turns back or it is waited
 * for.  A thread state is made, used and deleted by its own thread alone; after the
 * gate is shut idle workers' ones are the interpreter's to delete. */
#ifndef OFFLOOP_HOST_H
#define OFFLOOP_HOST_H

#include "../runtime/rt_worker.h"
#include "baton.h"
#include "busy_poll.h"
#include "core.h"

struct core_pool;

struct core_host {
    struct rt_host rt;
    PyInterpreterState *interp;
    _Atomic uint32_t refs;      /* the module's state, and each guest */
    _Atomic uint32_t inside;    /* workers that went in and did not come out */
    _Atomic uint32_t shut;
    _Atomic uint64_t submitted; /* executor's calls that are not done; under the GIL */
    struct core_baton baton;
    struct core_bridge *orphans; /* under the GIL: calls are out whose loop is gone */
    _Atomic uint32_t orphan_count;
    bool exiting;               /* under the GIL: the executor takes no more */
};

/* The host of an interpreter's pools, or NULL with MemoryError set. */
struct core_host *core_host_new(void);
void core_host_drop(struct core_host *host);

/* Wait for a moment until the loop that has just made the call has let go of the GIL and
 * looks for the result: to sleep for the GIL, and be woken, takes longer.  Only for a worker
 * that looked out for the call; others come when the loop sleeps.  Thread: worker. */
void core_host_meet(struct rt_worker *worker, const struct core_busy_poll *loop);

/* Have the worker hold the GIL, with its own thread state.  The first time it is
 * given its name, and pool's initializer is called.  False: the gate is shut, or
 * there is no memory, and nothing is held.
 * Thread: worker.  Blocks: for the GIL. */
bool core_host_enter(struct rt_worker *worker, struct core_pool *pool);

/* A call has ended: let go of the GIL if it was held for long.  Thread: worker, which
 * has entered. */
void core_host_share(struct rt_worker *worker);

/* _quit(grace), _forked(): see _core.pyi. */
PyObject *core_host_quit(PyObject *module, PyObject *seconds);
PyObject *core_host_forked(PyObject *module, PyObject *unused);

#endif

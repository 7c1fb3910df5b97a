/* offloop._core.Pool: the native pool as a Python object.
 *
 * For: making, sharing, measuring and closing a pool.  offloop.Pool derives from
 * it.
 *
 * Correct: the workers touch Python in calls only, each of which keeps the object
 * (host.h, bridge.h, executor.h), so it may die at any time: dealloc lets go of the native pool, which closes itself
 * without anybody waiting.  After a fork the child makes a new native pool at the
 * first use; the old one is left as it is, but for its descriptors. */
#ifndef OFFLOOP_POOL_TYPE_H
#define OFFLOOP_POOL_TYPE_H

#include "../runtime/rt_pool.h"
#include "core.h"

struct core_bridge;

struct core_pool {
    PyObject_HEAD
    struct core_state *st;
    struct rt_pool *rt;
    uint64_t generation;         /* counts forks this object has seen */
    unsigned workers;
    uint32_t queue;
    uint64_t busy_poll;          /* ns */
    struct core_bridge *bridges; /* borrowed; each takes itself off */
    struct core_bridge *last;    /* borrowed: the one used last */
    uint64_t past_rings;         /* eventfd writes of bridges that are gone */
    uint64_t past_busy_polls, past_busy_hits; /* the same */
    PyObject *prefix;            /* of its threads' names, or NULL */
    PyObject *initializer;       /* called by each thread before its first call, or NULL */
    PyObject *initargs;          /* a tuple, or NULL */
    bool broken;                 /* an initializer failed */
    PyObject *weakrefs;
    PyObject *dict;
};

/* Make a new native pool if this process is a fork of the one that made the
 * present one.  0, or -1 with an exception set. */
int core_pool_check_fork(struct core_pool *pool);

extern PyType_Spec core_pool_spec;

#endif

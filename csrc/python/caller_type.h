/* offloop._core.Caller and Lane: ways to call besides the pool's own.
 *
 * A Caller is a pool, or one of its lanes, with a limit in time for each call, or with
 * a function that interrupts those that are given up while they run.  A Lane is an ordered lane of a pool (rt_lane.h).  Both have the pool's `call`.
 *
 * Correct: the native lane is made at the first use, and again after a fork, where the
 * one that was inherited is left as it is: it is some moment of the parent's. */
#ifndef OFFLOOP_CALLER_TYPE_H
#define OFFLOOP_CALLER_TYPE_H

#include "../runtime/rt_lane.h"
#include "core.h"

struct core_pool;

struct core_lane {
    PyObject_HEAD
    struct core_state *st;
    struct core_pool *pool; /* owned */
    struct rt_lane *rt;
    uint64_t generation;    /* of the pool, when rt was made */
    bool pinned;
    uint64_t pending;       /* jobs of loops that are not home */
    PyObject *weakrefs;
    PyObject *dict;
};

/* Queue a job, or all of a list, at the lane's end: 0 or an enum rt_err. */
int core_lane_submit(struct core_lane *lane, struct rt_job *job);
int core_lane_submit_all(struct core_lane *lane, struct rt_joblist *jobs);

extern PyType_Spec core_caller_spec;
extern PyType_Spec core_lane_spec;

#endif

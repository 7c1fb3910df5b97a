/* Calls for concurrent.futures: submit().
 *
 * For: Pool as an Executor.  A submitted call is a job without a mailbox: the worker
 * that runs it settles its concurrent.futures.Future itself, as ThreadPoolExecutor's
 * threads do.
 *
 * Correct: each one keeps the pool, so that a pool nobody refers to any more ends only
 * when they are done, and each is counted in the host until then, so that the
 * interpreter waits for them at its end. */
#ifndef OFFLOOP_EXECUTOR_H
#define OFFLOOP_EXECUTOR_H

#include "call.h"

/* The future of fn(*args, **kwargs), args[0] being fn.  NULL with an exception set.
 * Thread: any, GIL held. */
PyObject *core_executor_submit(const struct core_way *way, PyObject *const *args,
                               Py_ssize_t nargs, PyObject *kwnames);

#endif

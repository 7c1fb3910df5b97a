/* The awaitable: one type that is an asyncio future and a coroutine at once.
 *
 * For: what a call into the core returns.  `await f`, `gather(f)`,
 * `wait_for(f)` see the future protocol; `create_task(f)` and
 * `TaskGroup.create_task(f)` see a coroutine that returns f's outcome.
 *
 * Used: core_future_new() when a command is made; in a drain
 * core_wake_begin(), core_future_settle_*() for each completion,
 * core_wake_end().  Outside a drain core_future_set_result() and
 * core_future_set_exception_obj(), which are what Python's set_result and
 * set_exception do.
 *
 * Correct: the state leaves PENDING exactly once, in core_future_finish().
 * A Task is stepped inside a settle only if nothing can tell the difference
 * from a turn of the loop: the drain runs directly under the loop (no task of
 * it is current), debug mode is off, and the Task's wakeup is the future's
 * only callback.  Everything else goes through loop.call_soon with the
 * callback's context.  set_result, set_exception and cancel are called by
 * user code, hence they never step a Task.
 *
 * Every function here: Thread: the future's loop.  GIL: held.  Blocks: no. */
#ifndef OFFLOOP_FUTURE_H
#define OFFLOOP_FUTURE_H

#include "core.h"

enum core_future_status {
    CORE_FUTURE_PENDING,
    CORE_FUTURE_CANCELLED,
    CORE_FUTURE_FINISHED,
};

/* What a pending future is the outcome of.
 * cancelled() is called exactly once, when cancel() ends a pending future,
 * after the state changed and before callbacks are scheduled; by then link is
 * empty again, so it cannot run twice.  It must not raise, and must not settle
 * futures.  Both fields are emptied when the future is settled. */
struct core_future_link {
    void *job;
    void (*cancelled)(struct core_state *st, PyObject *fut, void *job);
};

struct core_future {
    PyObject_HEAD
    struct core_state *st;
    PyObject *loop;

    /* Callbacks in order: the first one apart, as it is nearly always the
     * only one, then a list of (callback, context).  `more` may hold some
     * while `callback` is NULL, for the time of a remove_done_callback. */
    PyObject *callback;
    PyObject *context;
    PyObject *more;

    PyObject *result;
    PyObject *exception;
    PyObject *exception_tb;
    PyObject *cancel_msg;
    PyObject *source_tb;
    PyObject *weakrefs;

    /* The caller's own, free to set while the future is pending; owned,
     * visited, and dropped when it is settled or cancelled. */
    struct core_future_link link;
    PyObject *reply_callback;
    PyObject *reply_options;
    PyObject *owner;

    enum core_future_status status;
    bool blocking;                  /* _asyncio_future_blocking */
    bool log_tb;                    /* an exception nobody has looked at */
};

/* A pending future of `loop`.  `debug` is loop.get_debug(), which the caller
 * may have cached; it only decides whether the stack is recorded.
 * Ownership: a new reference, NULL with an exception set; loop is borrowed. */
PyObject *core_future_new(struct core_state *st, PyObject *loop, bool debug);

static inline bool
core_future_check(struct core_state *st, PyObject *op)
{
    return Py_IS_TYPE(op, st->future.type);
}

static inline bool
core_future_done(PyObject *fut)
{
    return ((struct core_future *)fut)->status != CORE_FUTURE_PENDING;
}

/* Settle from anywhere in the loop's thread; callbacks by call_soon.
 * InvalidStateError if the future is done.  value, exc: borrowed; exc is an
 * exception instance.  Returns 0, or -1 with an exception set. */
int core_future_set_result(PyObject *fut, PyObject *value);
int core_future_set_exception_obj(PyObject *fut, PyObject *exc);

/* Cancel; msg may be NULL.  Returns 1 if it was pending, 0 if it was done,
 * -1 with an exception set (cancelled all the same; call_soon failed). */
int core_future_cancel(PyObject *fut, PyObject *msg);

/* One drain: begin, settle any number, end.
 * loop must stay alive from begin to end. */
struct core_wake_ctx {
    struct core_state *st;
    PyObject *loop_borrowed;
    bool in_place;
    bool debug;                     /* loop.get_debug() */
};

/* Returns 0, or -1 with an exception set (nothing to end then). */
int core_wake_begin(struct core_state *st, PyObject *loop,
                    struct core_wake_ctx *w);
void core_wake_end(struct core_wake_ctx *w);

/* Settle one future of the drain's loop, and step what waits for it.  A done
 * (cancelled) future is left alone.  value, exc, fut: borrowed; the call keeps
 * fut alive itself.  Arbitrary Python code may run: any other future may be
 * cancelled, dropped or created meanwhile.
 * Returns 0, or -1 with KeyboardInterrupt or SystemExit set: this future is
 * settled, the caller stops the drain and passes the exception on.  Any other
 * error goes to loop.call_exception_handler. */
int core_future_settle_result(struct core_wake_ctx *w, PyObject *fut,
                              PyObject *value);
int core_future_settle_exception(struct core_wake_ctx *w, PyObject *fut,
                                 PyObject *exc);

/* ---- between the future_*.c files ------------------------------------- */

/* A callback and its context, taken off a future. Both owned. */
struct core_callback {
    PyObject *fn;
    PyObject *context;
};

/* Make a pending future done; the only place where status changes.  Takes one
 * of: result, exception (with its traceback kept), or neither for a cancel.
 * Borrows them.  Runs the cancelled hook, drops the caller's fields.  Leaves
 * the callbacks where they are. */
void core_future_finish(struct core_future *f, enum core_future_status to,
                        PyObject *result, PyObject *exception);

/* Give every callback to loop.call_soon, in order; empties the callbacks.
 * 0, or -1 with an exception set. */
int core_future_schedule(struct core_future *f);

/* loop.call_soon(fn, fut, context=context). 0, or -1 with exception. */
int core_future_call_soon(struct core_future *f, PyObject *fn,
                          PyObject *context);

/* Check and normalise what set_exception was given (class or instance).
 * A new reference to an instance, or NULL with an exception set. */
PyObject *core_future_exception_of(struct core_future *f, PyObject *exc);

/* The outcome as result() gives it: a new reference, or NULL with the
 * future's exception, CancelledError or InvalidStateError set. */
PyObject *core_future_outcome(struct core_future *f);

/* A new CancelledError carrying the message, or NULL. */
PyObject *core_future_cancelled_error(struct core_future *f);

/* Take a callback (borrowed; context may be NULL: a copy of the current one).
 * 0, or -1 with an exception set. */
int core_future_add_callback(struct core_future *f, PyObject *fn,
                             PyObject *context);

/* How many were equal to fn and removed, or -1 with an exception set. */
Py_ssize_t core_future_remove_callback(struct core_future *f, PyObject *fn);

/* All callbacks as a new list of (callback, context), or None if none. */
PyObject *core_future_callbacks(struct core_future *f);

/* The type's description (future_type.c). */
extern PyType_Spec core_future_spec;

/* tp_dealloc, tp_traverse, tp_clear, tp_finalize (future.c). */
void core_future_dealloc(PyObject *op);
int core_future_traverse(PyObject *op, visitproc visit, void *arg);
int core_future_tp_clear(PyObject *op);
void core_future_finalize(PyObject *op);
void core_future_drop_free_list(struct core_future_state *fs);

/* Tell the loop's exception handler about the exception now set, which is
 * cleared.  0, or -1 with KeyboardInterrupt or SystemExit set. */
int core_future_report(struct core_future *f, const char *message);

/* Set InvalidStateError "<message>". */
void core_future_invalid_state(struct core_future *f, const char *message);

/* The coroutine face (future_coro.c). */
PyObject *core_future_await(PyObject *op);
PySendResult core_future_am_send(PyObject *op, PyObject *arg, PyObject **out);
PyObject *core_future_next(PyObject *op);
PyObject *core_future_send(PyObject *op, PyObject *arg);
PyObject *core_future_throw(PyObject *op, PyObject *const *args,
                            Py_ssize_t nargs);
PyObject *core_future_close(PyObject *op, PyObject *ignored);

/* For whatever else is awaited.  Set StopIteration(value). */
void core_coro_return(PyObject *value);
/* Set the error that throw(*args) asks for.  0; or -1, with the error of a
 * throw() that was not called right. */
int core_coro_throw(PyObject *const *args, Py_ssize_t nargs);

#endif

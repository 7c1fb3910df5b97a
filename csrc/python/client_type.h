/* offloop._core.Client: the native half of offloop.redis.Redis.
 *
 * For: execute_command as one C call.  offloop.redis.Redis derives from this type
 * and from redis.asyncio.Redis, in this order, so that redis-py's own command
 * methods sit on it unchanged.
 *
 * execute_command chooses one of three ways:
 *   native    encode, make the awaitable, hand the job to the channel;
 *   leased    a command that may not share a connection, or a client that wants
 *             its own: self._execute_leased(), redis-py's way;
 *   deferred  no loop runs in this thread: self._execute_deferred(), a coroutine
 *             that sends when it is awaited.
 *
 * The channel belongs to the connection pool and is asked for at the first
 * command (self._open_channel()), and again when another connection pool is
 * assigned. */
#ifndef OFFLOOP_CLIENT_TYPE_H
#define OFFLOOP_CLIENT_TYPE_H

#include "channel_type.h"
#include "core.h"

struct core_client {
    PyObject_HEAD
    struct core_state *st;
    struct core_channel *channel; /* owned; NULL until asked for */
    PyObject *connection_pool;    /* owned */
    PyObject *callbacks;          /* owned: response_callbacks */
    bool leased_only;             /* every command goes redis-py's way */
};

/* Whether execute_command, looked up on this very object, is `how`, which is this
 * type's or the pipeline's: no subclass overrides it, nobody patched it, the
 * instance has none of its own.
 * 1, 0, or -1 with an exception set.  Thread: any.  GIL: held. */
int core_client_executes(struct core_client *client, PyObject *how);

/* Whether the instance has an execute_command of its own: what is left to ask of an
 * object of whose class the above is known.  As above. */
int core_client_is_changed(struct core_client *client);

/* execute_command(name, *args) by the native way, name being known.  NULL with
 * *declined true and no exception where that way is not open just now (no channel
 * yet, a client that is leased only, no running loop): execute_command finds the
 * right one then.  Thread: any.  GIL: held.  Ownership: a new reference, NULL with
 * an exception set. */
PyObject *core_client_send(struct core_client *client, PyObject *known, PyObject *name,
                           PyObject *const *args, Py_ssize_t nargs, bool *declined);

extern PyType_Spec core_client_spec;

/* ---- for pipeline_type.c: a pipeline is a client too ----------------------------- */

/* See to it that the client has its channel.  1: it has; 0: it goes redis-py's
 * way; -1: an exception is set. */
int core_client_open(struct core_client *client);

/* Call a method of self's with the same arguments. */
PyObject *core_call_instead(PyObject *self, PyObject *method, PyObject *const *args,
                            Py_ssize_t nargs, PyObject *kwnames);

int core_client_traverse(PyObject *op, visitproc visit, void *arg);
int core_client_clear(PyObject *op);
void core_client_dealloc(PyObject *op);

#endif

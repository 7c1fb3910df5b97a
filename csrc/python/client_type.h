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

extern PyType_Spec core_client_spec;

#endif

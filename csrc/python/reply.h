/* Replies to Python objects.
 *
 * bytes, or str when decoding; int, float, bool, None; big numbers as int;
 * verbatim strings without their type; lists, and lists for sets, since a set's
 * members may be unhashable (redis-py does the same); dicts; errors inside
 * aggregates as exception objects.  Built with a stack of its own, so that no
 * depth of nesting can overflow the C stack. */
#ifndef OFFLOOP_REPLY_H
#define OFFLOOP_REPLY_H

#include "../redis/rds_reply.h"
#include "channel_type.h"
#include "core.h"

/* The whole reply as a new reference; NULL with an exception set.  A reply that
 * is an error gives the exception instance and sets *is_error. */
PyObject *core_reply_object(struct core_channel *channel, const struct rds_arena *reply, bool raw,
                            bool *is_error);

/* The same for the reply at *at of an arena that has several; *at moves past it,
 * and *type is that of its first node. */
PyObject *core_reply_next(struct core_channel *channel, const struct rds_arena *arena,
                          uint32_t *at, bool raw, enum rds_type *type);

/* Move *at past the reply there.  Thread: any.  GIL: no need. */
void core_reply_skip(const struct rds_arena *arena, uint32_t *at);

/* The exception for a command that failed in the client: a new reference to an
 * instance, or NULL with an exception set. */
PyObject *core_reply_failure(struct core_channel *channel, int err,
                             const struct rds_arena *reply);

#endif

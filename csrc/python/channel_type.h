/* offloop._core.Channel: one Redis endpoint, as Python objects see it.
 *
 * For: owning the native channel.  A ConnectionPool of offloop.redis has one;
 * clients that share the connection pool share it.
 *
 * Correct: as for the pool, nothing waits for the object and it waits for
 * nothing.  Its options are kept to make the native channel anew in a forked
 * child. */
#ifndef OFFLOOP_CHANNEL_TYPE_H
#define OFFLOOP_CHANNEL_TYPE_H

#include "../redis/rds_channel.h"
#include "core.h"
#include "pool_type.h"

struct core_asker;

struct core_channel {
    PyObject_HEAD
    struct core_state *st;
    struct core_pool *pool;          /* owned */
    struct rds_channel *rds;
    uint64_t generation;             /* of the pool that rds belongs to */
    PyObject *options;               /* dict, as given */
    uint64_t timeout;                /* ns for a command, RT_NEVER: none */
    bool decode;                     /* decode_responses */
    PyObject *encoding;              /* str */
    PyObject *encoding_errors;       /* str */
    const char *encoding_utf8, *errors_utf8; /* of the two above */
    bool plain_utf8;                 /* utf-8, strict */
    struct core_asker *asker;        /* how a worker finds this object */
    PyObject *provider;              /* called for credentials, or NULL */
    PyObject *provider_error;        /* what it raised last */
    PyObject *retry;                 /* asked when a command failed, or NULL */
    bool retry_writes;               /* it is asked for those that change something too */
    PyObject *learned;               /* what the server said of names that are in no table:
                                        bytes in upper case to int, enum rds_sharing */
    PyObject *weakrefs;
};

/* Make the native channel anew in a forked child.  0, or -1 with an exception. */
int core_channel_check_fork(struct core_channel *channel);

extern PyType_Spec core_channel_spec;

#endif

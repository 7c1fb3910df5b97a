/* offloop._core.Pipeline: the native half of offloop.redis.client.Pipeline.
 *
 * For: queueing a command in one C call.  A command is encoded when it is queued,
 * into one buffer; its arguments are kept beside, for what redis-py shows of them
 * (command_stack, error texts) and does with them (response callbacks).
 *
 * Three things send a pipeline redis-py's way, on a connection of its own:
 * a command that may not share a connection, a connection pool that has no
 * channel, and WATCH.  Which way it goes is decided when it is executed
 * (_take() gives None for redis-py's), so nothing is lost by having queued
 * natively: command_stack makes redis-py's own list of what is queued.  From then
 * on that list is the truth, since the program may change it, and it is encoded
 * when the pipeline is executed. */
#ifndef OFFLOOP_PIPELINE_TYPE_H
#define OFFLOOP_PIPELINE_TYPE_H

#include "batch_type.h"
#include "client_type.h"

struct core_pipeline {
    struct core_client client;
    struct core_entries entries;
    struct rds_pipeline *wire;      /* the entries encoded, or NULL */
    struct core_channel *encoded_by; /* owned: whose encoding that is */
    PyObject *stack;                /* owned: the list that was given away, or NULL */
    PyObject *error;                /* owned: why a command cannot be encoded */
    bool leased;                    /* a command may not share a connection */
    bool watching, explicit_transaction;
    bool queues_itself;             /* a subclass overrides pipeline_execute_command */
};

extern PyType_Spec core_pipeline_spec;

/* ---- for methods.c -------------------------------------------------------------------- */

/* What a Method was called with. */
struct core_given {
    PyObject *method;
    PyObject *const *values; /* positional arguments, then those by name */
    Py_ssize_t nargs;
    PyObject *names;         /* tuple, or NULL */
};

/* Whether a command that is known may be queued just now. */
bool core_pipeline_queues(const struct core_pipeline *p);

/* Queue a command that is known (args.h) with its arguments; the pipeline as a new
 * reference, or NULL with an exception set. */
PyObject *core_pipeline_queue(struct core_client *client, const struct core_given *given,
                              PyObject *known, PyObject *const *args, Py_ssize_t nargs);

#endif

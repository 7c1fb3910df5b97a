/* A command's arguments to RESP, by redis-py's rules.
 *
 * bytes, bytearray and memoryview as they are; str in the client's encoding; int
 * and float by repr(); anything else, bool included, is a DataError.  The command's
 * name may hold several words ("CLIENT LIST"), which are sent apart. */
#ifndef OFFLOOP_ARGS_H
#define OFFLOOP_ARGS_H

#include "../redis/rds_cmd.h"
#include "../redis/rds_command.h"
#include "../redis/rds_pipeline.h"
#include "channel_type.h"
#include "core.h"

/* Encode args[0..nargs) into job, and say by *sharing which connection the command
 * needs; job is untouched when that is RDS_STATEFUL.  0, or -1 with an exception
 * set. */
int core_args_encode(struct core_channel *channel, struct rds_job *job, PyObject *const *args,
                     Py_ssize_t nargs, enum rds_sharing *sharing);

/* What is known of the command that name (str) names, and whether it may always
 * share a connection.  Ownership: a new reference, NULL with an exception set. */
PyObject *core_args_describe(struct core_state *st, PyObject *name, bool *shared);

/* core_args_encode() of a command that was described before and count arguments. */
int core_args_encode_known(struct core_channel *channel, struct rds_job *job, PyObject *known,
                           PyObject *const *args, Py_ssize_t count, enum rds_sharing *sharing);

/* The same two as one more command of a pipeline.  1; 0 when the command may not
 * share a connection, and then it is not appended; -1 with an exception set. */
int core_args_append_known(struct core_channel *channel, struct rds_pipeline *pipeline,
                           PyObject *known, PyObject *const *args, Py_ssize_t count);
int core_args_append(struct core_channel *channel, struct rds_pipeline *pipeline,
                     PyObject *const *args, Py_ssize_t nargs);

#endif

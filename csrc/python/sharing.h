/* What the server said of commands that are in no table here (rds_command.h).
 *
 * A channel keeps it by name: its server is the one that was asked.  Who asks is
 * pkg/offloop/redis/unknown.py.  Thread: any.  GIL: held.  Blocks: no. */
#ifndef CORE_SHARING_H
#define CORE_SHARING_H

#include "channel_type.h"

/* What a name that is in no table needs, as the server said; RDS_UNKNOWN: it was not
 * asked.  -1 with an exception. */
int core_channel_learned(struct core_channel *channel, const char *name, size_t len);

/* The methods `sharing` and `learn` of a channel. */
PyObject *core_channel_sharing(PyObject *channel, PyObject *name);
PyObject *core_channel_learn(PyObject *channel, PyObject *args);

#endif

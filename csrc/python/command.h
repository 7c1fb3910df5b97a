/* A command as a job: encoded, sent, and what its reply becomes when it comes home.
 *
 * For: whatever sends single commands: the client (client_type.h), a retry, a channel that
 * asks the server something itself.  The future of a command has the channel as its
 * owner, and the response callback with its options; finishing the job turns the reply
 * into what the caller gets, or asks whether the command is to be tried again.
 *
 * Thread: one that runs a loop.  GIL: held.  Blocks: no. */
#ifndef OFFLOOP_COMMAND_H
#define OFFLOOP_COMMAND_H

#include "client_type.h"
#include "core.h"

/* A command as it was called.  Where it is known (core_args_describe), args has no
 * name; otherwise the name is the first of them. */
struct core_command {
    PyObject *known, *name;
    PyObject *const *args;
    Py_ssize_t nargs;
    PyObject *kwnames;
    uint64_t now; /* when it was made */
};

/* Send it on client's channel, for loop, which is bridge's: over the shared connection,
 * or on one of its own where it waits on the server.  NULL with *leased true and no
 * exception: it may not share a connection.
 * Ownership: a new reference, or NULL with an exception set. */
PyObject *core_command_send(struct core_client *client, struct core_bridge *bridge,
                            PyObject *loop, const struct core_command *call, bool *leased);

/* Send a failed command again, as channel->retry was told of it.  A future of its
 * own, of which nobody is asked again. */
PyObject *core_command_resend(struct core_channel *channel, PyObject *call);

/* Send one command that is encoded already (a bytes object) over the channel's shared
 * connection, whatever command it is.  The future of its reply, NULL with an
 * exception set. */
PyObject *core_command_send_wire(struct core_channel *channel, PyObject *wire);

/* The response callback of a command: a new reference, or NULL.  -1: an exception. */
int core_find_callback(PyObject *callbacks, PyObject *name, PyObject **out);

bool core_is_awaitable(PyObject *value);

#endif

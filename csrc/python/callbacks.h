/* Some of redis-py's response callbacks in C.
 *
 * For: replies of streams, whose callbacks make a tuple and a dict of each entry and cost
 * more in Python than the command's whole way.
 *
 * Correct: the C function runs in the place of redis-py's own, which it is found by, and
 * only on a reply of the shape that it knows; for any other, redis-py's own runs and
 * gives its result or its exception. What a user has set as a callback is his. */
#ifndef OFFLOOP_CALLBACKS_H
#define OFFLOOP_CALLBACKS_H

#include "core.h"

/* value through the response callback, with options (NULL: none).  A new reference, or
 * NULL with an exception set. */
PyObject *core_apply_callback(struct core_state *st, PyObject *callback, PyObject *options,
                              PyObject *value);

extern PyMethodDef core_callbacks_functions[];

#endif

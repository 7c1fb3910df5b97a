/* offloop._core.Entry: a method with two faces, for a class attribute.
 *
 *     class Redis(Client):
 *         execute_command = Entry(Client.execute_command, function)
 *
 * On an instance it is the native method.  On the class it is the Python function, so
 * that whoever looks at the class (inspect.signature, iscoroutinefunction, the specs of
 * unittest.mock) sees what redis-py's class would show, an async function, and whoever
 * calls it through the class gets what such a function does.
 *
 * Correct: a method descriptor by its flag, so that `client.execute_command(...)` binds
 * nothing and costs what a built-in method costs. */
#ifndef OFFLOOP_ENTRY_H
#define OFFLOOP_ENTRY_H

#include "core.h"

extern PyType_Spec core_entry_spec;

/* The native method of an Entry, borrowed; NULL where op is none. */
PyObject *core_entry_native(struct core_state *st, PyObject *op);

#endif

/* offloop._core.Method: a command method of redis-py with a native short cut.
 *
 * For: the few commands that services call most.  redis-py's `get(name)` is a
 * Python function whose one statement calls execute_command; called through a
 * Method it costs no frame, no keyword arguments and no bound method.
 *
 * Used: Method(function, "GET", 1, 1) as an attribute of a class that derives from
 * Client; function is redis-py's own.  Called on an object with `least` to `most`
 * positional arguments, all of exactly the types str, bytes, int or float, it does
 * what execute_command("GET", *args) does.  `options` are parameters behind them
 * that become words (nx=True: NX) or words with a number (ex=60: EX 60).  `mapped` is for
 * xread(): the last argument is a dict, sent behind that word, first keys, then values;
 * `prefix`, for xreadgroup(), a word before the others.  For
 * everything else it calls function: for other keywords, counts and types, and where
 * that object's execute_command is not Client's, since whoever overrides it is to see
 * every command.  Hence errors, options and odd arguments are redis-py's to the letter.
 *
 * On a pipeline it queues instead: the same short cut, with the same conditions, and
 * without a mapping.
 *
 * Correct: the short cut is taken only where function would do nothing else than
 * hand its arguments on, in their order, behind the command's name.  The option
 * `keys`, which some of redis-py's methods pass besides, is for its client-side
 * caching and unknown to response callbacks.
 *
 * To Python code it is function: looked up on the class it gives function itself,
 * and all its attributes, __class__ too, are function's (what wrapt does for
 * instrumented functions).  So inspect.signature, autospec mocks and patch.object
 * find what they find in redis-py. */
#ifndef OFFLOOP_METHODS_H
#define OFFLOOP_METHODS_H

#include "core.h"

extern PyType_Spec core_method_spec;

/* The command's name, borrowed, and what redis-py's function hands to
 * execute_command for these arguments (positional ones first, then those of the
 * names): (args, options), a new reference or NULL with an exception set. */
PyObject *core_method_name_borrowed(PyObject *op);
PyObject *core_method_spell(PyObject *op, PyObject *const *values, size_t nargs, PyObject *names);

#endif

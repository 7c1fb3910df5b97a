/* Options from a Python dict, checked.
 *
 * Each reader takes what `dict` has under `key`; what is absent or None leaves *out as
 * it is, or NULL where it is a pointer.  They return 0, or -1 with a TypeError or a
 * ValueError that names the key.
 *
 * Thread: any.  GIL: held.  Blocks: no.  Ownership: what *out points to is the dict's. */
#ifndef CORE_OPTIONS_H
#define CORE_OPTIONS_H

#include "core.h"

/* The object itself, borrowed; NULL for None or nothing. */
PyObject *core_option(PyObject *dict, const char *key);
/* A str without NUL characters, as UTF-8. */
int core_option_text(PyObject *dict, const char *key, const char **out);
/* Bytes; and bytes without NUL, as a path or a text for OpenSSL is. */
int core_option_data(PyObject *dict, const char *key, const void **out, size_t *len);
int core_option_path(PyObject *dict, const char *key, const char **out);
int core_option_int(PyObject *dict, const char *key, long low, long high, int *out);
int core_option_bits(PyObject *dict, const char *key, uint64_t *out);
/* Seconds as nanoseconds; a billion and more is RT_NEVER. */
int core_option_seconds(PyObject *dict, const char *key, uint64_t *out);
int core_option_flag(PyObject *dict, const char *key, bool *out);

#endif

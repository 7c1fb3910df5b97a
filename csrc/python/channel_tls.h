/* The options of TLS, from a Python dict. */
#ifndef CORE_CHANNEL_TLS_H
#define CORE_CHANNEL_TLS_H

#include "core.h"

#include "../redis/rds_tls.h"

/* Read dict, as pkg/offloop/redis/tls.py makes it: text and paths are bytes, what is
 * absent is None or left out.  0, or -1 with TypeError or ValueError.
 * Thread: any.  GIL: held.  Ownership: what *out points to is the dict's. */
int core_read_tls(PyObject *dict, struct rds_tls_options *out);

#endif

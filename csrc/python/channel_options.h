/* The options of a channel and of its TLS, from the dicts that Python hands over.
 *
 * Both return 0, or -1 with TypeError or ValueError.
 * Thread: any.  GIL: held.  Ownership: what *out points to is the dict's. */
#ifndef CORE_CHANNEL_OPTIONS_H
#define CORE_CHANNEL_OPTIONS_H

#include "../redis/rds_channel.h"
#include "../redis/rds_tls.h"
#include "core.h"

/* As pkg/offloop/redis/options.py makes it. */
int core_read_options(PyObject *dict, struct rds_options *out);

/* As pkg/offloop/redis/tls.py makes it: text and paths are bytes. */
int core_read_tls(PyObject *dict, struct rds_tls_options *out);

#endif

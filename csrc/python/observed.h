/* Whether an application has switched redis-py's metrics on.
 *
 * redis-py's own code measures itself, so commands go its way then.  It keeps what says
 * so in two modules: a collector, once one was made, and before that an observability
 * instance with a provider.  Looking there costs two lookups in a dict; a client looks
 * when nothing of its loop is out, and otherwise once a millisecond, so that it costs a
 * busy one nothing and a quiet one sees it at once. */
#ifndef OFFLOOP_OBSERVED_H
#define OFFLOOP_OBSERVED_H

#include "core.h"

/* 1, 0, or -1 with an exception set.  `busy`: commands are out, so that a look that was
 * taken a moment ago will do.  Thread: any.  GIL: held.  Blocks: no. */
int core_observed(struct core_state *st, bool busy);

/* The same for who is busy and knows what time it is (rt_now()). */
int core_observed_at(struct core_state *st, uint64_t now);

#endif

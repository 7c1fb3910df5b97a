/* Host names to addresses without holding up a worker.
 *
 * getaddrinfo() cannot be interrupted and may take as long as the name servers
 * like.  If a worker made the call, a pool of one worker would miss deadlines
 * meanwhile, and a pool whose other workers run user code could not reconnect.
 * So a lookup has a short-lived thread of its own; who asked watches `fd` and may
 * go away at any time.  Numeric addresses need no lookup and no thread.
 *
 * Why it is right: the result is written before the eventfd, and the request is
 * freed by whoever lets go of it last. */
#ifndef RDS_RESOLVE_H
#define RDS_RESOLVE_H

#include <netdb.h>

#include "../runtime/rt_base.h"
#include "../runtime/rt_err.h"

struct rds_resolve {
    _Atomic uint32_t refs;
    _Atomic uint32_t done;
    int fd; /* readable when done */
    int gai_error;
    struct addrinfo *addresses;
    char *host;
    char service[8];
};

/* Start a lookup.  0, RT_ENOMEM or RT_ESYS.  When *done is true on return, the
 * result is there at once.
 * Thread: worker.  Blocks: no. */
int rds_resolve_start(const char *host, int port, struct rds_resolve **out);

static inline bool rds_resolve_done(const struct rds_resolve *r)
{
    return atomic_load_explicit(&r->done, memory_order_acquire) != 0;
}

/* Let go, whether it is done or not. */
void rds_resolve_release(struct rds_resolve *r);

#endif

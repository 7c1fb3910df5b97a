/* Channels to a front that ends TLS (tlsfront.h). */
#ifndef SECURED_H
#define SECURED_H

#include "commands.h"
#include "rds_tls.h"
#include "tlsfront.h"

/* What a client is told to trust the front for what it is. */
static inline struct rds_tls_options trusting(const struct front *front)
{
    return (struct rds_tls_options){
        .host = "localhost",
        .check_host = true,
        .verify = true,
        .verify_flags = X509_V_FLAG_TRUSTED_FIRST,
        .min_version = TLS1_2_VERSION,
        .security_level = -1,
        .ca_data = front->ca_pem,
        .ca_data_len = strlen(front->ca_pem),
        .ca_data_pem = true,
    };
}

static inline struct rds_options front_address(const struct front *front)
{
    struct rds_options o = quick_options();

    o.host = "127.0.0.1";
    o.port = front->port;
    o.max_leases = 64;
    return o;
}

static inline struct rds_channel *channel_to_front(struct rt_pool *pool, const struct front *front)
{
    struct rds_options o = front_address(front);
    struct rds_tls_options tls = trusting(front);

    o.tls = &tls;
    return channel_to(pool, &o);
}

static inline void front_to_server(struct front *front, struct front_options options)
{
    const char *path = getenv("OFFLOOP_TEST_REDIS_SOCK");

    MT_REQUIRE(path != NULL);
    front_start(front, &options, path);
}

#endif

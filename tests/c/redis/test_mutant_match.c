/* expect: failure, with RDS_MUTANT_MATCH */
/* The proof that the oracle sees a wrong reply: the exchange is compiled with a
 * matching that is off by one after a cancelled command, and the very check of
 * the stress test must say so. */
#include "oracle.h"

int main(void)
{
    struct rds_options options = server_options();
    struct rt_mailbox *mb;
    struct rt_pool *pool;
    struct oracle o;

    memset(&o, 0, sizeof o);
    o.seed = mt_seed();
    o.total = 20000;
    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    MT_REQUIRE(rt_pool_new(2, 64, &pool) == RT_OK);
    o.channel = channel_to(pool, &options);
    oracle_thread(&o);
    oracle_tell(&o, "off by one");
    rds_channel_release(o.channel);
    rt_pool_release(pool);
    rt_mailbox_release(mb);
    return mt_report("mutant_match");
}

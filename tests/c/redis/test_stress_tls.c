/* Everything at once over TLS: several threads with mailboxes of their own, cancelled
 * and expired commands, connections that are cut, new keys and new handshakes in the
 * middle, records of any size. No wrong reply, every command home once, nothing left. */
#include "oracle.h"
#include "secured.h"

#define THREADS 3

static void round_with(unsigned workers, struct front_options options, struct rt_mailbox *mb,
                       uint64_t *rnd)
{
    const bool cuts = options.cut_after != 0;
    pthread_t threads[THREADS];
    struct rds_tls_options tls;
    struct rds_options o;
    struct oracle oracle;
    struct rt_pool *pool;
    struct front front;
    char what[80];
    unsigned i;

    memset(&oracle, 0, sizeof oracle);
    front_to_server(&front, options);
    o = front_address(&front);
    tls = trusting(&front);
    o.tls = &tls;
    o.connect_retries = -1;
    MT_REQUIRE(rt_pool_new(workers, 64, &pool) == RT_OK);
    oracle.channel = channel_to(pool, &o);
    oracle.seed = mt_rand(rnd);
    oracle.total = MT_SCALE(25000);
    for (i = 0; i < THREADS; i++)
        threads[i] = mt_spawn(oracle_thread, &oracle);
    for (i = 0; i < THREADS; i++)
        mt_join(threads[i]);
    snprintf(what, sizeof what, "%u workers%s, %llu connections (%llu resumed), %llu stirs", workers,
             cuts ? ", cut" : "", (unsigned long long)rt_read(&oracle.channel->stats.connects),
             (unsigned long long)rt_read(&oracle.channel->stats.tls_resumed),
             (unsigned long long)(front.rekeys + front.renegotiations));
    oracle_tell(&oracle, what);
    MT_EQ(oracle.answered + oracle.cancelled + oracle.dropped + oracle.timed_out + oracle.lost +
              oracle.refused,
          THREADS * oracle.total);
    MT_CHECK(oracle.answered > THREADS * oracle.total / 20);
    if (cuts)
        MT_CHECK(rt_read(&oracle.channel->stats.tls_resumed) > 0);
    if (options.rekey_every + options.renegotiate_every != 0)
        MT_CHECK(front.rekeys + front.renegotiations > 3);
    MT_EQ(rds_channel_depth(oracle.channel), 0);
    end_channel(oracle.channel, mb);
    end_commands(pool, mb);
    front_stop(&front);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    struct rt_mailbox *mb;
    unsigned fds, i;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    fds = mt_fds();
    for (i = 1; i <= 4; i *= 2) {
        round_with(i, (struct front_options){ .version = TLS1_3_VERSION, .rekey_every = 5000 },
                   mb, &rnd);
        round_with(i, (struct front_options){ .version = TLS1_2_VERSION, .fragment = 512,
                                              .renegotiate_every = 20000 }, mb, &rnd);
        round_with(i, (struct front_options){ .version = TLS1_3_VERSION, .rekey_every = 5000,
                                              .cut_after = 10000 }, mb, &rnd);
        round_with(i, (struct front_options){ .version = TLS1_2_VERSION, .cut_after = 10000 }, mb,
                   &rnd);
    }
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("stress_tls");
}

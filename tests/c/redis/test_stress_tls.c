/* Everything at once over TLS: several threads with mailboxes of their own, cancelled
 * and expired commands, connections that are cut, new keys and new handshakes in the
 * middle, records of any size. No wrong reply, every command home once, nothing left. */
#include "oracle.h"
#include "secured.h"

#define THREADS 3

struct knife {
    struct front *front;
    struct rds_channel *channel;
    uint64_t seed;
    atomic_bool calm;
};

static void *cutter(void *arg)
{
    struct knife *knife = arg;
    uint64_t rnd = knife->seed;

    while (!atomic_load(&knife->calm)) {
        mt_sleep_ms(20 + (unsigned)(mt_rand(&rnd) % 60));
        await_replies(knife->channel, 100, &knife->calm);
        atomic_fetch_add(&knife->front->cuts, 1);
    }
    return NULL;
}

static void round_with(unsigned workers, struct front_options options, bool cuts,
                       struct rt_mailbox *mb, uint64_t *rnd)
{
    struct knife knife = { .seed = mt_rand(rnd), .calm = !cuts };
    pthread_t threads[THREADS], hand;
    struct rds_tls_options tls;
    struct rds_options o;
    struct oracle oracle;
    struct rt_pool *pool;
    struct front front;
    char what[80];
    unsigned i;

    memset(&oracle, 0, sizeof oracle);
    front_to_server(&front, options);
    knife.front = &front;
    o = front_address(&front);
    tls = trusting(&front);
    o.tls = &tls;
    o.connect_retries = -1;
    MT_REQUIRE(rt_pool_new(workers, 64, &pool) == RT_OK);
    knife.channel = oracle.channel = channel_to(pool, &o);
    oracle.seed = mt_rand(rnd);
    oracle.total = MT_SCALE(25000);
    hand = mt_spawn(cutter, &knife);
    for (i = 0; i < THREADS; i++)
        threads[i] = mt_spawn(oracle_thread, &oracle);
    for (i = 0; i < THREADS; i++)
        mt_join(threads[i]);
    atomic_store(&knife.calm, true);
    mt_join(hand);
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
                   false, mb, &rnd);
        round_with(i, (struct front_options){ .version = TLS1_2_VERSION, .fragment = 512,
                                              .renegotiate_every = 20000 }, false, mb, &rnd);
        round_with(i, (struct front_options){ .version = TLS1_3_VERSION, .rekey_every = 5000 },
                   true, mb, &rnd);
        round_with(i, (struct front_options){ .version = TLS1_2_VERSION }, true, mb, &rnd);
    }
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("stress_tls");
}

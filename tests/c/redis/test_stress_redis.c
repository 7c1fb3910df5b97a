/* Everything at once, with a real server: several threads with mailboxes of their
 * own, cancelled and expired commands, and connections that are cut at random.
 * No wrong reply, every command home once, nothing left. */
#include "oracle.h"

#define THREADS 3

static atomic_bool calm; /* no more cuts */
static struct rds_channel *_Atomic victim;

/* Ends the connections of everybody but itself, again and again. */
static void *cutter(void *arg)
{
    uint64_t rnd = (uintptr_t)arg;
    struct rds_options o = server_options();
    struct rds_channel *channel;
    struct rt_mailbox *mb;
    struct rt_pool *pool;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    MT_REQUIRE(rt_pool_new(1, 64, &pool) == RT_OK);
    channel = channel_to(pool, &o);
    while (!atomic_load(&calm)) {
        do_command(channel, mb, "CLIENT KILL TYPE normal SKIPME yes");
        mt_sleep_ms(1 + (unsigned)(mt_rand(&rnd) % 10));
        await_replies(atomic_load(&victim), 100, &calm);
    }
    end_channel(channel, mb);
    end_commands(pool, mb);
    rt_mailbox_release(mb);
    return NULL;
}

static void round_with(unsigned workers, bool cuts, struct rt_mailbox *mb, uint64_t *rnd)
{
    struct rds_options options = server_options();
    struct oracle o;
    pthread_t threads[THREADS], knife;
    struct rt_pool *pool;
    char what[60];
    unsigned i;

    memset(&o, 0, sizeof o);
    options.connect_retries = -1;
    options.protocol = 2 + (int)(mt_rand(rnd) % 2);
    MT_REQUIRE(rt_pool_new(workers, 64, &pool) == RT_OK);
    o.channel = channel_to(pool, &options);
    atomic_store(&victim, o.channel);
    o.seed = mt_rand(rnd);
    o.total = MT_SCALE(100000);
    atomic_store(&calm, !cuts);
    knife = mt_spawn(cutter, (void *)(uintptr_t)mt_rand(rnd));
    for (i = 0; i < THREADS; i++)
        threads[i] = mt_spawn(oracle_thread, &o);
    for (i = 0; i < THREADS; i++)
        mt_join(threads[i]);
    atomic_store(&calm, true);
    mt_join(knife);
    snprintf(what, sizeof what, "%u workers%s, %llu connections", workers, cuts ? ", cut" : "",
             (unsigned long long)rt_read(&o.channel->stats.connects));
    oracle_tell(&o, what);
    MT_EQ(o.answered + o.cancelled + o.dropped + o.timed_out + o.lost + o.refused,
          THREADS * o.total);
    MT_CHECK(o.answered > THREADS * o.total / 20);
    MT_CHECK(o.cancelled + o.dropped > 0);
    if (cuts)
        MT_CHECK(rt_read(&o.channel->stats.connects) > 1);
    MT_EQ(rds_channel_depth(o.channel), 0);
    end_channel(o.channel, mb);
    end_commands(pool, mb);
}

int main(void)
{
    static const unsigned workers[] = { 1, 2, 4 };
    uint64_t rnd = mt_seed();
    struct rt_mailbox *mb;
    unsigned fds, i;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    fds = mt_fds();
    for (i = 0; i < 3; i++) {
        round_with(workers[i], false, mb, &rnd);
        round_with(workers[i], true, mb, &rnd);
    }
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("stress_redis");
}

/* Messages read by the thread that waits for them: a held lease lent to its holder's
 * mailbox, and every way in which it comes back to the workers. */
#include "holders.h"

static struct rt_pool *pool;
static struct rt_mailbox *mb, *other, *far; /* far: whoever publishes */
static struct rds_channel *admin;
static unsigned published, taken;

static struct rds_channel *open_channel(void)
{
    struct rds_options o = lease_options(4, 0);

    return channel_to(pool, &o);
}

static uint64_t inline_reads(const struct rds_channel *channel)
{
    return rt_read(&channel->stats.inline_reads);
}

static const struct rt_mailbox *lent_to(struct rds_lease *lease)
{
    return atomic_load(&lease->held.lent_to);
}

static struct rds_lease *subscribe(struct rds_channel *channel)
{
    struct rds_lease *lease = hold(channel, mb);

    MT_EQ(write_text(lease, "SUBSCRIBE news\r\n"), RT_OK);
    rds_received_free(next(lease, mb));
    return lease;
}

static void publish(void)
{
    char text[40];

    snprintf(text, sizeof text, "PUBLISH news %u", published++);
    MT_EQ(ask_number(admin, far, text), 1);
}

/* Take what is there: the messages in their order, each once. */
static void take(struct rds_lease *lease)
{
    struct rds_received *received;
    char text[40];

    while ((received = rds_held_take(lease)) != NULL) {
        snprintf(text, sizeof text, "%u", taken++);
        MT_STR_EQ(said(received, 3), text);
        rds_received_free(received);
    }
}

/* A message comes to who waits for it. */
static void hear(struct rds_lease *lease, struct rt_mailbox *home)
{
    struct command c;

    wait_for_news(lease, home, &c, RT_NEVER);
    publish();
    command_home(home, &c);
    MT_EQ(c.job.base.err, RT_OK);
    rds_job_fini(&c.job);
    take(lease);
    MT_EQ(taken, published);
}

/* One message after the other until the mailbox's owner reads them himself. */
static void get_lent(struct rds_channel *channel, struct rds_lease *lease,
                     struct rt_mailbox *home)
{
    uint64_t before = inline_reads(channel);
    unsigned i;

    for (i = 0; i < 1000 && inline_reads(channel) < before + 2; i++)
        hear(lease, home);
    MT_REQUIRE(inline_reads(channel) >= before + 2);
    MT_CHECK(lent_to(lease) == home);
}

static void let_go(struct rds_channel *channel, struct rds_lease *lease)
{
    rds_held_release(lease);
    MT_EVENTUALLY(leases_open(channel) == 0);
    end_channel(channel, mb);
}

static void the_holder_reads(void)
{
    struct rds_channel *channel = open_channel();
    struct rds_lease *lease = subscribe(channel);
    uint64_t reads;
    unsigned i;

    get_lent(channel, lease, mb);
    reads = inline_reads(channel);
    for (i = 0; i < 100; i++)
        hear(lease, mb);
    MT_EQ(inline_reads(channel), reads + 100);
    MT_EQ(rt_read(&channel->stats.loans), 1);
    let_go(channel, lease); /* while it is lent */
}

static void nobody_waits(void)
{
    struct rds_channel *channel = open_channel();
    struct rds_lease *lease = subscribe(channel);
    unsigned i;

    get_lent(channel, lease, mb);
    for (i = 0; i < 10; i++) {
        publish();
        MT_EVENTUALLY(lent_to(lease) == NULL || mt_readable(mb->fd, 0));
        rt_mailbox_begin(mb);
        MT_CHECK(rt_mailbox_next(mb) == NULL);
    }
    MT_CHECK(lent_to(lease) == NULL);
    MT_EVENTUALLY(rt_read(&lease->held.count) == 10);
    take(lease);
    MT_EQ(taken, published);
    get_lent(channel, lease, mb); /* and it is lent again */
    let_go(channel, lease);
}

/* What nobody takes is bounded, and does not keep the loop busy. */
static void nobody_takes(void)
{
    struct rds_channel *channel = open_channel();
    struct rds_lease *lease = subscribe(channel), *publisher = hold(channel, far);
    unsigned i, more = 20000;
    char text[40];

    get_lent(channel, lease, mb);
    for (i = 0; i < more; i++) {
        snprintf(text, sizeof text, "PUBLISH news %u\r\n", published++);
        MT_EQ(write_text(publisher, text), RT_OK);
    }
    for (i = 0; lent_to(lease) != NULL && i < 100000; i++) {
        rt_mailbox_begin(mb);
        (void)rt_mailbox_next(mb);
    }
    MT_CHECK(lent_to(lease) == NULL);
    MT_EVENTUALLY(rt_read(&lease->held.count) >= RDS_HELD_MOST);
    mt_sleep_ms(20);
    MT_CHECK(rt_read(&lease->held.count) <= RDS_HELD_MOST + (16 << 10) / 32);
    rt_mailbox_begin(mb);
    MT_CHECK(rt_mailbox_next(mb) == NULL);
    MT_CHECK(!mt_readable(mb->fd, 20));
    for (i = 0; i < more; i++)
        next_says(publisher, far, "1");
    rds_held_release(publisher);
    for (take(lease); taken < published; take(lease))
        wait_until_told(lease, mb);
    let_go(channel, lease);
}

/* More short answers in one read than are kept: what comes then is not read, and does not
 * keep the loop busy either. */
static void short_answers(void)
{
    enum { N = 1500 };
    struct rds_channel *channel = open_channel();
    struct rds_lease *lease = subscribe(channel);
    struct command c;
    char *pings = malloc(N * 6 + 1);
    unsigned i;

    MT_REQUIRE(pings != NULL);
    for (i = 0; i < N; i++)
        memcpy(pings + 6 * i, "PING\r\n", 7);
    get_lent(channel, lease, mb);
    wait_for_news(lease, mb, &c, RT_NEVER);
    MT_EQ(write_text(lease, pings), RT_OK);
    command_home(mb, &c);
    rds_job_fini(&c.job);
    for (i = 0; rt_read(&lease->held.count) < N && i < MT_HANG_MS; i++) {
        rt_mailbox_begin(mb);
        (void)rt_mailbox_next(mb);
        mt_sleep_ms(1);
    }
    publish();
    for (i = 0; mt_readable(mb->fd, 20) && i < 1000; i++) {
        rt_mailbox_begin(mb);
        MT_CHECK(rt_mailbox_next(mb) == NULL);
    }
    MT_CHECK(i < 1000);
    for (i = 0; i < N; i++)
        next_says(lease, mb, "PONG");
    rds_received_free(next(lease, mb));
    taken = published;
    free(pings);
    let_go(channel, lease);
}

/* Its holder waits in another loop from now on; the first one is not looked at. */
static void a_holder_who_moves(void)
{
    struct rds_channel *channel = open_channel();
    struct rds_lease *lease = subscribe(channel);
    unsigned i;

    for (i = 0; i < 5; i++) {
        get_lent(channel, lease, mb);
        get_lent(channel, lease, other);
    }
    let_go(channel, lease);
    rt_mailbox_begin(other); /* ends the loan */
}

/* The loop is closed while it has the loan. */
static void a_loop_that_ends(void)
{
    struct rds_channel *channel = open_channel();
    struct rds_lease *lease = subscribe(channel);
    struct rt_mailbox *brief;
    unsigned fds = mt_fds();

    MT_REQUIRE(rt_mailbox_new(&brief) == RT_OK);
    get_lent(channel, lease, brief);
    rt_mailbox_release(brief);
    hear(lease, mb);
    MT_FDS_CLOSED(fds);
    MT_REQUIRE(rt_mailbox_new(&brief) == RT_OK);
    get_lent(channel, lease, brief);
    rt_mailbox_release(brief);
    let_go(channel, lease);
}

/* A worker keeps the deadline while the owner does not look, and a message that came in
 * time is no timeout. */
static void deadlines(void)
{
    struct rds_channel *channel = open_channel();
    struct rds_lease *lease = subscribe(channel);
    struct command c;
    unsigned i;

    get_lent(channel, lease, mb);
    for (i = 0; i < 3; i++) {
        wait_for_news(lease, mb, &c, rt_now() + 5 * RT_MS);
        MT_EVENTUALLY(rt_job_state(&c.job.base) == RT_JOB_DONE);
        command_home(mb, &c);
        MT_EQ(c.job.base.err, RT_ETIMEOUT);
        rds_job_fini(&c.job);
    }
    MT_CHECK(lent_to(lease) == mb); /* silence is no reason to take it back */

    wait_for_news(lease, mb, &c, rt_now() + 100 * RT_MS);
    publish();
    MT_EVENTUALLY(rt_job_state(&c.job.base) == RT_JOB_DONE);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    rds_job_fini(&c.job);
    take(lease);
    MT_EQ(taken, published);
    get_lent(channel, lease, mb);
    let_go(channel, lease);
}

static void killed(void)
{
    struct rds_channel *channel = open_channel();
    struct rds_lease *lease = subscribe(channel);
    struct command c;
    const char *why;

    get_lent(channel, lease, mb);
    wait_for_news(lease, mb, &c, RT_NEVER);
    MT_EQ(ask_number(admin, far, "CLIENT KILL TYPE pubsub"), 1);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    rds_job_fini(&c.job);
    MT_EQ(rds_held_lost(lease, &why), RT_ELOST);
    MT_CHECK(strstr(why, "lost") != NULL);
    MT_CHECK(next(lease, mb) == NULL);
    let_go(channel, lease);
}

static void closed(void)
{
    struct rds_channel *channel = open_channel();
    struct rds_lease *lease = subscribe(channel);
    struct command c;
    const char *why;

    get_lent(channel, lease, mb);
    wait_for_news(lease, mb, &c, RT_NEVER);
    MT_EQ(rds_channel_close(channel, RT_NEVER, NULL), RT_OK);
    command_home(mb, &c);
    rds_job_fini(&c.job);
    MT_EQ(rds_held_lost(lease, &why), RT_ECLOSED);
    rds_held_release(lease);
    rds_channel_release(channel);
}

/* Many at a time, some of which go while others hear. */
static void many(void)
{
    enum { N = 200 };
    struct rds_channel *channel;
    struct rds_options o = lease_options(N, 0);
    struct rds_lease *leases[N];
    struct command c[N];
    unsigned i, round;

    channel = channel_to(pool, &o);
    for (i = 0; i < N; i++)
        leases[i] = subscribe(channel);
    for (round = 0; round < 20; round++) {
        unsigned first = round * 5; /* these have gone */

        for (i = first; i < N; i++)
            wait_for_news(leases[i], mb, &c[i], RT_NEVER);
        /* The server may not have seen the last ones go. */
        MT_CHECK(ask_number(admin, far, "PUBLISH news x") >= N - first);
        for (i = first; i < N; i++) {
            struct rds_received *received;

            command_home(mb, &c[i]);
            rds_job_fini(&c[i].job);
            received = rds_held_take(leases[i]);
            MT_STR_EQ(said(received, 3), "x");
            rds_received_free(received);
            MT_CHECK(rds_held_take(leases[i]) == NULL);
        }
        for (i = first; i < first + 5; i++)
            rds_held_release(leases[i]);
        MT_EVENTUALLY(leases_open(channel) == N - first - 5);
    }
    MT_CHECK(inline_reads(channel) > N);
    for (i = 100; i < N; i++)
        rds_held_release(leases[i]);
    MT_EVENTUALLY(leases_open(channel) == 0);
    end_channel(channel, mb);
}

int main(void)
{
    struct rds_options o = server_options();
    unsigned fds;

    (void)mt_seed();
    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK && rt_mailbox_new(&other) == RT_OK &&
               rt_mailbox_new(&far) == RT_OK);
    fds = mt_fds();
    MT_REQUIRE(rt_pool_new(4, 64, &pool) == RT_OK);
    admin = channel_to(pool, &o);
    the_holder_reads();
    nobody_waits();
    nobody_takes();
    short_answers();
    a_holder_who_moves();
    a_loop_that_ends();
    deadlines();
    killed();
    closed();
    many();
    end_channel(admin, far);
    end_commands(pool, mb);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(far);
    rt_mailbox_release(other);
    rt_mailbox_release(mb);
    return mt_report("held_loan");
}

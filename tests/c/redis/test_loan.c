/* Read-through: a connection lent to the mailbox that waits for its replies, and
 * every way in which it comes back to the workers. */
#include "commands.h"
#include "fakeserver.h"

static struct rt_pool *pool;
static struct rt_mailbox *mb;

static uint64_t loans(const struct rds_channel *channel)
{
    return rt_read(&channel->stats.loans);
}

static uint64_t inline_reads(const struct rds_channel *channel)
{
    return rt_read(&channel->stats.inline_reads);
}

static void echo(struct rds_channel *channel, struct rt_mailbox *home, uint64_t number)
{
    struct command c;

    command_echo(&c, home, RT_NEVER, number);
    MT_REQUIRE(rds_channel_submit(channel, &c.job) == RT_OK);
    command_home(home, &c);
    MT_EQ(c.job.base.err, RT_OK);
    MT_CHECK(echoes(&c));
    rds_job_fini(&c.job);
}

/* One command after the other until the mailbox's owner reads the replies itself. */
static void get_lent(struct rds_channel *channel, struct rt_mailbox *home)
{
    uint64_t before = inline_reads(channel), i;

    for (i = 0; i < 100000 && inline_reads(channel) < before + 2; i++)
        echo(channel, home, i);
    MT_REQUIRE(inline_reads(channel) >= before + 2);
}

static void the_owner_reads(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);

    get_lent(channel, mb);
    MT_CHECK(loans(channel) >= 1);
    MT_CHECK(rt_read(&channel->stats.batches) >= inline_reads(channel));
    end_channel(channel, mb); /* closed while it is lent */
}

/* An owner that is busy does not look, and yet everything goes on: both replies
 * are read, and that of a command which was left to the workers to send. */
static void a_busy_owner(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct command first, second;
    uint64_t reads;

    get_lent(channel, mb);
    reads = inline_reads(channel);
    command_echo(&first, mb, RT_NEVER, 1);
    command_echo(&second, mb, RT_NEVER, 2);
    MT_REQUIRE(rds_channel_submit(channel, &first.job) == RT_OK);
    MT_REQUIRE(rds_channel_submit(channel, &second.job) == RT_OK);
    MT_EVENTUALLY(rds_channel_depth(channel) == 0);
    MT_EQ(inline_reads(channel), reads);
    command_home(mb, &first);
    command_home(mb, &second);
    MT_CHECK(echoes(&first) && echoes(&second));
    rds_job_fini(&first.job);
    rds_job_fini(&second.job);
    get_lent(channel, mb); /* and it is lent again */
    end_channel(channel, mb);
}

/* A reply that came in time is no timeout, however late the owner looks. */
static void no_false_timeout(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct command c;
    unsigned i;

    for (i = 0; i < 20; i++) {
        get_lent(channel, mb);
        command_echo(&c, mb, rt_after(rt_now(), 20 * RT_SEC), i);
        MT_REQUIRE(rds_channel_submit(channel, &c.job) == RT_OK);
        MT_EVENTUALLY(rds_channel_depth(channel) == 0);
        command_home(mb, &c);
        MT_EQ(c.job.base.err, RT_OK);
        MT_CHECK(echoes(&c));
        rds_job_fini(&c.job);
    }
    end_channel(channel, mb);
}

/* Another mailbox's command takes the connection away from the first. */
static void another_mailbox(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct rt_mailbox *other;
    struct command c;
    uint64_t i;

    MT_REQUIRE(rt_mailbox_new(&other) == RT_OK);
    get_lent(channel, mb);
    for (i = 0; i < 200; i++) {
        echo(channel, other, i); /* nobody looks into mb meanwhile */
        echo(channel, mb, i);
    }
    /* Both at once, and one of them is not looked at. */
    get_lent(channel, mb);
    command_echo(&c, mb, RT_NEVER, 77);
    MT_REQUIRE(rds_channel_submit(channel, &c.job) == RT_OK);
    for (i = 0; i < 50; i++)
        echo(channel, other, i);
    command_home(mb, &c);
    MT_CHECK(echoes(&c));
    rds_job_fini(&c.job);
    get_lent(channel, other);
    rt_mailbox_release(other); /* while it is lent to it */
    for (i = 0; i < 50; i++)
        echo(channel, mb, i);
    end_channel(channel, mb);
}

/* The mailbox that has the connection goes; the next command goes elsewhere. */
static void an_owner_that_goes(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    unsigned i, fds;

    echo(channel, mb, 0);
    fds = mt_fds();
    for (i = 0; i < 30; i++) {
        struct rt_mailbox *brief;

        MT_REQUIRE(rt_mailbox_new(&brief) == RT_OK);
        get_lent(channel, brief);
        rt_mailbox_release(brief);
    }
    MT_FDS_CLOSED(fds); /* a tick later the last one is closed, too */
    echo(channel, mb, 1);
    end_channel(channel, mb);
}

/* Replies too large for the owner's time are the workers' again. */
static void large_replies(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel = channel_to(pool, &o);
    struct command c;
    unsigned i;

    run_command(channel, mb, &c, "SETRANGE loan:large 5000000 x");
    rds_job_fini(&c.job);
    for (i = 0; i < 20; i++) {
        uint64_t reads;

        get_lent(channel, mb);
        reads = inline_reads(channel);
        run_command(channel, mb, &c, "GET loan:large");
        MT_EQ(command_node(&c).len, 5000001);
        MT_CHECK(inline_reads(channel) <= reads + 2);
        rds_job_fini(&c.job);
    }
    do_command(channel, mb, "DEL loan:large");
    end_channel(channel, mb);
}

/* ---- a server that closes --------------------------------------------------- */

static void hang_up_at_quit(struct peer *peer, void *user)
{
    (void)user;
    while (peer_command(peer)) {
        if (strcmp(peer->words[0], "QUIT") == 0)
            return;
        if (!peer_answer(peer))
            return;
    }
}

static void the_server_closes(void)
{
    struct rds_options o = quick_options();
    struct rds_channel *channel;
    struct fake fake;
    unsigned i;

    fake_start(&fake, false, hang_up_at_quit, NULL);
    o.path = fake.path;
    o.protocol = 2;
    channel = channel_to(pool, &o);
    for (i = 0; i < 20; i++) {
        struct command c;

        get_lent(channel, mb);
        run_command(channel, mb, &c, "QUIT"); /* the owner meets the end of file */
        MT_EQ(c.job.base.err, RT_ELOST);
        MT_EQ(c.job.maybe_run, 1);
        rds_job_fini(&c.job);
    }
    MT_EQ(rt_read(&channel->stats.losses), 20);
    end_channel(channel, mb);
    fake_stop(&fake);
}

static void close_when_idle(struct peer *peer, void *user)
{
    atomic_bool *close_now = user;

    while (!atomic_load(close_now) && !atomic_load(&peer->fake->stopping)) {
        if (!peer_waits(peer, 1))
            continue;
        if (!peer_command(peer) || !peer_answer(peer))
            return;
    }
    atomic_store(close_now, false);
}

/* Lent and idle: the server's close is noticed by a worker, before a command. */
static void the_server_closes_an_idle_one(void)
{
    struct rds_options o = quick_options();
    struct rds_channel *channel;
    atomic_bool close_now = false;
    struct fake fake;
    unsigned i;

    fake_start(&fake, false, close_when_idle, &close_now);
    o.path = fake.path;
    o.protocol = 2;
    channel = channel_to(pool, &o);
    for (i = 0; i < 10; i++) {
        get_lent(channel, mb);
        atomic_store(&close_now, true);
        MT_EVENTUALLY(rds_channel_connections(channel) == 0);
    }
    echo(channel, mb, 5);
    MT_EQ(rt_read(&channel->stats.errors), 0);
    end_channel(channel, mb);
    fake_stop(&fake);
}

int main(void)
{
    unsigned fds;

    (void)mt_seed();
    fds = mt_fds();
    MT_REQUIRE(rt_pool_new(2, 1024, &pool) == RT_OK);
    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    the_owner_reads();
    a_busy_owner();
    no_false_timeout();
    another_mailbox();
    an_owner_that_goes();
    large_replies();
    the_server_closes();
    the_server_closes_an_idle_one();
    end_commands(pool, mb);
    rt_mailbox_release(mb);
    MT_FDS_CLOSED(fds);
    return mt_report("loan");
}

/* Held leases with a real server: bytes out, replies in their order, pushes, waits that
 * are withdrawn or too late, the bound on what nobody reads, making room, the end. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "holders.h"

static struct rt_pool *pool;
static struct rt_mailbox *mb;
static struct rds_channel *admin;

static struct rds_channel *open_channel(uint32_t most, uint64_t wait, int protocol)
{
    struct rds_options o = lease_options(most, wait);

    o.protocol = protocol;
    return channel_to(pool, &o);
}

static unsigned held(const struct rds_channel *channel)
{
    return (unsigned)rt_read(&channel->lessor->held);
}

/* ---- out and in ------------------------------------------------------------------------- */

static void question_and_answer(int protocol)
{
    struct rds_channel *channel = open_channel(2, 0, protocol);
    struct rds_lease *lease = hold(channel, mb);
    char text[64];
    unsigned i;

    MT_EQ(held(channel), 1);
    for (i = 0; i < 100; i++) {
        snprintf(text, sizeof text, "*2\r\n$4\r\nECHO\r\n$6\r\n%06u\r\n", i);
        MT_EQ(write_text(lease, text), RT_OK);
        snprintf(text, sizeof text, "%06u", i);
        next_says(lease, mb, text);
    }
    /* Its state is its own: the shared connection has another database. */
    MT_EQ(write_text(lease, "SELECT 5\r\nSET held-key 1\r\n"), RT_OK);
    next_says(lease, mb, "OK");
    next_says(lease, mb, "OK");
    MT_EQ(ask_number(channel, mb, "EXISTS held-key"), 0);
    MT_EQ(write_text(lease, "NONSENSE\r\nDEL held-key\r\n"), RT_OK);
    next_begins(lease, mb, "ERR unknown command");
    next_says(lease, mb, "1");
    rds_held_release(lease);
    MT_EVENTUALLY(leases_open(channel) == 0);
    MT_EQ(held(channel), 0);
    end_channel(channel, mb);
}

static void deep_pipeline(void)
{
    enum { N = 20000 };
    struct rds_channel *channel = open_channel(1, 0, 3);
    struct rds_lease *lease = hold(channel, mb);
    unsigned i, wrong = 0;
    char text[64];

    /* More than the bound of what is kept: the server is held up, and nothing is lost. */
    for (i = 0; i < N; i++) {
        snprintf(text, sizeof text, "*2\r\n$4\r\nECHO\r\n$6\r\n%06u\r\n", i);
        MT_EQ(write_text(lease, text), RT_OK);
    }
    for (i = 0; i < N; i++) {
        struct rds_received *received = next(lease, mb);

        snprintf(text, sizeof text, "%06u", i);
        wrong += strcmp(said(received, 0), text) != 0;
        rds_received_free(received);
    }
    MT_EQ(wrong, 0);
    MT_EQ(rds_held_unsent(lease), 0);
    rds_held_release(lease);
    end_channel(channel, mb);
}

static void large(void)
{
    enum { LARGE = 8 << 20 };
    struct rds_channel *channel = open_channel(1, 0, 3);
    struct rds_lease *lease = hold(channel, mb);
    struct rds_received *received;
    char head[64], *bytes = malloc(LARGE);
    struct rds_node node;
    struct command c;
    uint32_t at = 0;

    MT_REQUIRE(bytes != NULL);
    memset(bytes, 'y', LARGE);
    snprintf(head, sizeof head, "*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n$%d\r\n", LARGE);
    MT_EQ(write_text(lease, head), RT_OK);
    MT_EQ(write_bytes(lease, bytes, LARGE), RT_OK);
    MT_EQ(write_text(lease, "\r\n"), RT_OK);
    rds_job_init(&c.job, mb, rt_now() + 60 * RT_SEC);
    atomic_store(&c.homes, 0);
    rds_held_wait_sent(lease, &c.job.base);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    MT_CHECK(rds_held_unsent(lease) <= RDS_HELD_UNSENT);
    next_says(lease, mb, "OK");
    MT_EQ(write_text(lease, "GET large\r\n"), RT_OK);
    received = next(lease, mb);
    MT_CHECK(rds_reply_next(&received->arena, &at, &node) && node.len == LARGE &&
             memcmp(node.str, bytes, LARGE) == 0);
    rds_received_free(received);
    do_command(admin, mb, "DEL large");
    free(bytes);
    rds_held_release(lease);
    end_channel(channel, mb);
}

/* A reply over the cap fails alone. */
static void over_the_cap(void)
{
    struct rds_options o = lease_options(1, 0);
    struct rds_channel *channel;
    struct rds_lease *lease;

    o.max_reply = 2000;
    channel = channel_to(pool, &o);
    lease = hold(channel, mb);
    do_command(admin, mb, "SETRANGE capped 5000 x");
    MT_EQ(write_text(lease, "GET capped\r\nPING\r\n"), RT_OK);
    next_begins(lease, mb, "the reply from ");
    next_says(lease, mb, "PONG");
    do_command(admin, mb, "DEL capped");
    rds_held_release(lease);
    end_channel(channel, mb);
}

/* ---- messages --------------------------------------------------------------------------- */

static void messages(int protocol)
{
    struct rds_channel *channel = open_channel(1, 0, protocol);
    struct rds_lease *lease = hold(channel, mb);
    struct rds_received *received;
    unsigned i;

    MT_EQ(write_text(lease, "SUBSCRIBE news\r\n"), RT_OK);
    received = next(lease, mb);
    MT_EQ((unsigned char)received->arena.data[0], protocol == 3 ? RDS_PUSH : RDS_ARRAY);
    MT_STR_EQ(said(received, 1), "subscribe");
    rds_received_free(received);
    for (i = 0; i < 60; i++) {
        MT_EQ(ask_number(admin, mb, "PUBLISH news hello"), 1);
        received = next(lease, mb);
        MT_STR_EQ(said(received, 1), "message");
        MT_STR_EQ(said(received, 2), "news");
        MT_STR_EQ(said(received, 3), "hello");
        rds_received_free(received);
    }
    rds_held_release(lease);
    end_channel(channel, mb);
}

/* Who only listens, over TCP, has his acknowledgements delayed, and asks for it again when
 * Linux has given it up: after 40 ms in which nothing was to be acknowledged with. */
static void delayed_acknowledgements(void)
{
    struct rds_options o = lease_options(1, 0);
    struct rds_channel *channel;
    struct rds_lease *lease;
    int prompt = 1, round;
    unsigned i;

    o.path = NULL;
    o.host = getenv("OFFLOOP_TEST_REDIS_HOST");
    o.port = (int)mt_env("OFFLOOP_TEST_REDIS_PORT", 0);
    channel = channel_to(pool, &o);
    lease = hold(channel, mb);
    MT_EQ(write_text(lease, "SUBSCRIBE news\r\n"), RT_OK);
    rds_received_free(next(lease, mb));
    for (round = 0; round < 3; round++) {
        /* On a busy machine two messages are far apart now and then. */
        for (i = 0, prompt = 1; prompt && i < 10000; i++) {
            socklen_t size = sizeof prompt;

            MT_EQ(ask_number(admin, mb, "PUBLISH news hello"), 1);
            rds_received_free(next(lease, mb));
            if (i > 4)
                MT_EQ(getsockopt(atomic_load(&lease->conn.sock), IPPROTO_TCP, TCP_QUICKACK,
                                 &prompt, &size), 0);
        }
        MT_EQ(prompt, 0);
        mt_sleep_ms(200);
    }
    rds_held_release(lease);
    end_channel(channel, mb);
}

/* What nobody reads is bounded here, and all of it comes once somebody does. */
static void nobody_reads(void)
{
    enum { N = 20000 };
    struct rds_channel *channel = open_channel(2, 0, 3);
    struct rds_lease *lease = hold(channel, mb), *publisher = hold(channel, mb);
    struct rds_received *received;
    unsigned i, wrong = 0;
    char text[40];

    MT_EQ(write_text(lease, "SUBSCRIBE flood\r\n"), RT_OK);
    rds_received_free(next(lease, mb));
    for (i = 0; i < N; i++) {
        snprintf(text, sizeof text, "PUBLISH flood %u\r\n", i);
        MT_EQ(write_text(publisher, text), RT_OK);
    }
    MT_EVENTUALLY(rt_read(&lease->held.count) >= RDS_HELD_MOST);
    mt_sleep_ms(20);
    MT_CHECK(rt_read(&lease->held.count) <= RDS_HELD_MOST + (16 << 10) / 32); /* one read more */
    for (i = 0; i < N; i++)
        next_says(publisher, mb, "1");
    rds_held_release(publisher);
    for (i = 0; i < N; i++) {
        received = next(lease, mb);
        snprintf(text, sizeof text, "%u", i);
        wrong += strcmp(said(received, 3), text) != 0;
        rds_received_free(received);
    }
    MT_EQ(wrong, 0);
    MT_EQ(rt_read(&lease->held.count), 0);
    MT_EQ(rt_read(&lease->held.bytes), 0);
    rds_held_release(lease);
    end_channel(channel, mb);
}

/* ---- waiting ---------------------------------------------------------------------------- */

/* A wait that is withdrawn, or ends too early, costs no message. */
static void waits(void)
{
    enum { N = 600 };
    struct rds_channel *channel = open_channel(1, 0, 3);
    struct rds_lease *lease = hold(channel, mb);
    unsigned i, got = 0, wrong = 0;
    struct rds_received *received;
    struct command still;
    char text[40];

    MT_EQ(write_text(lease, "SUBSCRIBE waits\r\n"), RT_OK);
    rds_received_free(next(lease, mb));
    for (i = 0; i < N; i++) {
        struct command publish, c;

        snprintf(text, sizeof text, "PUBLISH waits %u", i);
        command_text(&publish, mb, RT_NEVER, text);
        MT_REQUIRE(rds_channel_submit(admin, &publish.job) == RT_OK);
        wait_for_news(lease, mb, &c, i % 3 == 0 ? rt_now() + i % 200 * 1000 : RT_NEVER);
        if (i % 3 != 1 || !rds_held_withdraw(lease, &c.job.base))
            command_home(mb, &c);
        rds_job_fini(&c.job);
        command_home(mb, &publish);
        rds_job_fini(&publish.job);
        for (; (received = rds_held_take(lease)) != NULL; got++) {
            snprintf(text, sizeof text, "%u", got);
            wrong += strcmp(said(received, 3), text) != 0;
            rds_received_free(received);
        }
    }
    for (; got < N; got++) {
        received = next(lease, mb);
        snprintf(text, sizeof text, "%u", got);
        wrong += strcmp(said(received, 3), text) != 0;
        rds_received_free(received);
    }
    MT_EQ(wrong, 0);
    /* how the race above ends is the machine's choice; with nothing on its way there is no choice */
    wait_for_news(lease, mb, &still, rt_now() + 5 * RT_MS);
    command_home(mb, &still);
    MT_EQ(still.job.base.err, RT_ETIMEOUT);
    rds_job_fini(&still.job);
    wait_for_news(lease, mb, &still, RT_NEVER);
    MT_CHECK(rds_held_withdraw(lease, &still.job.base));
    rds_job_fini(&still.job);
    rds_held_release(lease);
    end_channel(channel, mb);
}

static void polled(void)
{
    struct rds_channel *channel = open_channel(1, 0, 3);
    struct rds_lease *lease = hold(channel, mb);
    struct rds_received *received = NULL;
    int i;

    rds_held_poll(lease);
    MT_CHECK(rds_held_take(lease) == NULL);
    MT_EQ(write_text(lease, "PING\r\n"), RT_OK);
    for (i = 0; received == NULL && i < MT_HANG_MS; i++) {
        rds_held_poll(lease);
        received = rds_held_take(lease);
        if (received == NULL)
            mt_sleep_ms(1);
    }
    MT_STR_EQ(said(received, 0), "PONG");
    rds_received_free(received);
    rds_held_release(lease);
    end_channel(channel, mb);
}

/* ---- room ------------------------------------------------------------------------------- */

static void room(void)
{
    struct rds_channel *channel = open_channel(2, 0, 3);
    struct rds_lease *first = hold(channel, mb), *second = hold(channel, mb);
    const char *why;
    struct command c;

    ask_to_hold(channel, mb, &c);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_EFULL);
    rds_job_fini(&c.job);
    lease_command(channel, mb, &c, RT_NEVER, "BLPOP room 0");
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_EFULL);
    rds_job_fini(&c.job);

    /* What is spare is there again when nobody needed the room ... */
    rds_held_spare(first);
    MT_CHECK(rds_held_resume(first));
    MT_EQ(write_text(first, "PING\r\n"), RT_OK);
    next_says(first, mb, "PONG");
    /* ... and gives way to who does. */
    rds_held_spare(first);
    do_command(admin, mb, "RPUSH room element");
    lease_command(channel, mb, &c, RT_NEVER, "BLPOP room 0");
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    rds_job_fini(&c.job);
    MT_CHECK(!rds_held_resume(first));
    MT_EVENTUALLY(rds_held_lost(first, &why) != RT_OK);
    MT_EQ(write_text(first, "PING\r\n"), RT_ELOST);
    rds_held_release(first);
    MT_EQ(rt_read(&channel->lessor->spares), 0);
    MT_EQ(write_text(second, "PING\r\n"), RT_OK);
    next_says(second, mb, "PONG");
    rds_held_release(second);
    end_channel(channel, mb);
}

/* A lease that has served blocking commands, and is lent to their mailbox perhaps. */
static void one_that_was_used(void)
{
    struct rds_channel *channel = open_channel(1, 0, 3);
    struct rds_lease *lease;
    struct command pop;
    unsigned i, round;

    for (round = 0; round < 5; round++) {
        for (i = 0; i < 12; i++) {
            do_command(admin, mb, "RPUSH used element");
            lease_command(channel, mb, &pop, RT_NEVER, "BLPOP used 0");
            command_home(mb, &pop);
            MT_EQ(pop.job.base.err, RT_OK);
            rds_job_fini(&pop.job);
        }
        lease = hold(channel, mb);
        for (i = 0; i < 3000; i++)
            MT_EQ(write_text(lease, "*2\r\n$4\r\nECHO\r\n$2\r\nxy\r\n"), RT_OK);
        mt_sleep_ms(round % 3 * 3);
        for (i = 0; i < 3000; i++)
            next_says(lease, mb, "xy");
        rds_held_release(lease);
    }
    MT_EQ(rt_read(&channel->lessor->opened), 5);
    end_channel(channel, mb);
}

/* Who waits for room is served as soon as there is some. */
static void room_to_wait_for(void)
{
    struct rds_channel *channel = open_channel(1, RT_NEVER, 3);
    struct rds_lease *lease = hold(channel, mb), *other;
    struct command c, pop;

    ask_to_hold(channel, mb, &c);
    MT_EVENTUALLY(rt_read(&channel->lessor->queued) == 1);
    rds_held_release(lease);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    other = rds_held_claim(&c.job);
    rds_job_fini(&c.job);
    lease_command(channel, mb, &pop, RT_NEVER, "BLPOP later 0");
    MT_EVENTUALLY(rt_read(&channel->lessor->queued) == 1);
    rds_held_spare(other);
    do_command(admin, mb, "RPUSH later element");
    command_home(mb, &pop);
    MT_EQ(pop.job.base.err, RT_OK);
    rds_job_fini(&pop.job);
    rds_held_release(other);
    end_channel(channel, mb);
}

/* ---- the end ---------------------------------------------------------------------------- */

static void lost(void)
{
    struct rds_channel *channel = open_channel(1, 0, 3);
    struct rds_lease *lease = hold(channel, mb);
    struct rds_received *received;
    const char *why;
    char text[64];

    MT_EQ(write_text(lease, "CLIENT ID\r\nPING\r\n"), RT_OK);
    received = next(lease, mb);
    snprintf(text, sizeof text, "CLIENT KILL ID %s", said(received, 0));
    rds_received_free(received);
    MT_EVENTUALLY(rt_read(&lease->held.count) == 1);
    do_command(admin, mb, text);
    MT_EVENTUALLY(rds_held_lost(lease, &why) != RT_OK);
    next_says(lease, mb, "PONG"); /* what came before is there still */
    MT_CHECK(next(lease, mb) == NULL);
    MT_CHECK(strstr(why, "closed the connection") != NULL);
    MT_EQ(write_text(lease, "PING\r\n"), RT_ELOST);
    MT_EVENTUALLY(leases_open(channel) == 0);
    rds_held_release(lease);
    end_channel(channel, mb);
}

/* The last reply and the end of the connection come together. */
static void last_words(void)
{
    struct rds_channel *channel = open_channel(1, 0, 3);
    struct rds_lease *lease;
    unsigned i;

    for (i = 0; i < 60; i++) {
        lease = hold(channel, mb);
        MT_EQ(write_text(lease, "QUIT\r\n"), RT_OK);
        next_says(lease, mb, "OK");
        MT_CHECK(next(lease, mb) == NULL);
        rds_held_release(lease);
    }
    end_channel(channel, mb);
}

static void killed_while_waiting(void)
{
    struct rds_channel *channel = open_channel(1, 0, 3);
    struct rds_lease *lease = hold(channel, mb);
    const char *why;
    struct command c;

    wait_for_news(lease, mb, &c, RT_NEVER);
    do_command(admin, mb, "CLIENT KILL TYPE normal SKIPME yes");
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    MT_CHECK(rds_held_lost(lease, &why) != RT_OK);
    rds_job_fini(&c.job);
    rds_held_release(lease);
    end_channel(channel, mb);
}

static void released_while_waiting(void)
{
    struct rds_channel *channel = open_channel(1, 0, 3);
    struct rds_lease *lease;
    struct command c;
    int i;

    for (i = 0; i < 60; i++) {
        lease = hold(channel, mb);
        wait_for_news(lease, mb, &c, RT_NEVER);
        rds_held_release(lease);
        command_home(mb, &c);
        rds_job_fini(&c.job);
    }
    MT_EVENTUALLY(leases_open(channel) == 0);
    end_channel(channel, mb);
}

static void cancelled(void)
{
    struct rds_channel *channel = open_channel(3, 0, 3);
    struct command c[3];
    unsigned i, round;

    for (round = 0; round < 30; round++) {
        for (i = 0; i < 3; i++)
            ask_to_hold(channel, mb, &c[i]);
        if (round % 2)
            mt_sleep_ms((int)(round % 5));
        for (i = 0; i < 3; i++)
            (void)rds_channel_cancel(channel, &c[i].job);
        for (i = 0; i < 3; i++) {
            command_home(mb, &c[i]);
            rds_job_fini(&c[i].job); /* claimed by nobody, whatever came */
        }
        MT_EVENTUALLY(leases_open(channel) == 0);
    }
    MT_EQ(held(channel), 0);
    end_channel(channel, mb);
}

static void closed(bool by_pool)
{
    struct rt_pool *own = pool;
    struct rds_channel *channel;
    struct rds_lease *lease;
    struct command c;
    const char *why;

    if (by_pool)
        MT_REQUIRE(rt_pool_new(2, 64, &pool) == RT_OK);
    channel = open_channel(1, 0, 3);
    lease = hold(channel, mb);
    wait_for_news(lease, mb, &c, RT_NEVER);
    if (by_pool)
        end_commands(pool, mb);
    else
        MT_EQ(rds_channel_close(channel, RT_NEVER, NULL), RT_OK);
    command_home(mb, &c);
    rds_job_fini(&c.job);
    MT_EQ(rds_held_lost(lease, &why), RT_ECLOSED);
    MT_EQ(write_text(lease, "PING\r\n"), RT_ELOST);
    rds_held_release(lease);
    rds_channel_release(channel);
    pool = own;
}

static void no_server(void)
{
    struct rds_options o = lease_options(1, 0);
    struct rds_channel *channel;
    struct command c;

    o.path = "/nonexistent/socket";
    channel = channel_to(pool, &o);
    ask_to_hold(channel, mb, &c);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_ECONNECT);
    MT_CHECK(command_mentions(&c, "/nonexistent/socket"));
    rds_job_fini(&c.job);
    MT_EVENTUALLY(leases_open(channel) == 0);
    end_channel(channel, mb);
}

/* ---- many ------------------------------------------------------------------------------- */

static void many(void)
{
    enum { N = 200, ROUNDS = 20 };
    struct rds_channel *channel = open_channel(N, 0, 3);
    struct rds_lease *lease[N];
    struct rds_received *received;
    unsigned i, round, wrong = 0;
    char text[40];

    for (i = 0; i < N; i++) {
        lease[i] = hold(channel, mb);
        MT_EQ(write_text(lease[i], "SUBSCRIBE many\r\n"), RT_OK);
    }
    for (i = 0; i < N; i++)
        rds_received_free(next(lease[i], mb));
    for (round = 0; round < ROUNDS; round++) {
        snprintf(text, sizeof text, "PUBLISH many %u", round);
        MT_EQ(ask_number(admin, mb, text), N);
    }
    for (i = 0; i < N; i++) {
        for (round = 0; round < ROUNDS; round++) {
            received = next(lease[i], mb);
            snprintf(text, sizeof text, "%u", round);
            wrong += strcmp(said(received, 3), text) != 0;
            rds_received_free(received);
        }
        rds_held_release(lease[i]);
    }
    MT_EQ(wrong, 0);
    MT_EVENTUALLY(leases_open(channel) == 0);
    end_channel(channel, mb);
}

int main(void)
{
    struct rds_options o = server_options();
    unsigned fds, threads, i;

    (void)mt_seed();
    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    fds = mt_fds();
    threads = mt_threads();
    MT_REQUIRE(rt_pool_new(4, 64, &pool) == RT_OK);
    admin = channel_to(pool, &o);
    do_command(admin, mb, "FLUSHALL");
    question_and_answer(2);
    question_and_answer(3);
    deep_pipeline();
    large();
    over_the_cap();
    messages(2);
    messages(3);
    delayed_acknowledgements();
    nobody_reads();
    waits();
    polled();
    room();
    for (i = 0; i < 30; i++)
        room_to_wait_for(); /* each is a race of several threads */
    one_that_was_used();
    lost();
    last_words();
    killed_while_waiting();
    released_while_waiting();
    cancelled();
    closed(false);
    closed(true);
    no_server();
    many();
    end_channel(admin, mb);
    end_commands(pool, mb);
    MT_EVENTUALLY(mt_threads() == threads);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("held");
}

/* Leases with a real server: one caller each, reuse, cancelling, deadlines, limits,
 * the end of everything; and what the server has to say about it. */
#include <hiredis/sds.h>
#include <malloc.h>
#include <sys/resource.h>

#include "leases.h"

static struct rt_pool *pool;
static struct rt_mailbox *mb;
static struct rds_channel *admin;

static struct rds_channel *open_channel(uint32_t most, uint64_t wait)
{
    struct rds_options o = lease_options(most, wait);

    return channel_to(pool, &o);
}

static void fini(struct command *c)
{
    rds_job_fini(&c->job);
}

static void says(const char *text, const char *wanted)
{
    struct command c;

    run_command(admin, mb, &c, text);
    MT_EQ(c.job.base.err, RT_OK);
    MT_STR_EQ(command_says(&c), wanted);
    fini(&c);
}

/* The second element of the array that a pop answers with. */
static const char *popped(const struct command *c)
{
    static _Thread_local char text[64];
    struct rds_node node;
    uint32_t at = 0;

    if (!rds_reply_next(&c->job.reply, &at, &node) || node.type != RDS_ARRAY || node.len != 2 ||
        !rds_reply_next(&c->job.reply, &at, &node) || !rds_reply_next(&c->job.reply, &at, &node) ||
        node.str == NULL)
        return "(no pop)";
    snprintf(text, sizeof text, "%.*s", (int)node.len, node.str);
    return text;
}

static void ends_with(struct command *c, int err, const char *mention)
{
    command_home(mb, c);
    MT_EQ(c->job.base.err, err);
    if (mention != NULL)
        MT_CHECK(command_mentions(c, mention));
    fini(c);
}

/* ---- reuse ------------------------------------------------------------------------------ */

static void one_after_the_other(void)
{
    struct rds_channel *channel = open_channel(1, 0);
    struct command c;
    char text[40];
    unsigned i;

    /* With room for one: it is free again before its command is home. */
    for (i = 0; i < 300; i++) {
        snprintf(text, sizeof text, "RPUSH one %u", i);
        do_command(channel, mb, text);
        lease_command(channel, mb, &c, RT_NEVER, "BLPOP one 0");
        command_home(mb, &c);
        snprintf(text, sizeof text, "%u", i);
        if (!MT_EQ(c.job.base.err, RT_OK))
            fprintf(stderr, "    %s\n", command_says(&c));
        MT_STR_EQ(popped(&c), text);
        fini(&c);
    }
    MT_EQ(leases_open(channel), 1);
    MT_EVENTUALLY(leases_idle(channel) == 1);
    MT_EQ(rt_read(&channel->lessor->opened), 1);
    MT_EQ(rt_read(&channel->lessor->commands), 300);
    end_channel(channel, mb);
}

static void traffic_goes_on(void)
{
    struct rds_channel *channel = open_channel(3, 0);
    struct command c[3], late;
    unsigned i;

    for (i = 0; i < 3; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP traffic 0");
    BLOCKED_ARE(channel, mb, 3);
    for (i = 0; i < 100; i++)
        MT_EQ(ask_number(channel, mb, "INCR traffic-n"), i + 1);
    lease_command(channel, mb, &late, RT_NEVER, "BLPOP traffic 0");
    ends_with(&late, RT_EFULL, "max_connections"); /* no room, and no waiting */
    do_command(channel, mb, "RPUSH traffic a b c");
    for (i = 0; i < 3; i++)
        ends_with(&c[i], RT_OK, NULL);
    MT_EQ(leases_open(channel), 3);
    do_command(admin, mb, "DEL traffic traffic-n");
    end_channel(channel, mb);
}

static void errors_and_nil(void)
{
    struct rds_channel *channel = open_channel(1, 0);
    struct command c;

    lease_command(channel, mb, &c, RT_NEVER, "BLPOP nothing 0.01");
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    MT_EQ(command_node(&c).type, RDS_NIL);
    fini(&c);
    lease_command(channel, mb, &c, RT_NEVER, "BLPOP nothing nonsense");
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_OK);
    MT_EQ(command_node(&c).type, RDS_ERROR);
    fini(&c);
    MT_EQ(rt_read(&channel->lessor->opened), 1); /* neither costs the connection */
    end_channel(channel, mb);
}

/* An idle lease gives up the memory that a large reply needed. */
static void large_reply(void)
{
    enum { LARGE = 3 << 20 };
    struct rds_channel *channel = open_channel(1, 0);
    const char *argv[3] = { "RPUSH", "large", NULL };
    size_t lens[3] = { 5, 5, LARGE };
    char *large = malloc(LARGE);
    struct command c;
    struct rds_lease *lease;

    MT_REQUIRE(large != NULL);
    memset(large, 'x', LARGE);
    argv[2] = large;
    command_argv(&c, mb, RT_NEVER, 3, argv, lens);
    MT_REQUIRE(rds_channel_submit(channel, &c.job) == RT_OK);
    ends_with(&c, RT_OK, NULL);
    lease_command(channel, mb, &c, RT_NEVER, "BLPOP large 0");
    command_home(mb, &c);
    MT_CHECK(c.job.reply.len > LARGE);
    fini(&c);
    MT_EVENTUALLY(leases_idle(channel) == 1);
    while (!rds_owner_enter(&channel->lessor->owner))
        mt_sleep_ms(1);
    lease = channel->lessor->newest;
    while (!rds_owner_enter(&lease->conn.owner))
        mt_sleep_ms(1);
    MT_CHECK(sdsalloc(lease->conn.ctx->reader->buf) <= 1024);
    while (!rds_owner_leave(&lease->conn.owner)) {
    }
    while (!rds_owner_leave(&channel->lessor->owner)) {
    }
    rds_lease_disconnect(channel, true); /* they look at their notes now */
    free(large);
    end_channel(channel, mb);
}

/* ---- cancelling --------------------------------------------------------------------------- */

static void cancelled_while_blocked(void)
{
    struct rds_channel *channel = open_channel(1, 0);
    struct command c;
    unsigned i;

    for (i = 0; i < 50; i++) {
        lease_command(channel, mb, &c, RT_NEVER, "BLPOP kept 0");
        BLOCKED_ARE(admin, mb, 1);
        MT_CHECK(rds_channel_cancel(channel, &c.job));
        command_home(mb, &c);
        fini(&c);
        /* The server drops a blocked client whose socket closes. */
        BLOCKED_ARE(admin, mb, 0);
        do_command(admin, mb, "RPUSH kept element");
        says("LPOP kept", "element");
    }
    MT_EVENTUALLY(leases_open(channel) == 0);
    MT_EQ(rt_read(&channel->lessor->opened), 50);
    MT_EQ(rt_read(&channel->stats.cancelled), 50);
    end_channel(channel, mb);
}

/* With room for one connection: who cancels has its room at once. */
static void cancelled_makes_room(void)
{
    struct rds_channel *channel = open_channel(1, 0);
    struct command c[40];
    unsigned i;

    for (i = 0; i < 40; i++) {
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP room 0");
        if (i % 2)
            mt_sleep_ms(1);
        MT_CHECK(rds_channel_cancel(channel, &c[i].job));
    }
    for (i = 0; i < 40; i++) {
        command_home(mb, &c[i]);
        MT_CHECK(c[i].job.base.err != RT_EFULL);
        fini(&c[i]);
    }
    MT_EVENTUALLY(leases_open(channel) == 0);
    end_channel(channel, mb);
}

/* The same when a worker that reports the lease was stopped half-way: room is coming,
 * so who asks for it waits.  The worker is us. */
static void cancelled_while_reported(void)
{
    struct rds_channel *channel = open_channel(1, 0);
    struct command c, next;
    struct rds_lease *lease;

    /* The last test's have gone: one of them would be taken for ours. */
    MT_EVENTUALLY(ask_info(admin, mb, "connected_clients") == 1);
    lease_command(channel, mb, &c, RT_NEVER, "BLPOP reported 0");
    BLOCKED_ARE(admin, mb, 1);
    lease = atomic_load(&c.job.lease);
    MT_EVENTUALLY(atomic_load(&lease->reported) == 0);
    MT_EQ(atomic_exchange(&lease->reported, 1), 0);
    MT_CHECK(rds_channel_cancel(channel, &c.job));
    lease_command(channel, mb, &next, RT_NEVER, "BLPOP reported 0");
    mt_sleep_ms(5); /* it is looked for every millisecond */
    MT_EQ(rt_job_state(&next.job.base), RT_JOB_QUEUED);
    MT_EQ(rt_read(&channel->lessor->opened), 1);
    rt_stack_push(&lease->lessor->reports, &lease->report);
    command_home(mb, &c);
    fini(&c);
    do_command(admin, mb, "RPUSH reported element");
    command_home(mb, &next);
    MT_EQ(next.job.base.err, RT_OK);
    MT_STR_EQ(popped(&next), "element");
    fini(&next);
    end_channel(channel, mb);
}

static void cancelled_while_waiting(void)
{
    struct rds_channel *channel = open_channel(1, RT_NEVER);
    struct command first, c[20];
    unsigned i;

    lease_command(channel, mb, &first, RT_NEVER, "BLPOP queue 0");
    for (i = 0; i < 20; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP queue 0");
    MT_EVENTUALLY(rt_read(&channel->lessor->queued) == 20);
    for (i = 0; i < 20; i += 2)
        MT_CHECK(rds_channel_cancel(channel, &c[i].job));
    for (i = 0; i < 20; i += 2)
        ends_with(&c[i], RT_ECANCELLED, NULL);
    MT_EVENTUALLY(rt_read(&channel->lessor->queued) == 10);
    do_command(admin, mb, "RPUSH queue 0 1 2 3 4 5 6 7 8 9 10");
    command_home(mb, &first);
    MT_STR_EQ(popped(&first), "0");
    fini(&first);
    for (i = 1; i < 20; i += 2) { /* in their order, and nothing is lost */
        char wanted[8];

        command_home(mb, &c[i]);
        snprintf(wanted, sizeof wanted, "%u", i / 2 + 1);
        MT_STR_EQ(popped(&c[i]), wanted);
        fini(&c[i]);
    }
    MT_EQ(rt_read(&channel->lessor->opened), 1);
    end_channel(channel, mb);
}

/* ---- deadlines ---------------------------------------------------------------------------- */

static void out_of_patience(void)
{
    struct rds_channel *channel = open_channel(1, 0);
    struct command c;

    lease_command(channel, mb, &c, 30 * RT_MS, "BLPOP patience 0");
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_ETIMEOUT);
    MT_EQ(c.job.maybe_run, 1);
    MT_CHECK(command_mentions(&c, "may have run"));
    fini(&c);
    BLOCKED_ARE(admin, mb, 0);
    do_command(admin, mb, "RPUSH patience element");
    lease_command(channel, mb, &c, 10 * RT_SEC, "BLPOP patience 0"); /* on a new one */
    command_home(mb, &c);
    MT_STR_EQ(popped(&c), "element");
    fini(&c);
    MT_EQ(rt_read(&channel->lessor->opened), 2);
    MT_EQ(rt_read(&channel->stats.timeouts), 1);
    end_channel(channel, mb);
}

static void out_of_turn(void)
{
    struct rds_channel *channel = open_channel(1, 30 * RT_MS);
    struct command first, c;

    lease_command(channel, mb, &first, RT_NEVER, "BLPOP turn 0");
    lease_command(channel, mb, &c, RT_NEVER, "BLPOP turn 0");
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_ECONNECT);
    MT_CHECK(command_mentions(&c, "No connection available"));
    MT_CHECK(command_mentions(&c, "not executed"));
    fini(&c);
    do_command(admin, mb, "RPUSH turn x");
    ends_with(&first, RT_OK, NULL);
    end_channel(channel, mb);
}

/* ---- losing connections ------------------------------------------------------------------- */

static void killed(void)
{
    struct rds_channel *channel = open_channel(4, 0);
    struct command c[4];
    unsigned i;

    for (i = 0; i < 4; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP killed 0");
    BLOCKED_ARE(admin, mb, 4);
    do_command(admin, mb, "CLIENT KILL TYPE normal SKIPME yes");
    for (i = 0; i < 4; i++) {
        command_home(mb, &c[i]);
        MT_EQ(c[i].job.base.err, RT_ELOST);
        MT_EQ(c[i].job.maybe_run, 1);
        MT_CHECK(command_mentions(&c[i], "may have run"));
        fini(&c[i]);
    }
    MT_EVENTUALLY(leases_open(channel) == 0);
    /* Idle ones that the server closes are not given out. */
    for (i = 0; i < 4; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP killed 0");
    BLOCKED_ARE(admin, mb, 4); /* each has one of its own */
    do_command(admin, mb, "RPUSH killed 1 2 3 4");
    for (i = 0; i < 4; i++)
        ends_with(&c[i], RT_OK, NULL);
    MT_EVENTUALLY(leases_idle(channel) == 4);
    do_command(admin, mb, "CLIENT KILL TYPE normal SKIPME yes");
    MT_EVENTUALLY(leases_open(channel) == 0);
    MT_EQ(leases_idle(channel), 0);
    end_channel(channel, mb);
}

static void disconnected(void)
{
    struct rds_channel *channel = open_channel(4, 0);
    struct command c[4];
    unsigned i;

    for (i = 0; i < 4; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, i < 2 ? "BLPOP come 0" : "BLPOP gone 0");
    BLOCKED_ARE(admin, mb, 4); /* each has one of its own */
    do_command(admin, mb, "RPUSH come 1 2");
    ends_with(&c[0], RT_OK, NULL);
    ends_with(&c[1], RT_OK, NULL);
    BLOCKED_ARE(admin, mb, 2);
    MT_EVENTUALLY(leases_idle(channel) == 2);
    rds_lease_disconnect(channel, false);
    MT_EVENTUALLY(leases_open(channel) == 2);
    BLOCKED_ARE(admin, mb, 2);
    rds_lease_disconnect(channel, true);
    ends_with(&c[2], RT_ELOST, "may have run");
    ends_with(&c[3], RT_ELOST, "may have run");
    MT_EVENTUALLY(leases_open(channel) == 0);
    BLOCKED_ARE(admin, mb, 0);
    end_channel(channel, mb);
}

/* ---- the end ------------------------------------------------------------------------------ */

static void closed(bool with_pool)
{
    struct rds_options o = lease_options(8, RT_NEVER);
    struct command c[12], late;
    struct rt_pool *own = NULL;
    struct rds_channel *channel;
    unsigned i;

    MT_REQUIRE(rt_pool_new(2, 64, &own) == RT_OK);
    channel = channel_to(own, &o);
    for (i = 0; i < 12; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP closed 0");
    BLOCKED_ARE(admin, mb, 8);
    if (!with_pool)
        end_channel(channel, mb); /* it waits for nothing that waits for others */
    else
        end_commands(own, mb);
    for (i = 0; i < 12; i++)
        ends_with(&c[i], RT_ECLOSED, i < 8 ? "may have run" : "not executed");
    BLOCKED_ARE(admin, mb, 0);
    command_text(&late, mb, RT_NEVER, "BLPOP closed 0");
    if (with_pool) {
        MT_EQ(rds_lease_submit(channel, &late.job), RT_ECLOSED);
        fini(&late);
        rds_channel_release(channel);
    } else {
        end_commands(own, mb);
    }
}

/* ---- what cannot be had -------------------------------------------------------------------- */

static void no_descriptors(void)
{
    struct rds_options o = lease_options(1000, 0);
    struct rds_channel *channel;
    struct rlimit before, tight;
    struct command c[20];
    unsigned i, failed = 0;

    o.connect_retries = 0;
    channel = channel_to(pool, &o);
    do_command(channel, mb, "PING");
    MT_REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
    tight = before;
    tight.rlim_cur = mt_fds() - 3 + 5; /* ".", ".." and the folder itself are no descriptors */
    MT_REQUIRE(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    for (i = 0; i < 20; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP files 0");
    BLOCKED_ARE(channel, mb, 5); /* all that fit */
    MT_EVENTUALLY(leases_open(channel) == 5);
    MT_REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
    do_command(channel, mb, "RPUSH files 1 2 3 4 5");
    for (i = 0; i < 20; i++) {
        command_home(mb, &c[i]);
        if (c[i].job.base.err == RT_ECONNECT) {
            MT_CHECK(command_mentions(&c[i], "Too many open files"));
            failed++;
        } else {
            MT_EQ(c[i].job.base.err, RT_OK);
        }
        fini(&c[i]);
    }
    MT_EQ(failed, 15);
    end_channel(channel, mb);
}

static void no_clients(void)
{
    struct rds_options o = lease_options(1000, 0);
    struct rds_channel *channel;
    struct command c[10];
    unsigned i, failed = 0;
    char text[60];

    o.connect_retries = 0;
    channel = channel_to(pool, &o);
    do_command(channel, mb, "PING");
    MT_EVENTUALLY(ask_info(admin, mb, "connected_clients") == 2); /* the last test's have gone */
    snprintf(text, sizeof text, "CONFIG SET maxclients %lld",
             ask_info(admin, mb, "connected_clients") + 4);
    do_command(admin, mb, text);
    for (i = 0; i < 10; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP clients 0");
    BLOCKED_ARE(admin, mb, 4);
    MT_EVENTUALLY(leases_open(channel) == 4);
    do_command(admin, mb, "CONFIG SET maxclients 10000");
    do_command(channel, mb, "RPUSH clients 1 2 3 4");
    for (i = 0; i < 10; i++) {
        command_home(mb, &c[i]);
        if (c[i].job.base.err != RT_OK) {
            MT_EQ(c[i].job.base.err, RT_EBUSY);
            MT_CHECK(command_mentions(&c[i], "max number of clients"));
            failed++;
        }
        fini(&c[i]);
    }
    MT_EQ(failed, 6);
    end_channel(channel, mb);
}

static void no_server(void)
{
    struct rds_options o = lease_options(1000, 0);
    struct rds_channel *channel;
    struct command c[600];
    unsigned i;

    o.path = "/nonexistent/offloop.sock";
    channel = channel_to(pool, &o);
    for (i = 0; i < 600; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP nowhere 0");
    for (i = 0; i < 600; i++)
        ends_with(&c[i], RT_ECONNECT, "No such file");
    MT_EVENTUALLY(leases_open(channel) == 0);
    end_channel(channel, mb);
}

/* ---- names, credentials ---------------------------------------------------------------------- */

static void by_name(void)
{
    struct rds_options o = lease_options(100, 0);
    struct rds_channel *channel;
    struct command c[60];
    unsigned i, fds;

    o.path = NULL;
    o.host = "localhost";
    o.port = (int)mt_env("OFFLOOP_TEST_REDIS_PORT", 0);
    fds = mt_fds();
    channel = channel_to(pool, &o);
    for (i = 0; i < 60; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP name 0");
    BLOCKED_ARE(admin, mb, 60);
    for (i = 0; i < 60; i++)
        MT_CHECK(rds_channel_cancel(channel, &c[i].job));
    for (i = 0; i < 60; i++)
        ends_with(&c[i], RT_ELOST, NULL);
    /* The address is not kept for long, and its descriptor neither. */
    MT_FDS_CLOSED(fds);
    end_channel(channel, mb);
}

struct asked {
    struct rds_channel *channel;
    atomic_uint times;
};

static int needed(void *user, struct rt_mailbox *mailbox)
{
    struct asked *asked = user;

    MT_CHECK(mailbox == mb);
    atomic_fetch_add(&asked->times, 1);
    return RT_OK;
}

static void credentials(void)
{
    struct rds_options o = lease_options(100, 0);
    struct rds_channel *channel;
    struct asked asked;
    struct command c[30];
    unsigned i;

    do_command(admin, mb, "ACL SETUSER lessee on >secret ~* &* +@all");
    o.ask_credentials = true;
    channel = channel_to(pool, &o);
    asked.channel = channel;
    atomic_init(&asked.times, 0);
    channel->credentials_needed = needed;
    channel->user = &asked;
    for (i = 0; i < 30; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP creds 0.05");
    MT_EVENTUALLY(atomic_load(&asked.times) == 30);
    /* One answer serves all that have asked by now. */
    MT_EQ(rds_channel_credentials(channel, RT_OK, "lessee", "secret"), RT_OK);
    for (i = 0; i < 30; i++)
        ends_with(&c[i], RT_OK, NULL);
    MT_CHECK(atomic_load(&channel->credentials) == NULL); /* and is not kept */
    rds_lease_disconnect(channel, true);
    MT_EVENTUALLY(leases_open(channel) == 0);
    for (i = 0; i < 30; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP creds 0.05");
    MT_EVENTUALLY(atomic_load(&asked.times) == 60);
    MT_EQ(rds_channel_credentials(channel, RT_ECREDENTIALS, NULL, NULL), RT_OK);
    for (i = 0; i < 30; i++)
        ends_with(&c[i], RT_ECREDENTIALS, NULL);
    do_command(admin, mb, "ACL DELUSER lessee");
    end_channel(channel, mb);
}

/* ---- many ------------------------------------------------------------------------------------- */

static void many(void)
{
    unsigned n = (unsigned)MT_SCALE(3000), i, wrong = 0;
    struct rds_channel *channel;
    struct rlimit files;
    struct command *c;
    char text[64];
    size_t before, used;

    /* As many as the machine allows: many a system's soft limit is 1024 descriptors. */
    MT_REQUIRE(getrlimit(RLIMIT_NOFILE, &files) == 0);
    files.rlim_cur = files.rlim_max;
    MT_REQUIRE(setrlimit(RLIMIT_NOFILE, &files) == 0);
    if (n + 100 > files.rlim_max)
        n = (unsigned)files.rlim_max - 100;
    channel = open_channel(n, 0);
    c = calloc(n, sizeof *c);
    MT_REQUIRE(c != NULL);
    do_command(channel, mb, "PING");
    before = mallinfo2().uordblks;
    for (i = 0; i < n; i++) {
        snprintf(text, sizeof text, "BLPOP many:%u 0", i);
        lease_command(channel, mb, &c[i], RT_NEVER, text);
    }
    BLOCKED_ARE(channel, mb, n);
    used = (mallinfo2().uordblks - before) / n;
    printf("%u leases of %zu bytes each\n", n, used);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    MT_CHECK(used < 6000); /* beside the job, which its owner has */
#endif
    /* Who is woken first comes home first. */
    for (i = 0; i < n; i++) {
        struct command *home;

        snprintf(text, sizeof text, "RPUSH many:%u %u", i, i);
        do_command(admin, mb, text);
        home = atomic_load(&c[i].homes) == 0 ? command_next(mb, MT_HANG_MS) : &c[i];
        snprintf(text, sizeof text, "%u", i);
        wrong += home != &c[i] || strcmp(popped(&c[i]), text) != 0;
    }
    MT_EQ(wrong, 0);
    for (i = 0; i < n; i++)
        fini(&c[i]);
    MT_EVENTUALLY(leases_idle(channel) == n);
    for (i = 0; i < n; i++)
        lease_command(channel, mb, &c[i], RT_NEVER, "BLPOP many 0");
    BLOCKED_ARE(channel, mb, n);
    for (i = 0; i < n; i++)
        MT_CHECK(rds_channel_cancel(channel, &c[i].job));
    for (i = 0; i < n; i++) {
        command_home(mb, &c[i]);
        fini(&c[i]);
    }
    MT_EVENTUALLY(leases_open(channel) == 0);
    BLOCKED_ARE(channel, mb, 0);
    free(c);
    end_channel(channel, mb);
}

int main(void)
{
    struct rds_options o = server_options();
    unsigned fds, threads;

    (void)mt_seed();
    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    fds = mt_fds();
    threads = mt_threads();
    MT_REQUIRE(rt_pool_new(4, 64, &pool) == RT_OK);
    admin = channel_to(pool, &o);
    do_command(admin, mb, "FLUSHALL");
    one_after_the_other();
    traffic_goes_on();
    errors_and_nil();
    large_reply();
    cancelled_while_blocked();
    cancelled_makes_room();
    cancelled_while_reported();
    cancelled_while_waiting();
    out_of_patience();
    out_of_turn();
    killed();
    disconnected();
    closed(false);
    closed(true);
    no_descriptors();
    no_clients();
    no_server();
    by_name();
    credentials();
    many();
    end_channel(admin, mb);
    end_commands(pool, mb);
    MT_EVENTUALLY(mt_threads() == threads);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("lease");
}

/* Pipelines as one job: order and identity of the replies, transactions, both ways
 * at once, and what becomes of one that is cancelled, late, cut off or answered
 * wrongly. */
#include "fakeserver.h"
#include "pipelines.h"

static struct rt_pool *pool;
static struct rt_mailbox *mb;

static void submit(struct rds_channel *channel, struct command *c)
{
    MT_REQUIRE(rds_channel_submit(channel, &c->job) == RT_OK);
}

static void works(struct rds_channel *channel)
{
    static uint64_t number = 1000000;
    struct command c;

    command_echo(&c, mb, RT_NEVER, ++number);
    submit(channel, &c);
    command_home(mb, &c);
    if (!MT_EQ(c.job.base.err, RT_OK) || !MT_CHECK(echoes(&c)))
        fprintf(stderr, "    %s\n", command_says(&c));
    rds_job_fini(&c.job);
}

static struct rds_channel *channel_to_fake(const struct fake *fake, uint64_t max_reply)
{
    struct rds_options o = quick_options();

    o.protocol = 2;
    o.host = "127.0.0.1";
    o.port = fake->port;
    if (fake->port == 0)
        o.path = fake->path;
    if (max_reply != 0)
        o.max_reply = max_reply;
    return channel_to(pool, &o);
}

/* ---- the buffer -------------------------------------------------------------------------- */

/* Where each command ends is found from the bytes alone. */
static void ends_are_found(uint64_t *rnd)
{
    unsigned round;

    for (round = 0; round < 200; round++) {
        uint32_t count = 1 + (uint32_t)(mt_rand(rnd) % 20), i, commands;
        bool transaction = mt_rand(rnd) % 2 == 0;
        uint64_t ends[24] = { 0 }, sent;
        struct rds_pipeline *p;
        struct command c;

        MT_REQUIRE(rds_pipeline_new(&p) == RT_OK);
        commands = count + (transaction ? 2 : 0);
        ends[0] = transaction ? 15 : 0;
        for (i = 0; i < count; i++) {
            size_t before = p->len;

            pipeline_add_echo(p, mt_rand(rnd), mt_rand(rnd) % 200);
            ends[i + transaction] = (i + transaction > 0 ? ends[i + transaction - 1] : 0) + p->len -
                                    before;
        }
        pipeline_command(&c, mb, RT_NEVER, p, transaction, RT_NEVER);
        if (transaction)
            ends[commands - 1] = ends[commands - 2] + 14;
        MT_EQ(c.job.awaited, commands);
        MT_EQ(c.job.request_len, ends[commands - 1]);
        for (i = 0; i < commands; i++) {
            for (sent = ends[i] > 3 ? ends[i] - 3 : 0; sent < ends[i]; sent++)
                MT_CHECK(!rds_pipeline_is_out(p, i, sent));
            MT_CHECK(rds_pipeline_is_out(p, i, ends[i]));
        }
        rds_job_fini(&c.job);
    }
}

/* ---- a real server ------------------------------------------------------------------------ */

static void echoed(struct rds_channel *channel, uint32_t count, size_t padding, bool transaction)
{
    static uint64_t first = 1;
    struct command c;

    pipeline_echoes(&c, mb, RT_NEVER, first, count, padding, transaction);
    first += count;
    submit(channel, &c);
    command_home(mb, &c);
    if (!MT_EQ(c.job.base.err, RT_OK))
        fprintf(stderr, "    %s\n", command_says(&c));
    MT_CHECK(pipeline_is_answered(&c, count, padding, transaction));
    rds_job_fini(&c.job);
}

static void sizes(struct rds_channel *channel, uint64_t most)
{
    uint64_t homes = rt_read(&mb->rings), jobs = rt_read(&channel->stats.pipelines);
    int transaction;

    for (transaction = 0; transaction < 2; transaction++) {
        echoed(channel, 1, 0, transaction);
        echoed(channel, 2, 10, transaction);
        echoed(channel, 1000, 100, transaction);
        echoed(channel, (uint32_t)MT_SCALE(most), 20, transaction);
        echoed(channel, 3, 3000000, transaction);
        echoed(channel, 500, 20000, transaction);
    }
    MT_EQ(rt_read(&channel->stats.pipelines) - jobs, 12);
    /* However many the replies: it is one job, and rings once (and once more when
     * command_next() leaves the mailbox before it is empty). */
    MT_CHECK(rt_read(&mb->rings) - homes <= 24);
    MT_EQ(rt_read(&channel->stats.connects), 1);
}

/* Singles and pipelines on one connection, pushed together. */
static void mixed(struct rds_channel *channel, uint64_t *rnd)
{
    enum { JOBS = 60 };
    struct command *c = calloc(JOBS, sizeof *c);
    uint32_t counts[JOBS];
    bool transactions[JOBS];
    uint64_t first = UINT64_C(1) << 40;
    unsigned i;

    MT_REQUIRE(c != NULL);
    for (i = 0; i < JOBS; i++) {
        counts[i] = (uint32_t)(mt_rand(rnd) % 40);
        transactions[i] = mt_rand(rnd) % 2 == 0;
        if (counts[i] == 0)
            command_echo(&c[i], mb, RT_NEVER, first);
        else
            pipeline_echoes(&c[i], mb, RT_NEVER, first, counts[i], 5, transactions[i]);
        first += counts[i] + 1;
        MT_REQUIRE(rds_channel_push(channel, &c[i].job) == RT_OK);
        if (mt_rand(rnd) % 4 == 0)
            rds_channel_kick(channel);
    }
    rds_channel_kick(channel);
    for (i = 0; i < JOBS; i++) {
        command_home(mb, &c[i]);
        MT_EQ(c[i].job.base.err, RT_OK);
        if (counts[i] == 0)
            MT_CHECK(echoes(&c[i]));
        else
            MT_CHECK(pipeline_is_answered(&c[i], counts[i], 5, transactions[i]));
        rds_job_fini(&c[i].job);
    }
    free(c);
}

/* Errors are replies; a refused command makes EXEC refuse. */
static void errors(struct rds_channel *channel)
{
    struct rds_pipeline *p;
    struct rds_node node;
    struct command c;

    MT_REQUIRE(rds_pipeline_new(&p) == RT_OK);
    pipeline_add_text(p, "SET p:word abc");
    pipeline_add_text(p, "INCR p:word");
    pipeline_add_text(p, "GET p:word");
    pipeline_command(&c, mb, RT_NEVER, p, false, RT_NEVER);
    submit(channel, &c);
    command_home(mb, &c);
    p = rds_pipeline_untie(&c.job);
    MT_CHECK(pipeline_node(p, &node) && node_says(&node, "OK"));
    MT_CHECK(pipeline_node(p, &node) && node.type == RDS_ERROR);
    MT_CHECK(pipeline_node(p, &node) && node_says(&node, "abc"));
    MT_CHECK(!pipeline_node(p, &node));
    rds_pipeline_free(p);
    rds_job_fini(&c.job);

    MT_REQUIRE(rds_pipeline_new(&p) == RT_OK);
    pipeline_add_text(p, "SET p:word changed");
    pipeline_add_text(p, "NOSUCHCOMMAND");
    pipeline_command(&c, mb, RT_NEVER, p, true, RT_NEVER);
    submit(channel, &c);
    command_home(mb, &c);
    p = rds_pipeline_untie(&c.job);
    MT_CHECK(pipeline_node(p, &node) && node_says(&node, "OK"));
    MT_CHECK(pipeline_node(p, &node) && node_says(&node, "QUEUED"));
    MT_CHECK(pipeline_node(p, &node) && node.type == RDS_ERROR);
    MT_CHECK(pipeline_node(p, &node) && node.type == RDS_ERROR &&
             strncmp(node.str, "EXECABORT", 9) == 0);
    MT_CHECK(!pipeline_node(p, &node));
    rds_pipeline_free(p);
    rds_job_fini(&c.job);
    run_command(channel, mb, &c, "GET p:word");
    MT_STR_EQ(command_says(&c), "abc");
    rds_job_fini(&c.job);
    do_command(channel, mb, "DEL p:word");
}

/* The reply over the cap fails alone, at whatever place it stands. */
static void over_the_cap(void)
{
    struct rds_options o = server_options();
    struct rds_channel *channel;
    unsigned place, i;

    o.max_reply = 100000;
    channel = channel_to(pool, &o);
    for (place = 0; place < 3; place++) {
        struct rds_pipeline *p;
        struct rds_node node;
        struct command c;

        MT_REQUIRE(rds_pipeline_new(&p) == RT_OK);
        for (i = 0; i < 3; i++)
            pipeline_add_echo(p, i, i == place ? 200000 : 90000);
        pipeline_command(&c, mb, RT_NEVER, p, false, RT_NEVER);
        submit(channel, &c);
        command_home(mb, &c);
        MT_EQ(c.job.base.err, RT_OK);
        p = rds_pipeline_untie(&c.job);
        for (i = 0; i < 3; i++) {
            if (!MT_CHECK(pipeline_node(p, &node)))
                break;
            if (i == place)
                MT_CHECK(node.type == RDS_FAILURE && memmem(node.str, node.len, "over the cap", 12));
            else
                MT_CHECK(node_echoes(&node, i, 90000));
        }
        MT_CHECK(!pipeline_node(p, &node));
        rds_pipeline_free(p);
        rds_job_fini(&c.job);
    }
    works(channel);
    MT_EQ(rt_read(&channel->stats.connects), 1);
    end_channel(channel, mb);
}

/* Not sent: never. Sent: its replies are read and dropped, transactions whole. */
static void cancelled(struct rds_channel *channel)
{
    struct rds_pipeline *p;
    struct command c, d;
    unsigned i;

    do_command(channel, mb, "DEL p:n");
    for (i = 0; i < 50; i++) {
        MT_REQUIRE(rds_pipeline_new(&p) == RT_OK);
        pipeline_add_text(p, "INCR p:n");
        pipeline_add_text(p, "INCR p:n");
        pipeline_command(&c, mb, RT_NEVER, p, i % 2 == 0, RT_NEVER);
        MT_REQUIRE(rds_channel_push(channel, &c.job) == RT_OK);
        MT_CHECK(rds_channel_cancel(channel, &c.job));
        rds_channel_kick(channel);
        command_home(mb, &c);
        MT_EQ(c.job.base.err, RT_ECANCELLED);
        rds_job_fini(&c.job);
    }
    run_command(channel, mb, &d, "GET p:n");
    MT_EQ(command_node(&d).type, RDS_NIL);
    rds_job_fini(&d.job);
    for (i = 1; i <= 50; i++) {
        char wanted[20];

        MT_REQUIRE(rds_pipeline_new(&p) == RT_OK);
        pipeline_add_text(p, "INCR p:n");
        pipeline_add_text(p, "INCR p:n");
        pipeline_command(&c, mb, RT_NEVER, p, i % 2 == 0, RT_NEVER);
        submit(channel, &c);
        MT_EVENTUALLY(rt_job_state(&c.job.base) != RT_JOB_QUEUED); /* it is on its way */
        (void)rds_channel_cancel(channel, &c.job);
        command_text(&d, mb, RT_NEVER, "GET p:n");
        submit(channel, &d);
        command_home(mb, &d);
        command_home(mb, &c);
        snprintf(wanted, sizeof wanted, "%u", 2 * i);
        MT_STR_EQ(command_says(&d), wanted);
        rds_job_fini(&c.job);
        rds_job_fini(&d.job);
    }
    do_command(channel, mb, "DEL p:n");
}

/* ---- both ways at once ---------------------------------------------------------------------- */

static void echo_at_length(struct peer *peer, void *user)
{
    char head[32], padding[10000];

    (void)user;
    memset(padding, 'x', sizeof padding);
    while (peer_command(peer)) {
        size_t len = strlen(peer->words[1]); /* the fake keeps the beginning */

        if (peer->count < 2) {
            if (!peer_answer(peer))
                return;
            continue;
        }
        snprintf(head, sizeof head, "$%zu\r\n", peer->lens[1]);
        if (!peer_say(peer, head) || !peer_write(peer, peer->words[1], len) ||
            !peer_write(peer, padding, peer->lens[1] - len) || !peer_say(peer, "\r\n"))
            return;
    }
}

/* It answers each command before it reads the next, and waits while its replies are
 * not taken: who writes everything first waits for ever. */
static void full_duplex(void)
{
    const uint32_t count = 4000;
    const size_t padding = 10000; /* 40 MB each way: no socket buffers as much */
    struct rds_channel *channel;
    struct command c;
    struct fake fake;

    fake_start(&fake, true, echo_at_length, NULL);
    channel = channel_to_fake(&fake, 0);
    pipeline_echoes(&c, mb, RT_NEVER, 7, count, padding, false);
    submit(channel, &c);
    MT_REQUIRE(command_home(mb, &c));
    MT_EQ(c.job.base.err, RT_OK);
    MT_CHECK(pipeline_is_answered(&c, count, padding, false));
    rds_job_fini(&c.job);
    works(channel);
    end_channel(channel, mb);
    fake_stop(&fake);
}

/* ---- servers that misbehave ---------------------------------------------------------------- */

static atomic_bool leave; /* the deaf peer closes, as a client that closed cannot tell it */

static void sit_deaf(void)
{
    while (!atomic_load(&leave))
        mt_sleep_ms(1);
}

/* Answers the first command twice although only a part of the second is out. */
static void answers_too_much(struct peer *peer, void *user)
{
    (void)user;
    if (peer->nth > 0) {
        serve_normally(peer, NULL);
        return;
    }
    if (peer_command(peer) && peer_say(peer, "$2\r\n0:\r\n$2\r\n1:\r\n"))
        sit_deaf();
}

static void answered_before_it_is_out(void)
{
    struct rds_channel *channel;
    struct rds_pipeline *p;
    struct command c;
    struct fake fake;

    atomic_store(&leave, false);
    fake_start(&fake, true, answers_too_much, NULL);
    channel = channel_to_fake(&fake, 0);
    MT_REQUIRE(rds_pipeline_new(&p) == RT_OK);
    pipeline_add_echo(p, 0, 0);
    pipeline_add_echo(p, 1, (size_t)64 << 20); /* more than the sockets take */
    pipeline_command(&c, mb, RT_NEVER, p, false, RT_NEVER);
    submit(channel, &c);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_EPROTOCOL);
    MT_EQ(c.job.maybe_run, 1);
    MT_CHECK(command_mentions(&c, "no command asked for"));
    rds_job_fini(&c.job);
    atomic_store(&leave, true);
    works(channel);
    end_channel(channel, mb);
    fake_stop(&fake);
}

struct answers {
    unsigned count; /* replies on the first connection */
    bool sit;       /* then say nothing, or close */
};

static void answer_some(struct peer *peer, void *user)
{
    const struct answers *answers = user;
    unsigned i;

    for (i = 0; peer->nth > 0 || i < answers->count; i++) {
        if (!peer_command(peer) || !peer_answer(peer))
            return;
    }
    while (answers->sit && peer_command(peer)) {
    }
}

/* The connection breaks in the middle: the pipeline may have run, as a whole, and
 * one behind it of which nothing was written is sent on the next connection. */
static void cut_in_the_middle(void)
{
    struct answers answers = { 5, false };
    struct rds_channel *channel;
    struct command c, d;
    struct fake fake;

    fake_start(&fake, true, answer_some, &answers);
    channel = channel_to_fake(&fake, 0);
    works(channel); /* one of the five */
    pipeline_echoes(&c, mb, RT_NEVER, 1, 20000, 200, false);
    pipeline_echoes(&d, mb, RT_NEVER, 1, 20000, 200, true);
    /* The first fills the buffers; what is behind it is not begun. */
    MT_REQUIRE(rds_channel_push(channel, &c.job) == RT_OK);
    MT_REQUIRE(rds_channel_push(channel, &d.job) == RT_OK);
    rds_channel_kick(channel);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_ELOST);
    MT_EQ(c.job.maybe_run, 1);
    MT_CHECK(command_mentions(&c, "the pipeline was sent and may have run"));
    rds_job_fini(&c.job);
    command_home(mb, &d);
    if (d.job.base.err == RT_OK) {
        MT_EQ(rt_read(&channel->stats.connects), 2);
    } else {
        MT_EQ(d.job.base.err, RT_ELOST);
        MT_EQ(d.job.maybe_run, 1);
    }
    rds_job_fini(&d.job);
    works(channel);
    end_channel(channel, mb);
    fake_stop(&fake);
}

/* ---- deadlines -------------------------------------------------------------------------------- */

/* Overdue in the middle of its replies: the rest is still its own, and what was
 * asked later gets its own reply on the same connection. */
static atomic_bool go_on;

static void pause_then_answer(struct peer *peer, void *user)
{
    (void)user;
    for (unsigned i = 0; peer_command(peer); i++) {
        while (i == 3 && !atomic_load(&go_on) && !atomic_load(&peer->fake->stopping))
            mt_sleep_ms(1);
        if (!peer_answer(peer))
            return;
    }
}

/* Whether it was overdue in the middle of its replies: three of eight had come. */
static bool overdue_after(uint64_t patience)
{
    struct rds_channel *channel;
    struct command c, d;
    struct fake fake;
    uint64_t dropped;
    bool sent;

    atomic_store(&go_on, false);
    fake_start(&fake, true, pause_then_answer, NULL);
    channel = channel_to_fake(&fake, 0);
    pipeline_echoes(&c, mb, rt_now() + patience, 1, 8, 0, false);
    submit(channel, &c);
    command_echo(&d, mb, RT_NEVER, 77);
    submit(channel, &d);
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_ETIMEOUT);
    sent = c.job.maybe_run;
    MT_CHECK(command_mentions(&c, sent ? "the pipeline was sent and may have run"
                                       : "the pipeline was not sent"));
    rds_job_fini(&c.job);
    atomic_store(&go_on, true);
    command_home(mb, &d);
    MT_EQ(d.job.base.err, RT_OK);
    MT_CHECK(echoes(&d));
    rds_job_fini(&d.job);
    MT_EQ(rt_read(&channel->stats.connects), 1);
    dropped = rt_read(&channel->stats.dropped);
    MT_CHECK(sent ? dropped >= 5 && dropped <= 8 : dropped == 0);
    end_channel(channel, mb);
    fake_stop(&fake);
    return dropped == 5;
}

static void overdue(void)
{
    uint64_t patience = 100 * RT_MS;

    /* A machine that was too slow for three replies in that time gets more. */
    while (!overdue_after(patience)) {
        patience *= 4;
        if (!MT_CHECK(patience < 60 * RT_SEC))
            break;
    }
}

static void slow_and_steady(struct peer *peer, void *user)
{
    while (peer_command(peer) && peer_answer(peer))
        mt_sleep_ms(*(unsigned *)user);
}

/* Each further reply has its time anew: ten of them take longer than one may. Whether
 * each came in time. */
static bool renewed_each(unsigned pause)
{
    const uint64_t patience = 6 * pause * RT_MS;
    struct rds_channel *channel;
    struct rds_pipeline *p;
    struct command c;
    struct fake fake;
    bool in_time;
    unsigned i;

    fake_start(&fake, true, slow_and_steady, &pause);
    channel = channel_to_fake(&fake, 0);
    MT_REQUIRE(rds_pipeline_new(&p) == RT_OK);
    for (i = 0; i < 10; i++)
        pipeline_add_echo(p, i, 0);
    pipeline_command(&c, mb, rt_now() + patience, p, false, patience);
    submit(channel, &c);
    command_home(mb, &c);
    in_time = c.job.base.err == RT_OK;
    if (in_time)
        MT_CHECK(pipeline_is_answered(&c, 10, 0, false));
    else
        MT_EQ(c.job.base.err, RT_ETIMEOUT);
    rds_job_fini(&c.job);
    end_channel(channel, mb);
    fake_stop(&fake);
    return in_time;
}

static void renewed(void)
{
    unsigned pause = 100;

    /* A machine that stood still for longer than a reply may take gets more time; it is
     * never enough for ten that share it. */
    while (!renewed_each(pause)) {
        pause *= 4;
        if (!MT_CHECK(pause < 5000))
            break;
    }
}

/* It stops reading: a pipeline that is partly out cannot be taken back, so the
 * connection goes with it; one that is not begun was not executed. */
static void stops_reading(struct peer *peer, void *user)
{
    (void)user;
    if (peer->nth > 0)
        serve_normally(peer, NULL);
    else
        sit_deaf();
}

/* Whether the first was begun before its time was over. */
static bool partly_out_after(uint64_t patience)
{
    struct rds_channel *channel;
    struct command c, d;
    struct fake fake;
    bool begun;

    atomic_store(&leave, false);
    fake_start(&fake, true, stops_reading, NULL);
    channel = channel_to_fake(&fake, 0);
    pipeline_echoes(&c, mb, RT_NEVER, 1, 100, 1000000, true);
    pipeline_echoes(&d, mb, RT_NEVER, 1, 10, 0, true);
    c.job.base.deadline = rt_now() + 6 * patience; /* making it took its time */
    d.job.base.deadline = rt_now() + patience;
    submit(channel, &c);
    submit(channel, &d);
    command_home(mb, &d);
    MT_EQ(d.job.base.err, RT_ETIMEOUT);
    MT_EQ(d.job.maybe_run, 0);
    MT_CHECK(command_mentions(&d, "the pipeline was not sent"));
    command_home(mb, &c);
    MT_EQ(c.job.base.err, RT_ETIMEOUT);
    begun = c.job.maybe_run;
    rds_job_fini(&c.job);
    rds_job_fini(&d.job);
    atomic_store(&leave, true);
    works(channel);
    if (begun)
        MT_EQ(rt_read(&channel->stats.connects), 2);
    end_channel(channel, mb);
    fake_stop(&fake);
    return begun;
}

static void partly_out(void)
{
    uint64_t patience = 100 * RT_MS;

    while (!partly_out_after(patience)) {
        patience *= 4;
        if (!MT_CHECK(patience < 10 * RT_SEC))
            break;
    }
}

/* Closing waits for a pipeline under way, and fails it when the time is over. */
static void closed_under_it(void)
{
    struct answers answers = { 4, true };
    struct rds_channel *channel;
    struct command c, last;
    struct fake fake;

    fake_start(&fake, true, answer_some, &answers);
    channel = channel_to_fake(&fake, 0);
    pipeline_echoes(&c, mb, RT_NEVER, 1, 10, 0, false);
    submit(channel, &c);
    MT_EVENTUALLY(rt_read(&channel->stats.replies) == 4);
    command_text(&last, mb, RT_NEVER, "close");
    MT_EQ(rds_channel_close(channel, rt_now() + 50 * RT_MS, &last.job.base), RT_OK);
    command_home(mb, &c);
    command_home(mb, &last);
    MT_EQ(c.job.base.err, RT_ECLOSED);
    MT_EQ(c.job.maybe_run, 1);
    rds_job_fini(&c.job);
    rds_channel_release(channel);
    fake_stop(&fake);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    struct rds_options options = server_options();
    struct rds_channel *channel;
    unsigned fds, workers;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    fds = mt_fds();
    ends_are_found(&rnd);
    for (workers = 1; workers <= 2; workers++) {
        MT_REQUIRE(rt_pool_new(workers, 64, &pool) == RT_OK);
        options.protocol = (int)workers + 1;
        channel = channel_to(pool, &options);
        sizes(channel, workers == 1 ? 30000 : 3000);
        mixed(channel, &rnd);
        errors(channel);
        cancelled(channel);
        end_channel(channel, mb);
        over_the_cap();
        full_duplex();
        answered_before_it_is_out();
        cut_in_the_middle();
        overdue();
        renewed();
        partly_out();
        closed_under_it();
        end_commands(pool, mb);
    }
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("pipelines");
}

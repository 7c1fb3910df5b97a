/* The oracle of reply identity with pipelines and single commands mixed: threads
 * with mailboxes of their own, cancels and deadlines at any moment, connections cut
 * at random. No wrong reply, no reply of a pipeline missing or doubled, and every
 * transaction runs as a whole or not at all. */
#include "oracle.h"
#include "pipelines.h"

#define THREADS 3
#define WINDOW 24
#define TOGETHER 5 /* keys that each transaction increments */

static struct {
    struct rds_channel *channel;
    uint64_t seed, total;
    atomic_uint next;
    atomic_bool calm;
    _Atomic uint64_t answered, gone, expired, lost;
} run;

struct slot {
    struct command command;
    uint32_t count; /* 0: a single command */
    size_t padding;
    bool transaction, counts, wanted;
};

static void ask(struct slot *s, struct rt_mailbox *mb, uint64_t number, uint64_t *rnd)
{
    uint64_t luck = mt_rand(rnd), deadline = RT_NEVER;
    struct rds_pipeline *p;
    unsigned i;

    s->wanted = true;
    s->count = luck % 3 == 0 ? 0 : 1 + (uint32_t)((luck >> 8) % 60);
    s->transaction = (luck >> 16) % 2 == 0;
    s->counts = s->transaction && (luck >> 17) % 4 == 0;
    s->padding = (luck >> 20) % 8 == 0 ? 5000 : (luck >> 24) % 40;
    if ((luck >> 32) % 10 == 0)
        deadline = rt_now() + RT_MS + (luck >> 36) % (20 * RT_MS);
    if (s->counts) {
        MT_REQUIRE(rds_pipeline_new(&p) == RT_OK);
        for (i = 0; i < TOGETHER; i++) {
            char text[40];

            snprintf(text, sizeof text, "INCR together:%u", i);
            pipeline_add_text(p, text);
        }
        pipeline_command(&s->command, mb, deadline, p, true, RT_NEVER);
    } else if (s->count == 0) {
        command_echo(&s->command, mb, deadline, number);
    } else {
        pipeline_echoes(&s->command, mb, deadline, number, s->count, s->padding, s->transaction);
    }
    MT_REQUIRE(rds_channel_push(run.channel, &s->command.job) == RT_OK);
    if ((luck >> 48) % 16 == 0 && rds_channel_cancel(run.channel, &s->command.job))
        s->wanted = false;
    rds_channel_kick(run.channel);
    if ((luck >> 56) % 8 == 0 && s->wanted && rds_channel_cancel(run.channel, &s->command.job))
        s->wanted = false;
}

/* The replies of a counting transaction: all its counters stand at the same number. */
static bool is_even(struct command *c)
{
    struct rds_pipeline *p = rds_pipeline_untie(&c->job);
    struct rds_node node;
    int64_t value = 0;
    bool right = true;
    unsigned i;

    for (i = 0; i <= TOGETHER; i++)
        right = right && pipeline_node(p, &node) && node.type == RDS_STATUS;
    right = right && pipeline_node(p, &node) && node.type == RDS_ARRAY && node.len == TOGETHER;
    for (i = 0; right && i < TOGETHER; i++) {
        right = pipeline_node(p, &node) && node.type == RDS_INT;
        if (i == 0)
            value = node.integer;
        right = right && node.integer == value;
    }
    right = right && !pipeline_node(p, &node);
    rds_pipeline_free(p);
    return right;
}

static void judge(struct slot *s)
{
    struct command *c = &s->command;

    if (!s->wanted) {
        rt_count(&run.gone, 1);
        return;
    }
    switch (c->job.base.err) {
    case RT_OK:
        if (s->counts ? !is_even(c)
            : s->count == 0 ? !echoes(c)
                            : !pipeline_is_answered(c, s->count, s->padding, s->transaction))
            MT_CHECK(!ORACLE_WRONG);
        rt_count(&run.answered, 1);
        break;
    case RT_ETIMEOUT:
        rt_count(&run.expired, 1);
        break;
    case RT_ELOST:
        if (!c->job.maybe_run)
            MT_CHECK(!"a pipeline that was not sent is lost");
        rt_count(&run.lost, 1);
        break;
    default:
        fprintf(stderr, "    error %d: %s\n", c->job.base.err, command_says(c));
        MT_CHECK(!"a pipeline failed in a way that nobody caused");
        break;
    }
}

static void *thread_main(void *arg)
{
    struct slot *slots = calloc(WINDOW, sizeof *slots);
    uint64_t me = atomic_fetch_add(&run.next, 1), rnd = run.seed + me * 7919;
    uint64_t sent = 0, home = 0, i;
    struct rt_mailbox *mb;

    (void)arg;
    MT_REQUIRE(slots != NULL && rt_mailbox_new(&mb) == RT_OK);
    for (i = 0; i < WINDOW; i++)
        atomic_store(&slots[i].command.homes, 1); /* not under way */
    while (home < run.total) {
        struct rt_job *job;

        for (i = 0; i < WINDOW && sent < run.total; i++) {
            struct slot *s = &slots[i];

            if (atomic_load(&s->command.homes) != 0) {
                ask(s, mb, me << 40 | sent++ << 8, &rnd);
            } else if (mt_rand(&rnd) % 200 == 0 && s->wanted &&
                       rds_channel_cancel(run.channel, &s->command.job)) {
                s->wanted = false;
            }
            if (mt_rand(&rnd) % 16 == 0)
                break; /* look who is home before the window is full */
        }
        if ((sent - home >= WINDOW || sent == run.total) && !mt_readable(mb->fd, MT_HANG_MS)) {
            MT_CHECK(!"pipelines did not come home");
            break;
        }
        rt_mailbox_begin(mb);
        while ((job = rt_mailbox_next(mb)) != NULL) {
            struct slot *s = RT_CONTAINER_OF(command_of(job), struct slot, command);

            home++;
            if (atomic_fetch_add(&s->command.homes, 1) != 0)
                MT_CHECK(!"a pipeline came home twice");
            judge(s);
            rds_job_fini(&s->command.job);
        }
    }
    MT_EQ(home, run.total);
    rt_mailbox_release(mb);
    free(slots);
    return NULL;
}

/* Ends the connections of everybody but itself, again and again. */
static void *cutter(void *arg)
{
    struct rds_options o = server_options();
    uint64_t rnd = (uintptr_t)arg;
    struct rds_channel *channel;
    struct rt_mailbox *mb;
    struct rt_pool *pool;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK && rt_pool_new(1, 64, &pool) == RT_OK);
    channel = channel_to(pool, &o);
    while (!atomic_load(&run.calm)) {
        do_command(channel, mb, "CLIENT KILL TYPE normal SKIPME yes");
        mt_sleep_ms(1 + (unsigned)(mt_rand(&rnd) % 15));
        await_replies(run.channel, 100, &run.calm);
    }
    end_channel(channel, mb);
    end_commands(pool, mb);
    rt_mailbox_release(mb);
    return NULL;
}

/* However they ended, all counters of the transactions stand at the same number. */
static void all_or_nothing(struct rds_channel *channel, struct rt_mailbox *mb)
{
    char first[40] = "";
    unsigned i;

    for (i = 0; i < TOGETHER; i++) {
        struct command c;
        char text[40];

        snprintf(text, sizeof text, "GET together:%u", i);
        run_command(channel, mb, &c, text);
        if (i == 0)
            snprintf(first, sizeof first, "%.30s", command_says(&c));
        MT_STR_EQ(command_says(&c), first);
        rds_job_fini(&c.job);
    }
}

static void round_with(unsigned workers, bool cuts, struct rt_mailbox *mb, uint64_t *rnd)
{
    struct rds_options options = server_options();
    pthread_t threads[THREADS], knife;
    struct rt_pool *pool;
    unsigned i;

    memset(&run, 0, sizeof run);
    options.connect_retries = -1;
    options.protocol = 2 + (int)(mt_rand(rnd) % 2);
    MT_REQUIRE(rt_pool_new(workers, 64, &pool) == RT_OK);
    run.channel = channel_to(pool, &options);
    run.seed = mt_rand(rnd);
    run.total = MT_SCALE(4000);
    atomic_store(&run.calm, !cuts);
    knife = mt_spawn(cutter, (void *)(uintptr_t)mt_rand(rnd));
    for (i = 0; i < THREADS; i++)
        threads[i] = mt_spawn(thread_main, NULL);
    for (i = 0; i < THREADS; i++)
        mt_join(threads[i]);
    atomic_store(&run.calm, true);
    mt_join(knife);
    printf("%u workers%s: %llu answered, %llu cancelled, %llu expired, %llu lost\n", workers,
           cuts ? ", cut" : "", (unsigned long long)run.answered, (unsigned long long)run.gone,
           (unsigned long long)run.expired, (unsigned long long)run.lost);
    MT_CHECK(run.answered > 0);
    all_or_nothing(run.channel, mb);
    end_channel(run.channel, mb);
    end_commands(pool, mb);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    struct rt_mailbox *mb;
    unsigned workers, fds;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    fds = mt_fds();
    for (workers = 1; workers <= 4; workers *= 2) {
        round_with(workers, false, mb, &rnd);
        round_with(workers, true, mb, &rnd);
    }
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("pipelines under fire");
}

/* Whose element is it?  Threads pop numbered elements from lists of their own and
 * from one that all share, take some calls back at any moment, give some little
 * patience, while connections are killed and dropped.  Every element of a call's
 * own list must reach that call or nobody; every element of the shared list must be
 * popped once at most, and none may be missing without a call that went wrong. */
#include "leases.h"

#define SLOTS 24
#define ELEMENTS (1u << 20)

struct call {
    struct command command;
    bool wanted, shared;
    char name[48];
};

static struct rds_channel *channel, *supply;
static uint64_t seed, total;
static atomic_uint threads_so_far, done_threads;
static _Atomic uint64_t answered, cancelled, failed, timed_out, nothing, doubtful;
static _Atomic uint8_t seen[ELEMENTS];
static _Atomic uint32_t next_element;

/* key and value of the pop, or false */
static bool read_pop(const struct command *c, char *key, char *value, size_t size)
{
    struct rds_node node;
    uint32_t at = 0;

    if (!rds_reply_next(&c->job.reply, &at, &node) || node.type != RDS_ARRAY || node.len != 2 ||
        !rds_reply_next(&c->job.reply, &at, &node))
        return false;
    snprintf(key, size, "%.*s", (int)node.len, node.str);
    if (!rds_reply_next(&c->job.reply, &at, &node))
        return false;
    snprintf(value, size, "%.*s", (int)node.len, node.str);
    return true;
}

static void judge(struct call *call)
{
    struct command *c = &call->command;
    char key[64] = "", value[64] = "";

    if (!call->wanted) {
        rt_count(&cancelled, 1);
        rt_count(&doubtful, call->shared);
        return;
    }
    switch (c->job.base.err) {
    case RT_OK:
        if (command_node(c).type == RDS_NIL) {
            rt_count(&nothing, 1);
            return;
        }
        if (!MT_CHECK(read_pop(c, key, value, sizeof key)))
            return;
        rt_count(&answered, 1);
        if (call->shared) {
            unsigned long n = strtoul(value, NULL, 10);

            MT_STR_EQ(key, "bag");
            if (!MT_CHECK(n < ELEMENTS) || atomic_fetch_add(&seen[n], 1) != 0)
                MT_CHECK(!"an element was popped twice");
        } else if (strcmp(key, call->name) != 0 || strcmp(value, call->name) != 0) {
            fprintf(stderr, "    %s got %s of %s\n", call->name, value, key);
            MT_CHECK(!"a reply reached another call");
        }
        return;
    case RT_ETIMEOUT:
        rt_count(&timed_out, 1);
        break;
    case RT_ELOST:
        rt_count(&failed, 1);
        break;
    default:
        fprintf(stderr, "    error %d: %s\n", c->job.base.err, command_says(c));
        MT_CHECK(!"a call failed in a way that nobody caused");
    }
    rt_count(&doubtful, call->shared);
}

static void push_element(struct rt_mailbox *mb, const char *key, const char *value)
{
    char text[128];

    snprintf(text, sizeof text, "RPUSH %s %s", key, value);
    do_command(supply, mb, text);
}

static void ask(struct call *call, struct rt_mailbox *mb, struct rt_mailbox *aside, uint64_t me,
                uint64_t number, uint64_t *rnd)
{
    uint64_t luck = mt_rand(rnd), patience = RT_NEVER;
    char text[128], element[24];

    call->wanted = true;
    call->shared = luck % 2;
    snprintf(call->name, sizeof call->name, "own:%llu:%llu", (unsigned long long)me,
             (unsigned long long)number);
    snprintf(text, sizeof text, "BLPOP %s %s", call->shared ? "bag" : call->name,
             (luck >> 8) % 8 == 0 ? "0.002" : "2");
    if ((luck >> 16) % 10 == 0)
        patience = RT_MS + (luck >> 24) % (5 * RT_MS);
    if ((luck >> 32) % 3 == 0 && !call->shared && patience == RT_NEVER)
        push_element(aside, call->name, call->name);
    lease_command(channel, mb, &call->command, patience, text);
    if ((luck >> 40) % 8 == 0 && rds_channel_cancel(channel, &call->command.job))
        call->wanted = false;
    if (call->shared) {
        snprintf(element, sizeof element, "%u", atomic_fetch_add(&next_element, 1));
        push_element(aside, "bag", element);
    } else if ((luck >> 32) % 3 != 0 && patience == RT_NEVER) {
        push_element(aside, call->name, call->name);
    }
    if ((luck >> 48) % 8 == 0 && call->wanted &&
        rds_channel_cancel(channel, &call->command.job))
        call->wanted = false;
}

static void *caller(void *arg)
{
    struct call *calls = calloc(SLOTS, sizeof *calls);
    uint64_t me = atomic_fetch_add(&threads_so_far, 1), rnd = seed + me * 7919;
    uint64_t sent = 0, home = 0, i;
    struct rt_mailbox *mb, *aside;

    (void)arg;
    MT_REQUIRE(calls != NULL && rt_mailbox_new(&mb) == RT_OK && rt_mailbox_new(&aside) == RT_OK);
    for (i = 0; i < SLOTS; i++)
        atomic_store(&calls[i].command.homes, 1);
    while (home < total) {
        struct rt_job *job;

        for (i = 0; i < SLOTS && sent < total; i++) {
            if (atomic_load(&calls[i].command.homes) != 0)
                ask(&calls[i], mb, aside, me, sent++, &rnd);
            else if (mt_rand(&rnd) % 64 == 0 && calls[i].wanted &&
                     rds_channel_cancel(channel, &calls[i].command.job))
                calls[i].wanted = false;
        }
        if (!mt_readable(mb->fd, MT_HANG_MS)) {
            MT_CHECK(!"calls did not come home");
            break;
        }
        rt_mailbox_begin(mb);
        while ((job = rt_mailbox_next(mb)) != NULL) {
            struct call *call = RT_CONTAINER_OF(command_of(job), struct call, command);

            home++;
            if (atomic_fetch_add(&call->command.homes, 1) != 0)
                MT_CHECK(!"a call came home twice");
            judge(call);
            rds_job_fini(&call->command.job);
        }
    }
    rt_mailbox_release(mb);
    rt_mailbox_release(aside);
    free(calls);
    atomic_fetch_add(&done_threads, 1);
    return NULL;
}

/* Kills a connection now and then, or drops the idle ones, or all. */
static void *troublemaker(void *arg)
{
    struct rds_options o = server_options();
    uint64_t rnd = seed ^ 0x5eed;
    struct rds_channel *admin;
    struct rt_mailbox *mb;
    struct command c;
    char text[64];
    unsigned threads = *(unsigned *)arg;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    admin = channel_to(channel->pool, &o);
    while (atomic_load(&done_threads) < threads) {
        uint64_t luck = mt_rand(&rnd);

        mt_sleep_ms(2);
        if (luck % 8 == 0) {
            rds_lease_disconnect(channel, luck % 64 == 0);
            continue;
        }
        /* One of the clients of late; most often it is a lease. */
        snprintf(text, sizeof text, "CLIENT KILL ID %llu USER lessee",
                 (unsigned long long)(rt_read(&channel->stats.connects) + 8 - (luck >> 8) % 64));
        run_command(admin, mb, &c, text);
        rds_job_fini(&c.job);
    }
    end_channel(admin, mb);
    rt_mailbox_release(mb);
    return NULL;
}

static void stress(unsigned workers, unsigned threads, uint32_t most, bool trouble)
{
    struct rds_options o = lease_options(most, RT_NEVER);
    pthread_t ids[8], spoiler = 0;
    struct rt_mailbox *mb;
    uint64_t left, popped = 0;
    struct rt_pool *pool;
    unsigned i;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    MT_REQUIRE(rt_pool_new(workers, 64, &pool) == RT_OK);
    o.connect_retries = -1; /* one may be killed again and again before it is ready */
    supply = channel_to(pool, &o);
    do_command(supply, mb, "FLUSHALL");
    do_command(supply, mb, "ACL SETUSER lessee on >secret ~* &* +@all");
    o.username = "lessee"; /* whose connections are killed, and no others */
    o.password = "secret";
    channel = channel_to(pool, &o);
    memset((void *)seen, 0, sizeof seen);
    answered = cancelled = failed = timed_out = nothing = doubtful = 0;
    atomic_store(&next_element, 0);
    atomic_store(&threads_so_far, 0);
    atomic_store(&done_threads, 0);
    for (i = 0; i < threads; i++)
        ids[i] = mt_spawn(caller, NULL);
    if (trouble)
        spoiler = mt_spawn(troublemaker, &threads);
    for (i = 0; i < threads; i++)
        mt_join(ids[i]);
    if (trouble)
        mt_join(spoiler);
    MT_EVENTUALLY(leases_open(channel) == leases_idle(channel));
    MT_EQ(rt_read(&channel->lessor->queued), 0);
    BLOCKED_ARE(supply, mb, 0);
    left = (uint64_t)ask_number(supply, mb, "LLEN bag");
    for (i = 0; i < atomic_load(&next_element); i++)
        popped += atomic_load(&seen[i]);
    printf("%u workers, %u threads: %llu answered, %llu cancelled, %llu timed out, %llu failed, "
           "%llu nil; of %u shared elements %llu popped, %llu left; %llu leases opened\n",
           workers, threads, (unsigned long long)answered, (unsigned long long)cancelled,
           (unsigned long long)timed_out, (unsigned long long)failed, (unsigned long long)nothing,
           atomic_load(&next_element), (unsigned long long)popped, (unsigned long long)left,
           (unsigned long long)rt_read(&channel->lessor->opened));
    MT_CHECK(popped + left <= atomic_load(&next_element));
    MT_CHECK(popped + left + doubtful >= atomic_load(&next_element));
    MT_CHECK(rt_read(&channel->lessor->open_high) <= most);
    end_channel(channel, mb);
    end_channel(supply, mb);
    end_commands(pool, mb);
    rt_mailbox_release(mb);
}

int main(void)
{
    unsigned fds, threads;

    seed = mt_seed();
    fds = mt_fds();
    threads = mt_threads();
    total = MT_SCALE(12000);
    stress(1, 2, 16, false);
    stress(2, 4, 30, true);
    stress(4, 4, 200, true);
    MT_EVENTUALLY(mt_threads() == threads);
    MT_FDS_CLOSED(fds);
    return mt_report("lease stress");
}

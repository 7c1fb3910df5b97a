/* A fork with connections open: the parent's go on, the child makes its own, and
 * what the child holds of the parent's sockets disturbs nobody. */
#include "commands.h"

#if defined(__SANITIZE_THREAD__)
const char *__tsan_default_options(void);
/* The child starts threads, which is what this test is about. */
const char *__tsan_default_options(void)
{
    return "die_after_fork=0";
}
#endif

static struct rt_mailbox *mb;

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

struct family {
    struct rt_pool *pool;
    struct rds_channel *channel;
    int hold; /* the child stays until this closes, or -1 */
};

static void child(void *arg)
{
    struct family *family = arg;
    struct rds_options o = server_options();
    struct rds_channel *channel;
    struct rt_mailbox *home;
    struct rt_pool *pool;
    unsigned i;

    alarm(60);
    if (family->hold >= 0) { /* a child that knows nothing of us, and holds all */
        char byte;

        _exit(read(family->hold, &byte, 1) != 0);
    }
    MT_CHECK(rt_pool_forked(family->pool));
    rds_channel_abandon(family->channel);
    rt_pool_abandon(family->pool);
    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    MT_REQUIRE(rt_pool_new(2, 64, &pool) == RT_OK);
    channel = channel_to(pool, &o);
    for (i = 0; i < 50; i++)
        echo(channel, home, 5000 + i);
    end_channel(channel, home);
    end_commands(pool, home);
    rds_channel_release(family->channel); /* harmless, and sends nothing */
    rt_pool_release(family->pool);
    _exit(atomic_load(&mt_failures) != 0);
}

static void fork_under_load(uint64_t *rnd)
{
    enum { MANY = 300 };
    struct rds_options o = server_options();
    struct family family = { .hold = -1 };
    unsigned round, i;

    MT_REQUIRE(rt_pool_new(2, 64, &family.pool) == RT_OK);
    family.channel = channel_to(family.pool, &o);
    for (round = 0; round < 20; round++) {
        struct command c[MANY];
        unsigned at = (unsigned)(mt_rand(rnd) % MANY);
        int status = -1;

        for (i = 0; i < MANY; i++) {
            command_echo(&c[i], mb, RT_NEVER, i);
            MT_REQUIRE(rds_channel_submit(family.channel, &c[i].job) == RT_OK);
            if (i != at)
                continue;
            if (MT_FORK_AT_REST) {
                unsigned k;

                for (k = 0; k <= i; k++)
                    command_home(mb, &c[k]);
                rest(family.pool);
            }
            status = mt_in_child(child, &family);
        }
        MT_EQ(status, 0);
        for (i = 0; i < MANY; i++) {
            command_home(mb, &c[i]);
            MT_CHECK(c[i].job.base.err == RT_OK && echoes(&c[i]));
            rds_job_fini(&c[i].job);
        }
    }
    MT_EQ(rt_read(&family.channel->stats.connects), 1); /* never touched */
    end_channel(family.channel, mb);
    end_commands(family.pool, mb);
}

/* Regression: a socket that a forked child holds stays in the parent's epoll
 * after the parent has closed it, and its events point to a connection that is
 * gone. */
static void socket_held_by_a_child(void)
{
    struct rds_options o = server_options();
    struct family family = { .hold = -1 };
    struct rt_pool *admins;
    struct rds_channel *admin;
    uint64_t turns;
    int ends[2], status;
    pid_t pid;

    MT_REQUIRE(rt_pool_new(1, 64, &admins) == RT_OK);
    MT_REQUIRE(rt_pool_new(2, 64, &family.pool) == RT_OK);
    admin = channel_to(admins, &o);
    o.client_name = "held";
    family.channel = channel_to(family.pool, &o);
    echo(family.channel, mb, 1);
    MT_REQUIRE(pipe(ends) == 0);
    fflush(NULL);
    pid = fork();
    MT_REQUIRE(pid >= 0);
    if (pid == 0) {
        close(ends[1]);
        family.hold = ends[0];
        child(&family);
    }
    close(ends[0]);
    end_channel(family.channel, mb);
    MT_EVENTUALLY(rt_read(&family.pool->poller.turns) > 0 &&
                  atomic_load(&family.pool->poller.count) == 0);
    rest(family.pool);
    turns = rt_read(&family.pool->poller.turns);
    /* The server ends the connection that only the child has still. */
    do_command(admin, mb, "CLIENT KILL TYPE normal SKIPME yes");
    mt_sleep_ms(50);
    MT_EQ(rt_read(&family.pool->poller.turns), turns);
    end_commands(family.pool, mb);
    close(ends[1]);
    MT_REQUIRE(waitpid(pid, &status, 0) == pid);
    MT_EQ(status, 0);
    end_channel(admin, mb);
    end_commands(admins, mb);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    unsigned fds;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    fds = mt_fds();
    fork_under_load(&rnd);
    socket_held_by_a_child();
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(mb);
    return mt_report("fork");
}

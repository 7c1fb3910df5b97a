/* Redis commands for tests: made, submitted, waited for, and their replies read. */
#ifndef COMMANDS_H
#define COMMANDS_H

#include "rds_channel.h"
#include "rds_cmd.h"
#include "rest.h"
#include "threads.h"

struct command {
    struct rds_job job;
    uint64_t number; /* what its reply must be, where a test uses that */
    atomic_uint homes;
};

static inline struct command *command_of(struct rt_job *job)
{
    return RT_CONTAINER_OF(rds_job_of(job), struct command, job);
}

static inline void command_argv(struct command *c, struct rt_mailbox *mb, uint64_t deadline,
                                size_t argc, const char *const *argv, const size_t *lens)
{
    rds_job_init(&c->job, mb, deadline);
    c->number = 0;
    atomic_store(&c->homes, 0);
    MT_REQUIRE(rds_cmd_encode(&c->job, argc, argv, lens) == RT_OK);
}

/* A command of words between blanks. */
static inline void command_text(struct command *c, struct rt_mailbox *mb, uint64_t deadline,
                                const char *text)
{
    const char *argv[16];
    size_t lens[16], argc = 0;

    while (*text != '\0') {
        size_t len = strcspn(text, " ");

        MT_REQUIRE(argc < 16);
        argv[argc] = text;
        lens[argc++] = len;
        text += len + (text[len] == ' ');
    }
    command_argv(c, mb, deadline, argc, argv, lens);
}

/* ECHO of a number, which is then known. */
static inline void command_echo(struct command *c, struct rt_mailbox *mb, uint64_t deadline,
                                uint64_t number)
{
    char text[40];

    snprintf(text, sizeof text, "ECHO %llu", (unsigned long long)number);
    command_text(c, mb, deadline, text);
    c->number = number;
}

/* ---- coming home ----------------------------------------------------------- */

/* The next command that comes home; NULL when none does within ms. */
static inline struct command *command_next(struct rt_mailbox *mb, int ms)
{
    struct rt_job *job;
    struct command *c;

    for (;;) {
        rt_mailbox_begin(mb);
        job = rt_mailbox_next(mb);
        if (job != NULL)
            break;
        if (!mt_readable(mb->fd, ms))
            return NULL;
    }
    rt_mailbox_again(mb);
    c = command_of(job);
    if (rt_job_state(job) != RT_JOB_DONE)
        MT_CHECK(!"a job came home in another state than done");
    if (atomic_fetch_add(&c->homes, 1) != 0)
        MT_CHECK(!"a job came home twice");
    return c;
}

static inline bool command_home(struct rt_mailbox *mb, struct command *c)
{
    while (atomic_load(&c->homes) == 0) {
        if (command_next(mb, MT_HANG_MS) == NULL)
            return MT_CHECK(!"a command did not come home");
    }
    return true;
}

static inline struct rds_node command_node(const struct command *c)
{
    struct rds_node node;
    uint32_t at = 0;

    memset(&node, 0, sizeof node);
    if (!rds_reply_next(&c->job.reply, &at, &node))
        node.str = NULL;
    return node;
}

/* The reply's, or the failure's, text as a string of its own. */
static inline const char *command_says(const struct command *c)
{
    static _Thread_local char text[512];
    struct rds_node node = command_node(c);

    if (node.str == NULL)
        return node.type == RDS_NIL ? "(nil)" : "(no text)";
    snprintf(text, sizeof text, "%.*s", node.len > 500 ? 500 : (int)node.len, node.str);
    return text;
}

static inline bool command_mentions(const struct command *c, const char *what)
{
    if (strstr(command_says(c), what) != NULL)
        return true;
    fprintf(stderr, "    \"%s\" does not mention \"%s\"\n", command_says(c), what);
    return false;
}

static inline bool echoes(const struct command *c)
{
    char wanted[24];

    snprintf(wanted, sizeof wanted, "%llu", (unsigned long long)c->number);
    return strcmp(command_says(c), wanted) == 0;
}

/* ---- channels ----------------------------------------------------------------- */

static inline struct rds_options quick_options(void)
{
    return (struct rds_options){
        .protocol = 3,
        .connect_timeout = 20 * RT_SEC,
        .connect_retries = 3,
        .backoff_base = RT_MS,
        .backoff_cap = 50 * RT_MS,
        .max_reply = (uint64_t)64 << 20,
    };
}

/* The private server the runner has started, by its Unix socket. */
static inline struct rds_options server_options(void)
{
    struct rds_options o = quick_options();

    o.path = getenv("OFFLOOP_TEST_REDIS_SOCK");
    MT_REQUIRE(o.path != NULL);
    return o;
}

static inline struct rds_channel *channel_to(struct rt_pool *pool, const struct rds_options *o)
{
    struct rds_channel *channel = NULL;

    MT_REQUIRE(rds_channel_new(pool, o, &channel) == RT_OK);
    return channel;
}

/* One command and its reply; the caller frees the command with rds_job_fini(). */
static inline void run_command(struct rds_channel *channel, struct rt_mailbox *mb,
                               struct command *c, const char *text)
{
    command_text(c, mb, RT_NEVER, text);
    MT_REQUIRE(rds_channel_submit(channel, &c->job) == RT_OK);
    command_home(mb, c);
}

/* The same where only success counts. */
static inline void do_command(struct rds_channel *channel, struct rt_mailbox *mb, const char *text)
{
    struct command c;

    run_command(channel, mb, &c, text);
    if (!MT_CHECK(c.job.base.err == RT_OK && command_node(&c).type != RDS_ERROR))
        fprintf(stderr, "    %s: %s\n", text, command_says(&c));
    rds_job_fini(&c.job);
}

/* Close a channel for good, wait for that and let go of it. */
static inline void end_channel(struct rds_channel *channel, struct rt_mailbox *mb)
{
    struct command last;

    command_text(&last, mb, RT_NEVER, "close"); /* a job that is never sent */
    MT_EQ(rds_channel_close(channel, RT_NEVER, &last.job.base), RT_OK);
    command_home(mb, &last);
    rds_channel_release(channel);
}

static inline void end_commands(struct rt_pool *pool, struct rt_mailbox *mb)
{
    struct command last;

    command_text(&last, mb, RT_NEVER, "close");
    MT_EQ(rt_pool_close(pool, RT_NEVER, &last.job.base), RT_OK);
    command_home(mb, &last);
    rt_pool_release(pool);
}

#endif

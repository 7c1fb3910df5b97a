/* The oracle of reply identity: threads with mailboxes of their own send numbered
 * ECHOs through one channel, take some back at any moment, give some a deadline
 * of a millisecond and more, and every reply must be the very number that was
 * sent. Every command must come home exactly once. */
#ifndef ORACLE_H
#define ORACLE_H

#include "commands.h"

#define ORACLE_WINDOW 128
#define ORACLE_WRONG "a reply reached another command"

struct oracle {
    struct rds_channel *channel;
    uint64_t seed;
    uint64_t total;    /* commands of each thread */
    atomic_uint next;  /* threads so far */
    _Atomic uint64_t answered, cancelled, dropped, timed_out, lost, refused;
};

struct question {
    struct command command;
    bool wanted, impatient;
};

static inline void oracle_judge(struct oracle *o, struct question *q)
{
    struct command *c = &q->command;

    if (!q->wanted) {
        rt_count(c->job.base.err == RT_OK ? &o->dropped : &o->cancelled, 1);
        return;
    }
    switch (c->job.base.err) {
    case RT_OK:
        if (!echoes(c))
            MT_CHECK(!ORACLE_WRONG);
        rt_count(&o->answered, 1);
        break;
    case RT_ETIMEOUT:
        rt_count(&o->timed_out, 1);
        break;
    case RT_ELOST:
        if (!c->job.maybe_run)
            MT_CHECK(!"a command that was not sent is lost");
        rt_count(&o->lost, 1);
        break;
    default:
        fprintf(stderr, "    error %d: %s\n", c->job.base.err, command_says(c));
        MT_CHECK(!"a command failed in a way that nobody caused");
        rt_count(&o->refused, 1);
        break;
    }
}

static inline void oracle_ask(struct oracle *o, struct question *q, struct rt_mailbox *mb,
                              uint64_t number, uint64_t *rnd)
{
    uint64_t luck = mt_rand(rnd), deadline = RT_NEVER;

    q->wanted = true;
    q->impatient = luck % 10 == 0;
    if (q->impatient)
        deadline = rt_now() + RT_MS + (luck >> 8) % (20 * RT_MS);
    command_echo(&q->command, mb, deadline, number);
    MT_REQUIRE(rds_channel_push(o->channel, &q->command.job) == RT_OK);
    /* Some before they are sent, some just after, and more some time later. */
    if ((luck >> 40) % 16 == 0 && rds_channel_cancel(o->channel, &q->command.job))
        q->wanted = false;
    rds_channel_kick(o->channel);
    if ((luck >> 48) % 8 == 0 && q->wanted && rds_channel_cancel(o->channel, &q->command.job))
        q->wanted = false;
}

static inline void *oracle_thread(void *arg)
{
    struct oracle *o = arg;
    struct question *questions = calloc(ORACLE_WINDOW, sizeof *questions);
    uint64_t me = atomic_fetch_add(&o->next, 1), rnd = o->seed + me * 7919;
    uint64_t sent = 0, home = 0, i;
    struct rt_mailbox *mb;
    bool full = false;

    MT_REQUIRE(questions != NULL && rt_mailbox_new(&mb) == RT_OK);
    for (i = 0; i < ORACLE_WINDOW; i++)
        atomic_store(&questions[i].command.homes, 1); /* not under way */
    while (home < o->total) {
        struct rt_job *job;

        for (i = 0; i < ORACLE_WINDOW && sent < o->total; i++) {
            struct question *q = &questions[i];

            if (atomic_load(&q->command.homes) != 0) {
                oracle_ask(o, q, mb, me << 40 | sent++, &rnd);
            } else if (mt_rand(&rnd) % (10 * ORACLE_WINDOW / 2) == 0 && q->wanted &&
                       rds_channel_cancel(o->channel, &q->command.job)) {
                q->wanted = false;
            }
            if (mt_rand(&rnd) % 64 == 0)
                break; /* look who is home before the window is full */
        }
        full = sent - home >= ORACLE_WINDOW || sent == o->total;
        if (full && !mt_readable(mb->fd, MT_HANG_MS)) {
            MT_CHECK(!"commands did not come home");
            break;
        }
        rt_mailbox_begin(mb);
        while ((job = rt_mailbox_next(mb)) != NULL) {
            struct question *q = RT_CONTAINER_OF(command_of(job), struct question, command);

            home++;
            if (atomic_fetch_add(&q->command.homes, 1) != 0)
                MT_CHECK(!"a command came home twice");
            oracle_judge(o, q);
            rds_job_fini(&q->command.job);
        }
    }
    MT_EQ(home, o->total);
    rt_mailbox_release(mb);
    free(questions);
    return NULL;
}

/* Wait until so many more replies have come, or the calm: who cuts connections by the clock
 * alone leaves a slow machine none that lives long enough to answer anything. */
static inline void await_replies(const struct rds_channel *channel, unsigned count,
                                 atomic_bool *calm)
{
    uint64_t enough = rt_read(&channel->stats.replies) + count;

    while (rt_read(&channel->stats.replies) < enough && !atomic_load(calm))
        mt_sleep_ms(1);
}

static inline void oracle_tell(const struct oracle *o, const char *what)
{
    printf("%s: %llu answered, %llu cancelled, %llu dropped, %llu timed out, %llu lost\n", what,
           (unsigned long long)o->answered, (unsigned long long)o->cancelled,
           (unsigned long long)o->dropped, (unsigned long long)o->timed_out,
           (unsigned long long)o->lost);
}

#endif

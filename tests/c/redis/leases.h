/* Commands that get a connection of their own, and what the server says of them. */
#ifndef LEASES_H
#define LEASES_H

#include "commands.h"
#include "rds_lease.h"

static inline struct rds_options lease_options(uint32_t most, uint64_t wait)
{
    struct rds_options o = server_options();

    o.max_leases = most;
    o.lease_wait = wait;
    return o;
}

/* Submit a command of words between blanks. */
static inline void lease_command(struct rds_channel *channel, struct rt_mailbox *mb,
                                 struct command *c, uint64_t patience, const char *text)
{
    command_text(c, mb, RT_NEVER, text);
    c->job.patience = patience;
    MT_REQUIRE(rds_lease_submit(channel, &c->job) == RT_OK);
}

static inline unsigned leases_open(const struct rds_channel *channel)
{
    return (unsigned)rt_read(&channel->lessor->open);
}

static inline unsigned leases_idle(const struct rds_channel *channel)
{
    return (unsigned)rt_read(&channel->lessor->idle);
}

/* An integer that the server gives; -1 for anything else. */
static inline long long ask_number(struct rds_channel *channel, struct rt_mailbox *mb,
                                   const char *text)
{
    struct command c;
    long long value = -1;

    run_command(channel, mb, &c, text);
    if (c.job.base.err == RT_OK && command_node(&c).type == RDS_INT)
        value = command_node(&c).integer;
    rds_job_fini(&c.job);
    return value;
}

/* A number in what INFO says: its line begins with "name:". */
static inline long long ask_info(struct rds_channel *channel, struct rt_mailbox *mb,
                                 const char *name)
{
    struct command c;
    struct rds_node node;
    long long value = -1;
    const char *at;
    char *copy;

    run_command(channel, mb, &c, "INFO clients");
    node = command_node(&c);
    MT_REQUIRE(node.str != NULL);
    copy = malloc(node.len + 1);
    MT_REQUIRE(copy != NULL);
    memcpy(copy, node.str, node.len);
    copy[node.len] = '\0';
    at = strstr(copy, name);
    if (at != NULL && at[strlen(name)] == ':')
        value = strtoll(at + strlen(name) + 1, NULL, 10);
    free(copy);
    rds_job_fini(&c.job);
    return value;
}

/* Wait until so many clients are blocked in the server. */
#define BLOCKED_ARE(channel, mb, n) \
    MT_EVENTUALLY(ask_info(channel, mb, "blocked_clients") == (long long)(n))

#endif

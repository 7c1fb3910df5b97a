/* Who holds a lease: what he writes, and what he is sent. */
#ifndef HOLDERS_H
#define HOLDERS_H

#include "leases.h"

static inline void ask_to_hold(struct rds_channel *channel, struct rt_mailbox *mb,
                               struct command *c)
{
    rds_job_init(&c->job, mb, RT_NEVER);
    atomic_store(&c->homes, 0);
    c->job.holds = true;
    MT_REQUIRE(rds_lease_submit(channel, &c->job) == RT_OK);
}

static inline struct rds_lease *hold(struct rds_channel *channel, struct rt_mailbox *mb)
{
    struct command c;
    struct rds_lease *lease;

    ask_to_hold(channel, mb, &c);
    command_home(mb, &c);
    if (!MT_EQ(c.job.base.err, RT_OK))
        fprintf(stderr, "    %s\n", command_says(&c));
    lease = rds_held_claim(&c.job);
    MT_REQUIRE(lease != NULL);
    rds_job_fini(&c.job);
    return lease;
}

static inline int write_bytes(struct rds_lease *lease, const char *bytes, size_t len)
{
    struct rds_chunk *chunk = rds_chunk_new(len);
    bool tried;

    MT_REQUIRE(chunk != NULL);
    memcpy(chunk->bytes, bytes, len);
    return rds_held_write(lease, chunk, &tried);
}

static inline int write_text(struct rds_lease *lease, const char *text)
{
    return write_bytes(lease, text, strlen(text));
}

/* Have c come home when there is something to take. */
static inline void wait_for_news(struct rds_lease *lease, struct rt_mailbox *mb,
                                 struct command *c, uint64_t deadline)
{
    rds_job_init(&c->job, mb, deadline);
    atomic_store(&c->homes, 0);
    rds_held_wait(lease, &c->job.base);
}

static inline void wait_until_told(struct rds_lease *lease, struct rt_mailbox *mb)
{
    struct command c;

    wait_for_news(lease, mb, &c, RT_NEVER);
    command_home(mb, &c);
    rds_job_fini(&c.job);
}

/* The next reply, or NULL once the connection is lost. */
static inline struct rds_received *next(struct rds_lease *lease, struct rt_mailbox *mb)
{
    struct rds_received *received;
    const char *why;

    while ((received = rds_held_take(lease)) == NULL) {
        if (rds_held_lost(lease, &why) != RT_OK)
            return rds_held_take(lease);
        wait_until_told(lease, mb);
    }
    return received;
}

/* The text of the nth node of a reply. */
static inline const char *said(const struct rds_received *received, unsigned n)
{
    static _Thread_local char text[64];
    struct rds_node node;
    uint32_t at = 0;

    do {
        if (received == NULL || !rds_reply_next(&received->arena, &at, &node))
            return "(nothing)";
    } while (n-- > 0);
    if (node.type == RDS_INT)
        snprintf(text, sizeof text, "%lld", (long long)node.integer);
    else
        snprintf(text, sizeof text, "%.*s", node.str == NULL ? 0 : (int)node.len,
                 node.str == NULL ? "" : node.str);
    return text;
}

static inline void next_says(struct rds_lease *lease, struct rt_mailbox *mb, const char *wanted)
{
    struct rds_received *received = next(lease, mb);

    MT_STR_EQ(said(received, 0), wanted);
    rds_received_free(received);
}

static inline void next_begins(struct rds_lease *lease, struct rt_mailbox *mb,
                               const char *wanted)
{
    struct rds_received *received = next(lease, mb);

    MT_CHECK(strncmp(said(received, 0), wanted, strlen(wanted)) == 0);
    rds_received_free(received);
}

#endif

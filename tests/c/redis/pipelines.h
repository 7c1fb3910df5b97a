/* Pipelines for tests: numbered ECHOs as one job, and a look at their replies. */
#ifndef PIPELINES_H
#define PIPELINES_H

#include "commands.h"
#include "rds_pipeline.h"

static inline void pipeline_add(struct rds_pipeline *p, size_t argc, const char *const *argv,
                                const size_t *lens)
{
    struct rds_cmd cmd;
    size_t i, size = 0;
    char *at;

    for (i = 0; i < argc; i++)
        size += rds_cmd_arg_size(lens[i]);
    at = rds_pipeline_room(p, rds_cmd_need(argc, size));
    MT_REQUIRE(at != NULL);
    rds_cmd_begin_at(&cmd, at, argc, size);
    for (i = 0; i < argc; i++)
        rds_cmd_arg(&cmd, argv[i], lens[i]);
    rds_pipeline_added(p, rds_cmd_need(argc, size));
}

/* A command of words between blanks. */
static inline void pipeline_add_text(struct rds_pipeline *p, const char *text)
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
    pipeline_add(p, argc, argv, lens);
}

/* ECHO of a number with so many bytes of padding behind it. */
static inline void pipeline_add_echo(struct rds_pipeline *p, uint64_t number, size_t padding)
{
    char *word = malloc(32 + padding);
    const char *argv[2] = { "ECHO", word };
    size_t lens[2] = { 4, 0 };

    MT_REQUIRE(word != NULL);
    lens[1] = (size_t)snprintf(word, 32, "%llu:", (unsigned long long)number);
    memset(word + lens[1], 'x', padding);
    lens[1] += padding;
    pipeline_add(p, 2, argv, lens);
    free(word);
}

/* A sealed pipeline as the job of `c`. */
static inline void pipeline_command(struct command *c, struct rt_mailbox *mb, uint64_t deadline,
                                    struct rds_pipeline *p, bool transaction, uint64_t patience)
{
    rds_job_init(&c->job, mb, deadline);
    c->number = 0;
    atomic_store(&c->homes, 0);
    MT_REQUIRE(rds_pipeline_seal(p, transaction) == RT_OK);
    rds_pipeline_tie(p, &c->job, patience);
}

/* `count` ECHOs of first, first + 1, ... */
static inline void pipeline_echoes(struct command *c, struct rt_mailbox *mb, uint64_t deadline,
                                   uint64_t first, uint32_t count, size_t padding,
                                   bool transaction)
{
    struct rds_pipeline *p;
    uint32_t i;

    MT_REQUIRE(rds_pipeline_new(&p) == RT_OK);
    for (i = 0; i < count; i++)
        pipeline_add_echo(p, first + i, padding);
    pipeline_command(c, mb, deadline, p, transaction, RT_NEVER);
    c->number = first;
}

/* The next node of the replies; false after the last. */
static inline bool pipeline_node(struct rds_pipeline *p, struct rds_node *node)
{
    const struct rds_arena *arena = rds_pipeline_replies(p);

    return arena != NULL && rds_reply_next(arena, &p->read_at, node);
}

static inline bool node_echoes(const struct rds_node *node, uint64_t number, size_t padding)
{
    char wanted[32];
    size_t n = (size_t)snprintf(wanted, sizeof wanted, "%llu:", (unsigned long long)number);

    return node->type == RDS_STR && node->len == n + padding && memcmp(node->str, wanted, n) == 0;
}

static inline bool node_says(const struct rds_node *node, const char *text)
{
    return node->str != NULL && node->len == strlen(text) &&
           memcmp(node->str, text, node->len) == 0;
}

/* Whether the replies of an answered pipeline_echoes() are what they must be, all
 * of them and nothing else. */
static inline bool pipeline_is_answered(struct command *c, uint32_t count, size_t padding,
                                        bool transaction)
{
    struct rds_pipeline *p = rds_pipeline_untie(&c->job);
    struct rds_node node;
    bool right = p != NULL;
    uint32_t i;

    for (i = 0; right && transaction && i <= count; i++)
        right = pipeline_node(p, &node) && node.type == RDS_STATUS &&
                node_says(&node, i == 0 ? "OK" : "QUEUED");
    if (right && transaction)
        right = pipeline_node(p, &node) && node.type == RDS_ARRAY && node.len == count;
    for (i = 0; right && i < count; i++)
        right = pipeline_node(p, &node) && node_echoes(&node, c->number + i, padding);
    right = right && !pipeline_node(p, &node);
    rds_pipeline_free(p);
    return right;
}

#endif

/* Replies as flat bytes.
 *
 * hiredis parses; its builder callbacks write what they are given into an arena,
 * one node after the other, depth first.  So a worker makes no object per
 * element, nothing is freed recursively, and the thread that owns the job turns
 * the bytes into its own objects at leisure.
 *
 * A small reply stays in the job's inline buffer, which the command's bytes have
 * left by then (they were written, or there would be no reply); a larger one
 * moves to the heap.
 *
 * A node is a type byte and a payload, unaligned:
 *   RDS_NIL                         nothing
 *   RDS_BOOL                        1 byte
 *   RDS_INT                         int64
 *   RDS_DOUBLE                      double
 *   RDS_STR STATUS ERROR VERB BIG   uint32 length, bytes (VERB: without "txt:")
 *   RDS_FAILURE                     the same: why the client has no such reply
 *   RDS_ARRAY SET MAP PUSH          uint32 number of nodes that follow as its
 *                                   children (a map has two for each pair) */
#ifndef RDS_REPLY_H
#define RDS_REPLY_H

#include <hiredis/hiredis.h>

#include "../runtime/rt_base.h"
#include "../runtime/rt_err.h"

#define RDS_MAX_DEPTH 128

#define RDS_TEXT_(x) #x
#define RDS_TEXT(x) RDS_TEXT_(x)
#define RDS_HIREDIS_VERSION                                                       \
    RDS_TEXT(HIREDIS_MAJOR) "." RDS_TEXT(HIREDIS_MINOR) "." RDS_TEXT(HIREDIS_PATCH)

enum rds_type {
    RDS_NIL = 0,
    RDS_BOOL,
    RDS_INT,
    RDS_DOUBLE,
    RDS_STR,
    RDS_STATUS,
    RDS_ERROR,
    RDS_VERB,
    RDS_BIG,
    RDS_FAILURE,
    RDS_ARRAY,
    RDS_SET,
    RDS_MAP,
    RDS_PUSH,
};

struct rds_arena {
    char *data;
    uint32_t len;
    uint32_t cap;
    bool heap; /* data is ours to free */
};

/* An empty arena on a buffer that its holder keeps. */
static inline void rds_arena_init(struct rds_arena *a, char *buffer, uint32_t cap)
{
    a->data = buffer;
    a->len = 0;
    a->cap = cap;
    a->heap = false;
}

void rds_arena_free(struct rds_arena *a);

/* Replace what the arena holds by one string node, cut where memory fails. */
void rds_arena_set_text(struct rds_arena *a, enum rds_type type, const char *text);

/* The same, after what the arena holds. */
void rds_arena_add_text(struct rds_arena *a, enum rds_type type, const char *text);

/* What the builder callbacks write to; one per connection. */
struct rds_builder {
    /* Where the next reply goes, after what is there: NULL drops it.  Asked for
     * once, at the first byte of an in-band reply; returns false when none is
     * expected. */
    bool (*begin)(void *owner, struct rds_arena **into);
    void *owner;
    redisReader *reader; /* whose callbacks these are */
    uint64_t max_bytes; /* of one reply */

    struct rds_arena *into;
    uint64_t bytes;   /* of the reply so far, stored or not */
    bool pushes;      /* pushes are in-band: whoever reads takes them */
    bool out_of_band; /* a push or an attribute: nobody's reply */
    bool too_big;     /* over max_bytes: the rest is dropped */
    bool skipped;     /* a string of the reply was left out, see rds_exchange.c */
    const char *bad;  /* why the stream cannot be trusted any more */
};

/* The callbacks; a reader's privdata is its struct rds_builder. */
extern redisReplyObjectFunctions rds_reply_functions;

/* One node, as read back. */
struct rds_node {
    enum rds_type type;
    int64_t integer; /* INT, BOOL */
    double real;     /* DOUBLE */
    const char *str; /* strings; not terminated */
    uint32_t len;    /* bytes of str, or number of children */
};

/* Read the node at *at and move *at past it.  False at the end of the arena.
 * Thread: whoever has the arena. */
bool rds_reply_next(const struct rds_arena *a, uint32_t *at, struct rds_node *out);

/* The same where a string comes next (RDS_STR), of which most long replies are made;
 * otherwise NULL, and *at stays. */
static inline const char *rds_reply_string(const struct rds_arena *a, uint32_t *at,
                                           uint32_t *len)
{
    const char *p = a->data + *at;

    if (*at >= a->len || *p != RDS_STR)
        return NULL;
    memcpy(len, p + 1, sizeof *len);
    *at += 5 + *len;
    return p + 5;
}

#endif

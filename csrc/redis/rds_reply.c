#include "rds_reply.h"

void rds_arena_free(struct rds_arena *a)
{
    if (a->heap)
        free(a->data);
    a->data = NULL;
    a->len = a->cap = 0;
    a->heap = false;
}

static char *grow(struct rds_arena *a, size_t more)
{
    size_t need = (size_t)a->len + more, cap;
    char *grown;

    if (need > UINT32_MAX)
        return NULL;
    cap = need + need / 2;
    if (cap > UINT32_MAX)
        cap = UINT32_MAX;
    grown = a->heap ? realloc(a->data, cap) : malloc(cap);
    if (grown == NULL)
        return NULL;
    if (!a->heap && a->len > 0)
        memcpy(grown, a->data, a->len);
    a->data = grown;
    a->cap = (uint32_t)cap;
    a->heap = true;
    return a->data + a->len;
}

/* Room for `more` bytes, or NULL. */
static inline char *reserve(struct rds_arena *a, size_t more)
{
    return more <= a->cap - a->len ? a->data + a->len : grow(a, more);
}

void rds_arena_add_text(struct rds_arena *a, enum rds_type type, const char *text)
{
    size_t len = strlen(text);
    uint32_t n;
    char *p = reserve(a, 5 + len);

    if (p == NULL) {
        if (a->cap - a->len < 5)
            return;
        p = a->data + a->len;
        len = a->cap - a->len - 5;
    }
    n = (uint32_t)len;
    p[0] = (char)type;
    memcpy(p + 1, &n, sizeof n);
    memcpy(p + 5, text, len);
    a->len += 5 + n;
}

void rds_arena_set_text(struct rds_arena *a, enum rds_type type, const char *text)
{
    a->len = 0;
    rds_arena_add_text(a, type, text);
}

static struct rds_builder *builder_of(const redisReadTask *task)
{
    return task->privdata;
}

static bool within_depth(const redisReadTask *task)
{
    int depth = 0;

    for (; task != NULL; task = task->parent) {
        if (++depth > RDS_MAX_DEPTH)
            return false;
    }
    return true;
}

/* hiredis wants an object for each node and hands it back as the reply; the
 * builder itself serves as all of them.  NULL makes hiredis give up. */
static void *fail(struct rds_builder *b, const char *why)
{
    if (b->bad == NULL)
        b->bad = why;
    return NULL;
}

/* A node begins; `size` is what it will take.  False: give up. */
static bool start(struct rds_builder *b, const redisReadTask *task, uint64_t size)
{
    if (task->parent == NULL) {
        b->bytes = 0;
        b->too_big = b->skipped; /* its only string may be what was left out */
        b->into = NULL;
        b->out_of_band = task->type == REDIS_REPLY_ATTR ||
                         (task->type == REDIS_REPLY_PUSH && !b->pushes);
        if (!b->out_of_band && !b->begin(b->owner, &b->into)) {
            fail(b, "a reply that no command asked for");
            return false;
        }
    }
    b->bytes += size;
    if (b->bytes > b->max_bytes)
        b->too_big = true;
    if (b->too_big)
        b->into = NULL;
    return true;
}

static void *put(struct rds_builder *b, enum rds_type type, const void *payload, size_t len)
{
    char *p;

    if (b->into == NULL)
        return b;
    p = reserve(b->into, 1 + len);
    if (p == NULL)
        return fail(b, "no memory for a reply");
    p[0] = (char)type;
    if (len > 0)
        memcpy(p + 1, payload, len);
    b->into->len += (uint32_t)(1 + len);
    return b;
}

static void *put_string(struct rds_builder *b, enum rds_type type, const char *str, size_t len)
{
    uint32_t n = (uint32_t)len;
    char *p;

    if (b->into == NULL)
        return b;
    p = reserve(b->into, 5 + len);
    if (p == NULL)
        return fail(b, "no memory for a reply");
    p[0] = (char)type;
    memcpy(p + 1, &n, sizeof n);
    if (len > 0)
        memcpy(p + 5, str, len);
    b->into->len += 5 + n;
    return b;
}

/* The whole string at p, "$5\r\nhello\r\n".  Returns what is behind it, or NULL: it is
 * something else, is not here to its end, or is not as it should be. */
static const char *string_at(const char *p, const char *end, const char **str, uint32_t *len)
{
    const char *digits = p + 1, *q = digits;
    uint32_t n = 0;

    if (p >= end || *p != '$')
        return NULL;
    while (q < end && *q >= '0' && *q <= '9' && q - digits < 9)
        n = n * 10 + (uint32_t)(*q++ - '0');
    if (q == digits || (*digits == '0' && q - digits > 1) || (size_t)(end - q) < 4 + (size_t)n)
        return NULL;
    if (q[0] != '\r' || q[1] != '\n' || q[2 + n] != '\r' || q[3 + n] != '\n')
        return NULL;
    *str = q + 2;
    *len = n;
    return q + 4 + n;
}

/* Write the strings that follow in the same aggregate, from p on in the reader's buffer,
 * as many as are whole.  hiredis takes several calls for each, half of what a long list
 * costs a worker; what is not plainly a string is left to it, to judge or to wait for. */
static void take_strings(struct rds_builder *b, const char *p)
{
    redisReader *r = b->reader;
    redisReadTask *task = r->task[r->ridx];
    const char *end = r->buf + r->len, *str, *next;
    long long left = task->parent->elements - 1 - task->idx;
    uint32_t len;

    while (left > 0 && (next = string_at(p, end, &str, &len)) != NULL) {
        if (b->bytes + 5 + len > b->max_bytes || put_string(b, RDS_STR, str, len) == NULL)
            break;
        b->bytes += 5 + (uint64_t)len;
        r->pos += (size_t)(next - p);
        task->idx++;
        left--;
        p = next;
    }
}

static void *create_string(const redisReadTask *task, char *str, size_t len)
{
    struct rds_builder *b = builder_of(task);

    if (!start(b, task, 5 + (uint64_t)len))
        return NULL;
    /* hiredis has these two bytes and does not look at them. */
    if ((task->type == REDIS_REPLY_STRING || task->type == REDIS_REPLY_VERB) &&
        (str[len] != '\r' || str[len + 1] != '\n'))
        return fail(b, "a string without its end");
    switch (task->type) {
    case REDIS_REPLY_STATUS: return put_string(b, RDS_STATUS, str, len);
    case REDIS_REPLY_ERROR: return put_string(b, RDS_ERROR, str, len);
    case REDIS_REPLY_BIGNUM: return put_string(b, RDS_BIG, str, len);
    case REDIS_REPLY_VERB: return put_string(b, RDS_VERB, str + 4, len - 4);
    default: break;
    }
    if (put_string(b, RDS_STR, str, len) == NULL)
        return NULL;
    if (task->parent != NULL && b->into != NULL)
        take_strings(b, str + len + 2);
    return b;
}

static void *create_array(const redisReadTask *task, size_t elements)
{
    struct rds_builder *b = builder_of(task);
    uint32_t n = (uint32_t)elements;
    enum rds_type type = RDS_ARRAY;

    if (!start(b, task, 5))
        return NULL;
    if (elements > UINT32_MAX)
        return fail(b, "an aggregate with too many elements");
    if (!within_depth(task))
        return fail(b, "a reply nested too deep");
    if (task->type == REDIS_REPLY_ATTR && task->parent != NULL)
        return fail(b, "an attribute inside a reply");
    if (task->type == REDIS_REPLY_MAP)
        type = RDS_MAP;
    else if (task->type == REDIS_REPLY_SET)
        type = RDS_SET;
    else if (task->type == REDIS_REPLY_PUSH)
        type = RDS_PUSH;
    return put(b, type, &n, sizeof n);
}

static void *create_integer(const redisReadTask *task, long long value)
{
    struct rds_builder *b = builder_of(task);
    int64_t v = value;

    return start(b, task, 9) ? put(b, RDS_INT, &v, sizeof v) : NULL;
}

static void *create_double(const redisReadTask *task, double value, char *str, size_t len)
{
    struct rds_builder *b = builder_of(task);

    (void)str;
    (void)len;
    return start(b, task, 9) ? put(b, RDS_DOUBLE, &value, sizeof value) : NULL;
}

static void *create_nil(const redisReadTask *task)
{
    struct rds_builder *b = builder_of(task);

    return start(b, task, 1) ? put(b, RDS_NIL, NULL, 0) : NULL;
}

static void *create_bool(const redisReadTask *task, int value)
{
    struct rds_builder *b = builder_of(task);
    char v = (char)(value != 0);

    return start(b, task, 2) ? put(b, RDS_BOOL, &v, 1) : NULL;
}

static void free_object(void *obj)
{
    (void)obj; /* the arena belongs to a job */
}

redisReplyObjectFunctions rds_reply_functions = {
    create_string, create_array, create_integer, create_double,
    create_nil, create_bool, free_object,
};

bool rds_reply_next(const struct rds_arena *a, uint32_t *at, struct rds_node *out)
{
    const char *p = a->data + *at;

    if (*at >= a->len)
        return false;
    out->type = (enum rds_type)(unsigned char)*p++;
    out->str = NULL;
    out->len = 0;
    out->integer = 0;
    switch (out->type) {
    case RDS_NIL:
        break;
    case RDS_BOOL:
        out->integer = *p++;
        break;
    case RDS_INT:
        memcpy(&out->integer, p, sizeof out->integer);
        p += sizeof out->integer;
        break;
    case RDS_DOUBLE:
        memcpy(&out->real, p, sizeof out->real);
        p += sizeof out->real;
        break;
    case RDS_STR:
    case RDS_STATUS:
    case RDS_ERROR:
    case RDS_VERB:
    case RDS_BIG:
    case RDS_FAILURE:
        memcpy(&out->len, p, sizeof out->len);
        out->str = p + 4;
        p += 4 + (size_t)out->len;
        break;
    case RDS_ARRAY:
    case RDS_SET:
    case RDS_MAP:
    case RDS_PUSH:
        memcpy(&out->len, p, sizeof out->len);
        p += 4;
        break;
    }
    *at = (uint32_t)(p - a->data);
    return true;
}
